// feedback and soft_mask_embed: one read of a row of logits, its state and its k best, and the mixed embedding.
//
// Mapping: one block of 8 warps a row, or several that share a row where rows are few; a warp takes chunks of 2 KB, 16 bytes
// a lane and four such loads in flight, and keeps its k best in its lanes' registers. The warps meet once, at the end of the
// row; of several blocks the last one to arrive merges all.
// Bytes: V s once, (k + 2) d s for the mixing, 8 k + 8 for the feedback; a plain row: 2 d s. Expected: the memory's speed.
#include "embedding_rows.h"
#include "logit_state.h"
#include "warp_list.h"

namespace soft_mask::cuda {
namespace {

template <int kWords>
struct Shared {
  Cell<int> mixed;
  Cell<int64_t> token;
  Cell<double> inverse_temperature;
  SharedMax floor;  // no warp needs what is below: some warp has k that are better
  Cell<LogitState> states[kRowWarps];
  Cell<float> values[kRowWarps][kWords * kWarp];
  Cell<int32_t> ids[kRowWarps][kWords * kWarp];
  Cell<int> last;
  Recipe recipe;
  Vector stage[kRowWarps][kUnroll][kWarp];  // a chunk, each lane its own part: registers cannot be indexed
};

// What one warp makes of its chunks, which come in the order of their ids.
template <class T, int kWords>
struct Scan {
  static constexpr int kVectorsAChunk = kUnroll * kWarp;
  static constexpr int kElementsAChunk = kVectorsAChunk * kPerVector<T>;

  const LogitsParams& logits;
  const T* row;
  float bits;
  SharedMax& floor;
  Vector (&stage)[kUnroll][kWarp];
  LogitState state;
  WarpList<kWords> list;
  bool bad = false;
  int ban = 0;

  SOFT_MASK_DEVICE Scan(const LogitsParams& logits_, const T* row_, float bits_, int k, Shared<kWords>& shared)
      : logits(logits_), row(row_), bits(bits_), floor(shared.floor), stage(shared.stage[warp_index()]), list(k) {}

  static SOFT_MASK_DEVICE int offset(int slot) {  // of a lane's element within its chunk
    return (slot / kPerVector<T> * kWarp + lane_index()) * kPerVector<T> + slot % kPerVector<T>;
  }

  // Elements [first, first + n) that no vector covers, a lane each.
  SOFT_MASK_DEVICE void loose(int first, int n) {
    for (int i = 0; i < n; i += kWarp) {
      const int id = first + i + lane_index();
      const bool here = i + lane_index() < n;
      float z[1] = {here ? to_float(read_once(row + id)) : -kInfinity};
      for (int b = 0; b < logits.n_bans; ++b) {
        if (logits.bans[b] == id) z[0] = -kInfinity;
      }
      state.take(z, bits, bad);
      list.offer(z[0], id, here && ordered(z[0]) >= floor.get());
    }
  }

  // `vectors` from element `first` on: a chunk, or what is left of one.
  SOFT_MASK_DEVICE void chunk(int first, int vectors) {
    Vector v[kUnroll];
    const T* from = row + first + lane_index() * kPerVector<T>;
    if (vectors >= kVectorsAChunk) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) v[u] = read_vector_once(from + u * kWarp * kPerVector<T>);
    } else {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        v[u] = u * kWarp + lane_index() < vectors ? read_vector_once(from + u * kWarp * kPerVector<T>) : no_elements<T>();
      }
    }
    while (ban < logits.n_bans && logits.bans[ban] < first) ++ban;
    for (int b = ban; b < logits.n_bans && logits.bans[b] < first + kElementsAChunk; ++b) {
      const int at = (logits.bans[b] - first) / kPerVector<T>;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (at == u * kWarp + lane_index()) strike<T>(v[u], (logits.bans[b] - first) % kPerVector<T>);
      }
    }
    float top = -kInfinity;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {  // a vector at a time: not all its numbers in registers at once
      float z[kPerVector<T>];
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i) z[i] = element<T>(v[u], i);
      top = max_or_nan(top, state.take(z, bits, bad));
    }
    if (any(top > list.last_value && ordered(top) >= floor.get())) collect(v, first, top);
  }

  // Rare once the row is under way. The k-th largest of the lanes' maxima bounds what a chunk can add, sorted rows included.
  SOFT_MASK_DEVICE void collect(const Vector (&v)[kUnroll], int first, float top) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) stage[u][lane_index()] = v[u];
    uint32_t bound = floor.get();
    if (list.k <= kWarp) {
      const uint32_t kth = kth_largest(ordered(top), list.k);
      bound = kth > bound ? kth : bound;
    }
    uint32_t mine = 0;
