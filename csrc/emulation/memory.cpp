#include "memory.h"

#include <algorithm>
#include <stdexcept>

#include "../cuda/traits.h"

namespace soft_mask::emulation {
namespace {

constexpr int kGrain = 2;  // bytes: the smallest element that kernels store

[[noreturn]] void fail(const std::string& words) { throw std::runtime_error("soft_mask emulation: " + words); }

std::string who(int64_t thread, int threads) {
  return "thread " + std::to_string(thread % threads) + " of block " + std::to_string(thread / threads);
}

}  // namespace

void Memory::add(Region region) {
  if (region.first != nullptr && region.bytes > 0) regions_.push_back(std::move(region));
}

void Memory::begin(int64_t blocks, int threads) {
  threads_ = threads;
  clock_ = 1;
  last_ = 0;
  for (Region& region : regions_) region.traces.clear();
  blocks_.assign(size_t(blocks), {});
  fences_.assign(size_t(blocks) * size_t(threads), 0);
}

void Memory::clear() { regions_.clear(); }

void Memory::end() {
  for (const Region& region : regions_) {
    if (region.zeroed_back && std::any_of(region.first, region.first + region.bytes, [](char x) { return x != 0; })) {
      fail(region.name + " was not left as it was found: zero");
    }
  }
}

Region& Memory::find(uintptr_t address, int bytes, const char* what) {
  const auto holds = [&](const Region& region) {
    const auto first = reinterpret_cast<uintptr_t>(region.first);
    return address >= first && address + uintptr_t(bytes) <= first + uintptr_t(region.bytes);
  };
  if (last_ < regions_.size() && holds(regions_[last_])) return regions_[last_];
  for (last_ = 0; last_ < regions_.size(); ++last_) {
    if (holds(regions_[last_])) return regions_[last_];
  }
  std::string nearest = "no tensor";
  int64_t least = INT64_MAX;
  for (const Region& region : regions_) {
    const int64_t offset = int64_t(address) - int64_t(reinterpret_cast<uintptr_t>(region.first));
    const int64_t distance = offset < 0 ? -offset : offset;
    if (distance < least) {
      least = distance;
      nearest = "byte " + std::to_string(offset) + " of " + region.name + ", which has " + std::to_string(region.bytes);
    }
  }
  fail(std::string("out of bounds: ") + what + " of " + std::to_string(bytes) + " bytes at " + nearest);
}

void Memory::touch(const void* pointer, int bytes, Access access, const Toucher& by) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const bool reads = access == Access::read || access == Access::consume;
  Region& region = find(address, bytes, reads ? "a read" : "a write");
  if (address % uintptr_t(bytes) != 0) {
    fail("misaligned: " + std::to_string(bytes) + " bytes at byte " +
         std::to_string(address - reinterpret_cast<uintptr_t>(region.first)) + " of " + region.name);
  }
  if (!region.writable) {
    if (!reads) fail("a write into " + region.name + ", which is only read");
    return;
  }
  ++clock_;
  const int64_t thread = by.block * threads_ + by.thread;
  if (access == Access::atomic) {
    auto& order = blocks_[size_t(by.block)];
    order.released = order.acquired = clock_;
    return;
  }
  if (region.traces.empty()) region.traces.resize(size_t((region.bytes + kGrain - 1) / kGrain));
  const size_t first = (address - reinterpret_cast<uintptr_t>(region.first)) / kGrain;
  for (size_t i = first; i < first + size_t(std::max(1, bytes / kGrain)); ++i) {
    auto& trace = region.traces[i];
    const bool others = trace.thread >= 0 && trace.thread != thread;
    const bool same_block = others && trace.thread / threads_ == by.block;
    const bool handed = trace.published > 0 && access == Access::consume;
    const bool fenced = others && fences_[size_t(trace.thread)] > trace.published;
    const bool raced = others && !handed && (!same_block || trace.epoch == by.epoch);
    if (raced) {
      fail("race: " + who(thread, threads_) + (reads ? " reads" : " writes") + " byte " + std::to_string(i * kGrain) + " of " +
           region.name + ", which " + who(trace.thread, threads_) + " wrote with no order between them");
    }
    if (others && handed) {  // published, fenced, counted by an atomic; then an atomic of the reader's
      const auto& writer = blocks_[size_t(trace.thread / threads_)];
      const bool released = same_block || (writer.released > fences_[size_t(trace.thread)] &&
                                           blocks_[size_t(by.block)].acquired > writer.released);
      if (!fenced || !released) {
        fail("race: " + who(thread, threads_) + " consumes byte " + std::to_string(i * kGrain) + " of " + region.name +
             " before " + who(trace.thread, threads_) + " has fenced and released it");
      }
    }
    if (!reads) trace = {thread, by.epoch, access == Access::publish ? clock_ : 0};
  }
}

void Memory::fence(const Toucher& by) { fences_[size_t(by.block * threads_ + by.thread)] = ++clock_; }

void Memory::count(std::vector<Piece>& pieces, bool written) {
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.address < b.address; });
  constexpr uintptr_t kSector = cuda::kSectorBytes;
  uintptr_t end = 0, sectors_end = 0;
  int64_t bytes = 0, sectors = 0;
  for (const Piece& piece : pieces) {
    const uintptr_t last = piece.address + uintptr_t(piece.bytes);
    if (last > end) bytes += int64_t(last - std::max(end, piece.address));
    end = std::max(end, last);
    const uintptr_t first_sector = std::max(sectors_end, piece.address / kSector), last_sector = (last + kSector - 1) / kSector;
    if (last_sector > first_sector) sectors += int64_t(last_sector - first_sector);
    sectors_end = std::max(sectors_end, last_sector);
  }
  Traffic& traffic = traffic_[find(pieces.front().address, pieces.front().bytes, "an access").name];
  (written ? traffic.written_bytes : traffic.read_bytes) += bytes;
  (written ? traffic.written_sectors : traffic.read_sectors) += sectors;
}

void Memory::count_atomic(const void* address) { ++traffic_[find(reinterpret_cast<uintptr_t>(address), 1, "an atomic").name].atomics; }

}  // namespace soft_mask::emulation
