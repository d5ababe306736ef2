// The embedding's gradient, gathered: entries (params.h) are counted and sorted by the row they go to, and each row is then
// summed in float and written once, zeros included. No atomic ever adds a gradient; a row that many entries share, as the
// mask's, is summed in chunks by many blocks first.
//
// Order within a row: order_entries takes what the atomics give, which may differ from run to run; with an order sorted by
// position (the glue sorts `keys`, stably) the sums are the same bits always.
// Bytes: V_e d s written, d s read for every entry, 12 an entry and 16 a row for the sorting.
#include "embedding_rows.h"

namespace soft_mask::cuda {
namespace {

// Entries of one position, and those of the mask's own row counted for all lanes of a warp at once.
struct Entries {
  const EntriesParams& p;
  int64_t position;
  bool here;

  SOFT_MASK_DEVICE explicit Entries(const EntriesParams& p_)
      : p(p_), position(block_index() * kCountThreads + thread_index()), here(position < p_.tokens.count) {}

  SOFT_MASK_DEVICE int64_t first() const { return position * (p.feedback.k + 1); }

  // each(entry, row, lane that takes part in a shared count or -1, that count, this lane's place in it), in all lanes together
  // for slot 0.
  template <class Claim>
  SOFT_MASK_DEVICE void claim_own(bool some, int64_t row, const Claim& claim) const {
    const bool shared = some && row == p.tokens.mask_token_id;
    const unsigned sharing = ballot(shared);
    const int leader = lowest_bit(sharing);
    const bool leads = shared && lane_index() == leader;
    const int32_t before = leads ? claim(row, count_bits(sharing)) : some && !shared ? claim(row, 1) : 0;
    const int32_t base = sharing == 0 ? 0 : shuffle(before, leader);
    place = shared ? base + count_bits(sharing & ((1u << lane_index()) - 1)) : before;
  }
  mutable int32_t place = 0;
};

SOFT_MASK_KERNEL(kCountThreads, 4) count_kernel(SOFT_MASK_PARAMS EntriesParams p) {
  const Entries entries(p);
  const int k = p.feedback.k;
  float own = 0, lambda = 0;
  int64_t row = -1, source = 0;
  if (entries.here) {
    const Token token = Token::at(p.tokens, p.rows, entries.position);
    source = source_of(p.tokens, entries.position);
    if (token.known) {
      row = token.id;
      if (token.mixed) lambda = read_gate(p.feedback.gate).lambda(read(p.feedback.neg_entropy + source));
      own = 1.0f - lambda;
    } else {
      report(p.faults, Fault::input_ids, entries.position);
    }
  }
  const auto claim = [&](int64_t to, int n) { return atomic_add(p.start + to, n); };
  entries.claim_own(own != 0, row, claim);
  if (!entries.here) return;
  write(p.weights + entries.first(), own);
  if (p.keys != nullptr) write(p.keys + entries.first(), own != 0 ? int32_t(row) : int32_t(p.rows));
  for (int j = 0; j < k; ++j) {
    float weight = 0;
    int32_t to = 0;
    if (lambda != 0) {
      weight = lambda * read(p.feedback.probs + source * k + j);
      to = read(p.feedback.ids + source * k + j);
      if (to < 0 || to >= p.rows) {
        report(p.faults, Fault::feedback_ids, entries.position);
        weight = 0;
      }
    }
    if (weight != 0) claim(to, 1);
    write(p.weights + entries.first() + 1 + j, weight);
    if (p.keys != nullptr) write(p.keys + entries.first() + 1 + j, weight != 0 ? to : int32_t(p.rows));
  }
}

// From counts to starts: one block over all rows of the embedding, a tile at a time.
constexpr int kRun = 16;
constexpr int kTile = kSumThreads * kRun;

struct StartShared {
  Cell<int32_t> warps[2][kSumWarps];
};

SOFT_MASK_DEVICE int32_t sum_of_before(int32_t x) {  // the lanes before this one, and this one
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const int32_t other = shuffle_up(x, by);
    if (lane_index() >= by) x += other;
  }
  return x;
}

SOFT_MASK_KERNEL(kSumThreads, 1) start_kernel(SOFT_MASK_PARAMS EntriesParams p) {
  auto& shared = shared_memory<StartShared>();
  int32_t carry = 0;
  int turn = 0;  // two sets of cells, so that one barrier a tile is enough
  for (int64_t tile = 0; tile < p.rows; tile += kTile, turn ^= 1) {
    const int64_t first = tile + int64_t(thread_index()) * kRun;
    int32_t counts[kRun], mine = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      counts[i] = first + i < p.rows ? consume(p.start + first + i) : 0;
      mine += counts[i];
    }
    const int32_t through = sum_of_before(mine);
    if (lane_index() == kWarp - 1) shared.warps[turn][warp_index()].set(through);
    barrier();
    const int32_t warps = sum_of_before(shared.warps[turn][lane_index()].get());
    const int32_t earlier = shuffle(warps, warp_index() == 0 ? 0 : warp_index() - 1);
    int32_t at = carry + (warp_index() == 0 ? 0 : earlier) + through - mine;
    carry += shuffle(warps, kWarp - 1);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (first + i >= p.rows) continue;
      write(p.start + first + i, at);
      write(p.next + first + i, at);
      at += counts[i];
    }
  }
  if (thread_index() == 0) write(p.start + p.rows, carry);
}