#pragma unroll 1
    for (int u = 0; u < kUnroll; ++u) {
      const Vector own = stage[u][lane_index()];
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i) {
        const float z = element<T>(own, i);
        const int slot = u * kPerVector<T> + i;
        if (ordered(z) >= bound && list.takes(z, first + offset(slot))) mine |= 1u << slot;
      }
    }
    for (uint32_t slots = reduce_or(mine); slots != 0; slots &= slots - 1) {
      const int slot = lowest_bit(slots);
      T z;
      memcpy(&z, reinterpret_cast<const char*>(&stage[slot / kPerVector<T>][lane_index()]) + slot % kPerVector<T> * int(sizeof(T)), sizeof z);
      list.offer(to_float(z), first + offset(slot), mine >> slot & 1);
    }
    if (lane_index() == 0 && list.last_value > -kInfinity) floor.raise(ordered(list.last_value));
  }

  // This warp's part of `split` out of `splits` of the row.
  SOFT_MASK_DEVICE void read_row(int split, int splits) {
    const RowCut cut = RowCut::of(row, logits.vocab);
    const int chunks = (cut.vectors + kVectorsAChunk - 1) / kVectorsAChunk;
    const int last = int(int64_t(chunks) * (split + 1) / splits);
    if (split == 0 && warp_index() == 0) loose(0, cut.head);
    for (int c = int(int64_t(chunks) * split / splits) + warp_index(); c < last; c += kRowWarps) {
      chunk(cut.head + c * kElementsAChunk, cut.vectors - c * kVectorsAChunk);
    }
    if (split == splits - 1 && warp_index() == kRowWarps - 1) loose(cut.tail, logits.vocab - cut.tail);
    if (bad) state.sum = float_of(0x7fc00000u);
  }
};

// Into warp 0, in the order of the warps.
template <class T, int kWords>
SOFT_MASK_DEVICE void merge_warps(Scan<T, kWords>& scan, Shared<kWords>& shared) {
  scan.state.merge_lanes(scan.bits);
  if (lane_index() == 0) shared.states[warp_index()].set(scan.state);
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    shared.values[warp_index()][w * kWarp + lane_index()].set(scan.list.value[w]);
    shared.ids[warp_index()][w * kWarp + lane_index()].set(scan.list.id[w]);
  }
  barrier();
  if (warp_index() != 0) return;
  scan.state = lane_index() < kRowWarps ? shared.states[lane_index()].get() : LogitState();
  scan.state.merge_lanes(scan.bits);
  const int k = scan.list.k;
  for (int i = lane_index(); i - lane_index() < (kRowWarps - 1) * k; i += kWarp) {  // entries of all other warps, a lane each
    const bool here = i < (kRowWarps - 1) * k;
    const int other = here ? 1 + i / k : 1, j = here ? i % k : 0;
    scan.list.offer(shared.values[other][j].get(), shared.ids[other][j].get(), here);
  }
}

// By warp 0: hands this block's part to whichever block of the row comes last, which then holds the whole.
template <class T, int kWords>
SOFT_MASK_DEVICE bool merge_blocks(Scan<T, kWords>& scan, const SummariseParams& p, int64_t row, int split) {
  const int size = partial_floats(p.k);
  float* parts = p.partials + row * p.splits * size;
  float* mine = parts + split * size;
  if (lane_index() == 0) {
    publish(mine, scan.state.max);
    publish(mine + 1, scan.state.sum);
    publish(mine + 2, scan.state.weighted);
  }
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const int j = w * kWarp + lane_index();
    if (j < p.k) {
      publish(mine + 3 + j, scan.list.value[w]);
      publish(mine + 3 + p.k + j, float_of(uint32_t(scan.list.id[w])));
    }
  }
  fence();
  warp_barrier();
  int ticket = 0;
  if (lane_index() == 0) ticket = atomic_add(p.tickets + row, 1);
  if (shuffle(ticket, 0) != p.splits - 1) return false;
  fence();
  scan.state = LogitState();
  if (lane_index() < p.splits) {
    const float* part = parts + lane_index() * size;
    scan.state.max = consume(part);
    scan.state.sum = consume(part + 1);
    scan.state.weighted = consume(part + 2);
  }
  scan.state.merge_lanes(scan.bits);
  scan.list = WarpList<kWords>(p.k);
  for (int i = lane_index(); i - lane_index() < p.splits * p.k; i += kWarp) {  // entries of all blocks, a lane each
    const bool here = i < p.splits * p.k;
    const float* part = parts + (here ? i / p.k * size + 3 + i % p.k : 3);
    scan.list.offer(consume(part), int32_t(bits_of(consume(part + p.k))), here);
  }
  if (lane_index() == 0) atomic_set(p.tickets + row, 0);
  return true;
}

