#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "../cuda/traits.h"

namespace soft_mask::emulation {
namespace {

constexpr int kWarp = cuda::kWarp;
constexpr size_t kMaxResident = 4;
constexpr size_t kSharedBytes = 48 * 1024;
constexpr const char* kExchanges[] = {"none", "ballot", "any", "shuffle", "shuffle_up", "shuffle_xor", "reduce_max", "reduce_or"};

}  // namespace

Machine& Machine::get() {
  static Machine machine;
  return machine;
}

void Machine::enter() {
  Machine& machine = get();
  try {
    (*machine.body_)();
  } catch (const std::exception& error) {
    if (machine.error_.empty()) machine.error_ = error.what();
  }
  Thread& thread = machine.thread();
  thread.state = Thread::State::done;
  ++thread.block->done;
  thread.fiber.yield();
}

void Machine::begin(Block& block, int64_t index, int threads) {
  block.index = index;
  block.epoch = 1;
  block.arrived = block.done = 0;
  block.shared.assign(kSharedBytes, char(0xff));
  block.shared_made = false;
  while (int(block.threads.size()) < threads) block.threads.push_back(std::make_unique<Thread>());
  block.threads.resize(size_t(threads));
  block.loads.assign(size_t(threads / kWarp), {});
  block.stores.assign(size_t(threads / kWarp), {});
  for (int i = 0; i < threads; ++i) {
    Thread& thread = *block.threads[size_t(i)];
    thread.block = &block;
    thread.index = i;
    thread.state = Thread::State::ready;
    thread.calls.clear();
    thread.fiber.start(&Machine::enter);
  }
}

void Machine::run(const char* name, int64_t blocks, int threads, const std::function<void()>& body) {
  if (threads % kWarp != 0) throw std::runtime_error(std::string("soft_mask emulation: ") + name + ": threads must be whole warps");
  random_.seed(seed_);
  body_ = &body;
  error_.clear();
  memory_.begin(blocks, threads);
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), int64_t(0));
  if (seed_ != 0) std::shuffle(order.begin(), order.end(), random_);
  const size_t at_once = seed_ == 0 ? 1 : 1 + random_() % kMaxResident;
  while (resident_.size() < at_once) resident_.push_back(std::make_unique<Block>());

  size_t next = 0;
  std::vector<Block*> running;
  try {
    while (error_.empty() && (next < order.size() || !running.empty())) {
      while (running.size() < at_once && next < order.size()) {
        for (const auto& block : resident_) {
          if (std::find(running.begin(), running.end(), block.get()) != running.end()) continue;
          begin(*block, order[next++], threads);
          running.push_back(block.get());
          break;
        }
      }
      const size_t chosen = running.size() == 1 ? 0 : size_t(random_() % running.size());
      Block& block = *running[chosen];
      if (!step(block) && error_.empty()) stuck(block);
      if (block.done == threads) running.erase(running.begin() + int64_t(chosen));
    }
    if (error_.empty()) memory_.end();
  } catch (const std::exception& error) {
    error_ = error.what();
  }
  current_ = nullptr;
  if (!error_.empty()) throw std::runtime_error(error_ + " (in kernel " + name + ")");
}

bool Machine::step(Block& block) {
  const int warps = int(block.threads.size()) / kWarp;
  const int first = seed_ == 0 ? 0 : int(random_() % uint64_t(warps));
  bool moved = false;
  for (int i = 0; i < warps && error_.empty(); ++i) {
    const int warp = (first + i) % warps;
    // A warp at a time up to the barrier, or, in random order, a few meetings of its lanes at a time.
    int meetings = seed_ == 0 ? -1 : int(random_() % 8);
    for (;;) {
      const auto lanes = block.threads.begin() + warp * kWarp;
      const bool any = std::any_of(lanes, lanes + kWarp, [](const auto& t) { return t->state == Thread::State::ready; });
      if (!any || !error_.empty()) break;
      run_warp(block, warp);
      moved = true;
      if (meetings-- == 0) break;
    }
  }
  if (block.arrived > 0 && block.arrived == int(block.threads.size())) {
    block.arrived = 0;
    ++block.epoch;
    for (const auto& thread : block.threads) thread->state = Thread::State::ready;
    moved = true;
  }
  return moved;
}

void Machine::run_warp(Block& block, int warp) {
  const int first = seed_ == 0 ? 0 : int(random_() % kWarp), stride = seed_ == 0 ? 1 : int(random_() % 16) * 2 + 1;
  for (int i = 0; i < kWarp; ++i) {
    Thread& thread = *block.threads[size_t(warp * kWarp + (first + i * stride) % kWarp)];
    if (thread.state != Thread::State::ready) continue;
    current_ = &thread;
    thread.fiber.resume();
    current_ = nullptr;
    if (!error_.empty()) return;
  }
  count(block, warp);
  finish_exchange(block, warp);
}

