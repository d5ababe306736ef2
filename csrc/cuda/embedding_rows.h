// Rows of the embedding, by all threads of a block. Sums in float, one rounding at the store.
#pragma once

#include "../common/gate.h"
#include "elements.h"

namespace soft_mask::cuda {

// The recipe of one row of the result, made by one warp and followed by the block after a barrier.
struct Recipe {
  enum : int { copy, mix, nothing };  // nothing: NaN, where the data was bad
  Cell<int> kind;
  Cell<int64_t> base;  // the token's own row
  Cell<float> keep;    // its weight; that of the predictions:
  Cell<float> weights[kMaxBest];
  Cell<int32_t> ids[kMaxBest];

  // By one warp, with entry j's probability and id in lane j % 32, word j / 32. A prediction without a row is a fault.
  template <int kWords>
  SOFT_MASK_DEVICE void write(int64_t token, float lambda, int k, const float (&probs)[kWords], const int32_t (&best)[kWords],
                              int64_t rows, Fault fault, uint64_t* faults, int64_t row) {
    bool absent = false;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int j = w * kWarp + lane_index();
      if (j >= k) continue;
      absent |= best[w] < 0 || best[w] >= rows;
      weights[j].set(lambda * probs[w]);
      ids[j].set(best[w]);
    }
    absent = any(absent && lambda != 0);
    if (lane_index() != 0) return;
    if (absent) report(faults, fault, row);
    kind.set(absent ? nothing : lambda == 0 ? copy : mix);
    base.set(token);
    keep.set(1.0f - lambda);
  }
};

namespace detail {

template <class T>
SOFT_MASK_DEVICE bool vectors_fit(const TableParams& table, const void* out) {
  return (reinterpret_cast<uintptr_t>(table.data) | reinterpret_cast<uintptr_t>(out) | uintptr_t(table.stride * int64_t(sizeof(T))) |
          uintptr_t(table.width * int64_t(sizeof(T)))) % kVectorBytes == 0;
}

template <class T, int kThreads>
SOFT_MASK_DEVICE void follow(const Recipe& recipe, int k, const TableParams& table, T* out) {
  const int kind = recipe.kind.get();
  if (kind == Recipe::nothing) {
    T nan;
    from_float(float_of(0x7fc00000u), nan);
    for (int64_t c = thread_index(); c < table.width; c += kThreads) write(out + c, nan);
    return;
  }
  const T* rows = static_cast<const T*>(table.data);
  const T* base = rows + recipe.base.get() * table.stride;
  const float keep = kind == Recipe::mix ? recipe.keep.get() : 1.0f;
  if (vectors_fit<T>(table, out)) {
    constexpr int n = kPerVector<T>;
    for (int64_t c = int64_t(thread_index()) * n; c < table.width; c += kThreads * n) {
      const Vector own = read_vector(base + c);
      if (kind == Recipe::copy) {
        write_vector(out + c, own);
        continue;
      }
      float sum[n];
#pragma unroll
      for (int i = 0; i < n; ++i) sum[i] = keep * element<T>(own, i);
#pragma unroll 1
      for (int j = 0; j < k; j += kMixLoads) {  // loads of several rows in flight together
        float weights[kMixLoads];
        Vector others[kMixLoads];
#pragma unroll
        for (int u = 0; u < kMixLoads; ++u) {
          weights[u] = j + u < k ? recipe.weights[j + u].get() : 0.0f;
          others[u] = weights[u] != 0 ? read_vector(rows + recipe.ids[j + u].get() * table.stride + c) : Vector{};
        }
#pragma unroll
        for (int u = 0; u < kMixLoads; ++u) {
#pragma unroll
          for (int i = 0; i < n; ++i) sum[i] += weights[u] * element<T>(others[u], i);
        }
      }
      write_vector(out + c, packed<T>(sum));
    }
    return;
  }
  for (int64_t c = thread_index(); c < table.width; c += kThreads) {
    T x = read(base + c);
    if (kind == Recipe::mix) {
      float sum = keep * to_float(x);
      for (int j = 0; j < k; ++j) {
        const float weight = recipe.weights[j].get();
        if (weight != 0) sum += weight * to_float(read(rows + recipe.ids[j].get() * table.stride + c));
      }
      from_float(sum, x);
    }
    write(out + c, x);
  }
}

}  // namespace detail

// Row `row` of `out` [.., width], contiguous. Bytes: (k + 2) d s, or 2 d s for a copy.
template <int kThreads>
SOFT_MASK_DEVICE void follow(const Recipe& recipe, int k, const TableParams& table, void* out, int64_t row) {
  switch (table.dtype) {
    case Dtype::f32: return detail::follow<float, kThreads>(recipe, k, table, static_cast<float*>(out) + row * table.width);
    case Dtype::bf16: return detail::follow<BFloat16, kThreads>(recipe, k, table, static_cast<BFloat16*>(out) + row * table.width);
    default: return detail::follow<Half, kThreads>(recipe, k, table, static_cast<Half*>(out) + row * table.width);
  }
}

// What a position's token says, read by one thread.
struct Token {
  int64_t id;
  bool known;  // it has a row
  bool mixed;

  static SOFT_MASK_DEVICE Token at(const TokenParams& tokens, int64_t rows, int64_t position) {
    const int64_t id = read(tokens.ids + position);
    return {id, 0 <= id && id < rows, tokens.where == nullptr ? id == tokens.mask_token_id : read(tokens.where + position) != 0};
  }
};

// The row of logits or feedback that a position reads.
SOFT_MASK_DEVICE int64_t source_of(const TokenParams& tokens, int64_t position) {
  return tokens.shift != 0 && position % tokens.length != 0 ? position - 1 : position;
}

SOFT_MASK_DEVICE Gate<float> read_gate(const GateParams& gate) {
  if (gate.data == nullptr) return {gate.values[0], gate.values[1], gate.values[2]};
  return {read(gate.data), read(gate.data + 1), read(gate.data + 2)};
}

}  // namespace soft_mask::cuda