SOFT_MASK_KERNEL(kCountThreads, 4) order_kernel(SOFT_MASK_PARAMS EntriesParams p) {
  const Entries entries(p);
  const int k = p.feedback.k;
  const bool some = entries.here && read(p.weights + entries.first()) != 0;
  const int64_t row = some ? read(p.tokens.ids + entries.position) : -1;
  const auto claim = [&](int64_t to, int n) { return atomic_add(p.next + to, n); };
  entries.claim_own(some, row, claim);
  if (some) write(p.order + entries.place, int32_t(entries.first()));
  if (!entries.here) return;
  const int64_t source = source_of(p.tokens, entries.position);
  for (int j = 0; j < k; ++j) {
    if (read(p.weights + entries.first() + 1 + j) == 0) continue;
    const int32_t to = read(p.feedback.ids + source * k + j);
    write(p.order + claim(to, 1), int32_t(entries.first() + 1 + j));
  }
}

// Columns of a gradient row: a vector a lane, or an element a lane where rows do not begin at whole vectors.
template <class T, bool kVectors>
struct Columns {
  static constexpr int n = kVectors ? kPerVector<T> : 1;
  static constexpr int kBlock = n * kWarp;  // of a warp
  float sum[n];

  SOFT_MASK_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] = 0;
  }
  SOFT_MASK_DEVICE void add(const T* from, float weight) {
    if constexpr (kVectors) {
      const Vector v = read_vector(from);
#pragma unroll
      for (int i = 0; i < n; ++i) sum[i] += weight * element<T>(v, i);
    } else {
      sum[0] += weight * to_float(read(from));
    }
  }
  SOFT_MASK_DEVICE void store(T* to) const {
    if constexpr (kVectors) {
      write_vector_once(to, packed<T>(sum));
    } else {
      T x;
      from_float(sum[0], x);
      write(to, x);
    }
  }
};

// Entries [first, last) of one row, in their order, into this lane's columns from `column` on; all lanes together.
template <class T, bool kVectors>
SOFT_MASK_DEVICE void add_entries(const GatherParams& p, int64_t first, int64_t last, int64_t column, Columns<T, kVectors>& to) {
  const T* grad = static_cast<const T*>(p.grad) + column;
  const int a_position = p.entries.feedback.k + 1;
  for (int64_t i = first; i < last; i += kWarp) {
    const int n = int(last - i < kWarp ? last - i : kWarp);
    int32_t position = 0;
    float weight = 0;
    if (lane_index() < n) {
      const int32_t entry = read(p.entries.order + i + lane_index());
      position = entry / a_position;
      weight = read(p.entries.weights + entry);
    }
#pragma unroll 4
    for (int j = 0; j < n; ++j) {
      const int64_t from = shuffle(position, j);
      const float factor = shuffle(weight, j);
      if (column < p.width) to.add(grad + from * p.width, factor);
    }
  }
}

SOFT_MASK_DEVICE int64_t row_of(const EntriesParams& p, int64_t at) {  // of the at-th entry in order
  const int32_t entry = read(p.order + at);
  const int k = p.feedback.k, slot = entry % (k + 1);
  const int64_t position = entry / (k + 1);
  return slot == 0 ? read(p.tokens.ids + position) : read(p.feedback.ids + source_of(p.tokens, position) * k + slot - 1);
}