// By warp 0: the row's feedback, and what the block is to make of the embedding.
template <class T, int kWords>
SOFT_MASK_DEVICE void finish(const Scan<T, kWords>& scan, const SummariseParams& p, int64_t row, int64_t source, Shared<kWords>& shared) {
  const bool bad = scan.state.bad();
  const float best = shuffle(scan.list.value[0], 0), nan = float_of(0x7fc00000u);
  float probs[kWords], total = 0;
  int32_t ids[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const bool kept = w * kWarp + lane_index() < p.k && scan.list.value[w] > -kInfinity;
    probs[w] = kept ? exp2f((scan.list.value[w] - best) * scan.bits) : 0.0f;
    ids[w] = kept ? scan.list.id[w] : 0;
    total += probs[w];
  }
  total = warp_sum(total);
  const float neg_entropy = bad ? nan : scan.state.neg_entropy();
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const int j = w * kWarp + lane_index();
    probs[w] = bad ? nan : total > 0 ? probs[w] / total : 0.0f;
    if (j >= p.k) continue;
    write(p.ids + row * p.k + j, ids[w]);
    write(p.probs + row * p.k + j, probs[w]);
  }
  if (lane_index() == 0) {
    write(p.neg_entropy + row, neg_entropy);
    write(p.logsumexp + row, bad ? nan : scan.state.logsumexp(shared.inverse_temperature.get()));
    if (bad) report(p.faults, Fault::not_finite, source);
    if (!bad && scan.state.empty()) report(p.faults, Fault::all_banned, source);
  }
  if (p.out == nullptr) return;
  const float lambda = read_gate(p.gate).lambda(neg_entropy);
  shared.recipe.write(shared.token.get(), lambda, p.k, probs, ids, p.table.rows, Fault::predicted_ids, p.faults, source);
}

template <class T, int kWords>
SOFT_MASK_KERNEL(kRowThreads, kRowBlocks) summarise_kernel(SOFT_MASK_PARAMS SummariseParams p) {
  auto& shared = shared_memory<Shared<kWords>>();
  const int64_t row = block_index() / p.splits;
  const int split = int(block_index() % p.splits);
  if (thread_index() == 0) {
    bool mixed = true;
    int64_t token = 0;
    if (p.out != nullptr) {
      const Token own = Token::at(p.tokens, p.table.rows, row);
      mixed = own.mixed && own.known;
      token = own.id;
      if (!own.known && split == 0) report(p.faults, Fault::input_ids, row);
      if (!mixed) {
        shared.recipe.kind.set(own.known ? Recipe::copy : Recipe::nothing);
        shared.recipe.base.set(token);
      }
    }
    const double inverse = mixed ? inverse_temperature(p.logits) : 1.0;
    // Too cold or not a temperature: as if the row were bad.
    if (!(inverse > 0) || inverse > 1e30) report(p.faults, Fault::temperature, row);
    shared.mixed.set(mixed);
    shared.token.set(token);
    shared.inverse_temperature.set(inverse > 0 && inverse <= 1e30 ? inverse : double(float_of(0x7fc00000u)));
    shared.floor.reset();
  }
  barrier();
  if (!shared.mixed.get()) {
    if (split != 0) return;
    if (thread_index() < p.k) {
      write(p.ids + row * p.k + thread_index(), int32_t(0));
      write(p.probs + row * p.k + thread_index(), 0.0f);
    }
    if (thread_index() == 0) {
      write(p.neg_entropy + row, -kInfinity);
      write(p.logsumexp + row, -kInfinity);
    }
    return follow<kRowThreads>(shared.recipe, p.k, p.table, p.out, row);
  }
  const int64_t source = p.out == nullptr ? row : source_of(p.tokens, row);
  Scan<T, kWords> scan(p.logits, logits_row<T>(p.logits, source), float(shared.inverse_temperature.get() / kLn2), p.k, shared);
  scan.read_row(split, p.splits);
  merge_warps(scan, shared);
  if (p.splits > 1) {
    if (warp_index() == 0) {
      const bool last = merge_blocks(scan, p, row, split);
      if (lane_index() == 0) shared.last.set(last);
    }
    barrier();
    if (!shared.last.get()) return;
  }
  if (warp_index() == 0) finish(scan, p, row, source, shared);
  if (p.out == nullptr) return;
  barrier();
  follow<kRowThreads>(shared.recipe, p.k, p.table, p.out, row);
}

using Kernel = void (*)(SummariseParams);
constexpr Kernel kKernels[2][3] = {
    {summarise_kernel<float, 1>, summarise_kernel<BFloat16, 1>, summarise_kernel<Half, 1>},
    {summarise_kernel<float, 2>, summarise_kernel<BFloat16, 2>, summarise_kernel<Half, 2>},
};

}  // namespace

// As many blocks as run at a time, each with a chunk or more for every warp.
int splits_for(int64_t rows, int64_t row_bytes, const Launch& where) {
  const int64_t resident = int64_t(where.processors) * (where.threads / kRowThreads);
  const int64_t room = rows > 0 ? resident / rows : 1, most = row_bytes / (kRowWarps * kChunkBytes);
  const int64_t splits = room < most ? room : most;
  return int(splits < 1 ? 1 : splits > kMaxSplits ? kMaxSplits : splits);
}

void summarise(const SummariseParams& p, const Launch& where) {
  launch("summarise", of_dtype(p.logits.dtype, kKernels[p.k > kWarp]), p.rows * p.splits, kRowThreads, p, where);
}

}  // namespace soft_mask::cuda