void Machine::count(Block& block, int warp) {
  for (bool written : {false, true}) {
    for (Together& place : (written ? block.stores : block.loads)[size_t(warp)]) {
      for (auto& pieces : place.calls) {
        if (!pieces.empty()) memory_.count(pieces, written);
        pieces.clear();
      }
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    auto& calls = block.threads[size_t(warp * kWarp + lane)]->calls;
    std::fill(calls.begin(), calls.end(), 0);
  }
}

void Machine::finish_exchange(Block& block, int warp) {
  Thread* lanes[kWarp];
  for (int i = 0; i < kWarp; ++i) lanes[i] = block.threads[size_t(warp * kWarp + i)].get();
  const auto waits = [](const Thread* t) { return t->state == Thread::State::exchanging; };
  const int64_t waiting = std::count_if(lanes, lanes + kWarp, waits);
  if (waiting == 0) return;
  const Exchange kind = (*std::find_if(lanes, lanes + kWarp, waits))->exchange;
  const bool same = std::all_of(lanes, lanes + kWarp, [&](const Thread* t) { return !waits(t) || t->exchange == kind; });
  if (waiting < kWarp || !same) {
    error_ = std::string("soft_mask emulation: absent lanes: ") + std::to_string(kWarp - waiting) + " lanes of warp " +
             std::to_string(warp) + " of block " + std::to_string(block.index) + " do not take part in " +
             kExchanges[int(kind)] + (same ? "" : ", and others are in another exchange");
    return;
  }
  uint64_t values[kWarp], all = 0;
  for (int i = 0; i < kWarp; ++i) {
    values[i] = lanes[i]->value;
    if (kind == Exchange::ballot || kind == Exchange::any) all |= uint64_t(values[i] != 0) << i;
    if (kind == Exchange::reduce_max) all = std::max(all, values[i]);
    if (kind == Exchange::reduce_or) all |= values[i];
  }
  for (int i = 0; i < kWarp; ++i) {
    switch (kind) {
      case Exchange::shuffle: lanes[i]->value = values[lanes[i]->argument & (kWarp - 1)]; break;
      case Exchange::shuffle_up: lanes[i]->value = values[i < lanes[i]->argument ? i : i - lanes[i]->argument]; break;
      case Exchange::shuffle_xor: lanes[i]->value = values[i ^ lanes[i]->argument]; break;
      default: lanes[i]->value = all;
    }
    lanes[i]->state = Thread::State::ready;
  }
}

void Machine::stuck(const Block& block) const {
  throw std::runtime_error("soft_mask emulation: divergent barrier: " + std::to_string(block.arrived) + " of " +
                           std::to_string(block.threads.size()) + " threads of block " + std::to_string(block.index) +
                           " wait at a barrier, " + std::to_string(block.done) + " have left the kernel");
}

void Machine::barrier() {
  current_->state = Thread::State::waiting;
  ++current_->block->arrived;
  current_->fiber.yield();
}

uint64_t Machine::exchange(Exchange kind, uint64_t value, int argument) {
  Thread& thread = *current_;
  thread.state = Thread::State::exchanging;
  thread.exchange = kind;
  thread.value = value;
  thread.argument = argument;
  thread.fiber.yield();
  return thread.value;
}

void Machine::touch(const void* address, int bytes, Access access, int place) {
  Thread& thread = *current_;
  memory_.touch(address, bytes, access, {thread.block->index, thread.index, thread.block->epoch});
  if (access == Access::atomic) return memory_.count_atomic(address);
  const bool written = access == Access::write || access == Access::publish;
  auto& places = (written ? thread.block->stores : thread.block->loads)[size_t(thread.index / kWarp)];
  if (places.size() <= size_t(place)) places.resize(size_t(place) + 1);
  if (thread.calls.size() <= size_t(place)) thread.calls.resize(size_t(place) + 1, 0);
  auto& calls = places[size_t(place)].calls;
  const auto call = size_t(thread.calls[size_t(place)]++);
  if (calls.size() <= call) calls.resize(call + 1);
  calls[call].push_back({reinterpret_cast<uintptr_t>(address), bytes});
}

void Machine::fence() { memory_.fence({current_->block->index, current_->index, current_->block->epoch}); }

void* Machine::shared(size_t bytes) {
  if (bytes > kSharedBytes) throw std::runtime_error("soft_mask emulation: too much shared memory: " + std::to_string(bytes) + " bytes");
  return current_->block->shared.data();
}

int Machine::place_of(const char* file, int line) {
  for (size_t i = places_.size(); i-- > 0;) {
    if (places_[i].second == line && places_[i].first == file) return int(i);
  }
  places_.emplace_back(file, line);
  return int(places_.size()) - 1;
}

}  // namespace soft_mask::emulation