// A chunk of entries holds parts of two heavy rows at most: of the one that its first entry belongs to, and of the one that
// its last belongs to. Light rows are left to gather_kernel.
template <class T, bool kVectors>
SOFT_MASK_KERNEL(kGatherThreads, 4) partials_kernel(SOFT_MASK_PARAMS GatherParams p) {
  const int64_t entries = read(p.entries.start + p.entries.rows), first = block_index() * p.chunk;
  if (first >= entries) return;
  const int64_t last = first + p.chunk < entries ? first + p.chunk : entries;
  const int64_t rows[2] = {row_of(p.entries, first), row_of(p.entries, last - 1)};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i == 1 && rows[1] == rows[0]) break;
    const int64_t start = read(p.entries.start + rows[i]), end = read(p.entries.start + rows[i] + 1);
    if (end - start <= p.chunk) continue;
    for (int64_t block = warp_index() * Columns<T, kVectors>::kBlock; block < p.width; block += kGatherWarps * Columns<T, kVectors>::kBlock) {
      const int64_t column = block + lane_index() * Columns<T, kVectors>::n;
      Columns<T, kVectors> sum;
      sum.clear();
      add_entries(p, start > first ? start : first, end < last ? end : last, column, sum);
      if (column >= p.width) continue;
      float* to = p.partials + (block_index() * 2 + i) * p.width + column;
#pragma unroll
      for (int c = 0; c < Columns<T, kVectors>::n; ++c) write(to + c, sum.sum[c]);
    }
  }
}

template <class T, bool kVectors>
SOFT_MASK_KERNEL(kGatherThreads, 4) gather_kernel(SOFT_MASK_PARAMS GatherParams p) {
  const int64_t i = block_index() * kGatherWarps + warp_index();
  if (i >= p.n) return;
  const int64_t row = p.chosen == nullptr ? i : read(p.chosen + i);
  const int64_t start = read(p.entries.start + row), end = read(p.entries.start + row + 1);
  T* out = static_cast<T*>(p.out) + i * p.width;
  for (int64_t block = 0; block < p.width; block += Columns<T, kVectors>::kBlock) {
    const int64_t column = block + lane_index() * Columns<T, kVectors>::n;
    Columns<T, kVectors> sum;
    sum.clear();
    if (end - start <= p.chunk) {
      add_entries(p, start, end, column, sum);
    } else if (column < p.width) {
      for (int64_t c = start / p.chunk; c <= (end - 1) / p.chunk; ++c) {
        const float* part = p.partials + (c * 2 + (start > c * p.chunk)) * p.width + column;
#pragma unroll
        for (int j = 0; j < Columns<T, kVectors>::n; ++j) sum.sum[j] += read(part + j);
      }
    }
    if (column < p.width) sum.store(out + column);
  }
}

using Kernel = void (*)(GatherParams);
constexpr Kernel kPartials[2][3] = {
    {partials_kernel<float, false>, partials_kernel<BFloat16, false>, partials_kernel<Half, false>},
    {partials_kernel<float, true>, partials_kernel<BFloat16, true>, partials_kernel<Half, true>},
};
constexpr Kernel kGather[2][3] = {
    {gather_kernel<float, false>, gather_kernel<BFloat16, false>, gather_kernel<Half, false>},
    {gather_kernel<float, true>, gather_kernel<BFloat16, true>, gather_kernel<Half, true>},
};

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

}  // namespace

void count_entries(const EntriesParams& p, const Launch& where) {
  launch("count_entries", count_kernel, blocks_of(p.tokens.count, kCountThreads), kCountThreads, p, where);
  launch("start_rows", start_kernel, 1, kSumThreads, p, where);
}

void order_entries(const EntriesParams& p, const Launch& where) {
  launch("order_entries", order_kernel, blocks_of(p.tokens.count, kCountThreads), kCountThreads, p, where);
}

void gather_entries(const GatherParams& p, const Launch& where) {
  const int64_t row_bytes = p.width * kDtypeBytes[int(p.dtype)];
  const bool vectors = (reinterpret_cast<uintptr_t>(p.grad) | reinterpret_cast<uintptr_t>(p.out) | uintptr_t(row_bytes)) % kVectorBytes == 0;
  launch("gather_partials", of_dtype(p.dtype, kPartials[vectors]), p.chunks, kGatherThreads, p, where);
  launch("gather_rows", of_dtype(p.dtype, kGather[vectors]), blocks_of(p.n, kGatherWarps), kGatherThreads, p, where);
}

}  // namespace soft_mask::cuda
