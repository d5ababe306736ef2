// The numbers in a vector of 16 bytes, and rows of logits cut into such vectors.
#pragma once

#include "device.h"

namespace soft_mask::cuda {

template <class T>
constexpr int kPerVector = kVectorBytes / int(sizeof(T));

template <class T>
SOFT_MASK_DEVICE float element(const Vector& v, int i);  // i known when compiled: stays in registers
template <>
SOFT_MASK_DEVICE float element<float>(const Vector& v, int i) { return float_of(v.words[i]); }
template <>
SOFT_MASK_DEVICE float element<BFloat16>(const Vector& v, int i) {
  return float_of(i % 2 ? v.words[i / 2] & 0xffff0000u : v.words[i / 2] << 16);
}
template <>
SOFT_MASK_DEVICE float element<Half>(const Vector& v, int i) {
  return to_float(Half{uint16_t(v.words[i / 2] >> (i % 2 * 16))});
}

template <class T>
SOFT_MASK_DEVICE Vector packed(const float (&x)[kPerVector<T>]) {
  Vector v;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v.words[i] = bits_of(x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      T low, high;
      from_float(x[2 * i], low);
      from_float(x[2 * i + 1], high);
      v.words[i] = uint32_t(low.bits) | uint32_t(high.bits) << 16;
    }
  }
  return v;
}

// Element i becomes -inf.
template <class T>
SOFT_MASK_DEVICE void strike(Vector& v, int i) {
  constexpr uint32_t kHalf = sizeof(T) == 4 ? 0 : std::is_same_v<T, Half> ? 0xfc00u : 0xff80u;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    if constexpr (sizeof(T) == 4) {
      if (word == i) v.words[word] = 0xff800000u;
    } else {
      if (2 * word == i) v.words[word] = (v.words[word] & 0xffff0000u) | kHalf;
      if (2 * word + 1 == i) v.words[word] = (v.words[word] & 0x0000ffffu) | kHalf << 16;
    }
  }
}

template <class T>
SOFT_MASK_DEVICE Vector no_elements() {  // all -inf
  constexpr uint32_t kWord = sizeof(T) == 4 ? 0xff800000u : std::is_same_v<T, Half> ? 0xfc00fc00u : 0xff80ff80u;
  return {{kWord, kWord, kWord, kWord}};
}

// A row of V elements that begins anywhere: loose elements up to a line of memory, whole vectors, loose elements.
struct RowCut {
  int head;     // elements
  int vectors;
  int tail;     // the first of the loose elements at the end

  template <class T>
  static SOFT_MASK_DEVICE RowCut of(const T* row, int vocab) {
    const int before = int((kLineBytes - reinterpret_cast<uintptr_t>(row) % kLineBytes) % kLineBytes / sizeof(T));
    const int head = before < vocab ? before : vocab;
    const int vectors = (vocab - head) / kPerVector<T>;
    return {head, vectors, head + vectors * kPerVector<T>};
  }
};

template <class T>
SOFT_MASK_DEVICE const T* logits_row(const LogitsParams& logits, int64_t row) {
  return static_cast<const T*>(logits.data) + row / logits.length * logits.batch_stride + row % logits.length * logits.row_stride;
}

SOFT_MASK_DEVICE double inverse_temperature(const LogitsParams& logits) {
  return logits.temperature == nullptr ? logits.inverse_temperature : 1.0 / read(logits.temperature);
}

constexpr double kLn2 = 0.693147180559945309417232121458;

template <class T>
SOFT_MASK_DEVICE T warp_sum(T x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

SOFT_MASK_DEVICE void report(uint64_t* faults, Fault fault, int64_t row) {
  if (faults != nullptr) atomic_raise(faults + int(fault), ~uint64_t(row));
}

// A kernel of the right element type.
template <class Kernels>
auto of_dtype(Dtype dtype, const Kernels& kernels) {
  return dtype == Dtype::f32 ? kernels[0] : dtype == Dtype::bf16 ? kernels[1] : kernels[2];
}

}  // namespace soft_mask::cuda
