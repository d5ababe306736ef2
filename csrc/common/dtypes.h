// The element types a tensor may have, as plain bits: kernels know nothing of torch.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

namespace soft_mask {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };
constexpr int kDtypes = 4;
constexpr int kDtypeBytes[kDtypes] = {4, 2, 2, 8};

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type in which sums over elements of T are held.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

namespace detail {
template <class To, class From>
SOFT_MASK_INLINE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace detail

// Written without branches, so that compilers turn loops over them into vector code.
SOFT_MASK_INLINE float widen(float x) { return x; }
SOFT_MASK_INLINE double widen(double x) { return x; }
SOFT_MASK_INLINE float widen(BFloat16 x) { return detail::same_bits<float>(uint32_t(x.bits) << 16); }
SOFT_MASK_INLINE float widen(Half x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  // 2^112 moves the exponent's bias from 15 to 127 and makes denormals right as well.
  const uint32_t finite = detail::same_bits<uint32_t>(detail::same_bits<float>(magnitude) * 0x1p112f);
  const uint32_t special = 0x7f800000u | magnitude;  // inf and NaN
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  return detail::same_bits<float>(((x.bits & 0x7c00) == 0x7c00 ? special : finite) | sign);
}

// Round to nearest, ties to even, once, at the store.
SOFT_MASK_INLINE void narrow(float x, float& out) { out = x; }
SOFT_MASK_INLINE void narrow(double x, double& out) { out = x; }
SOFT_MASK_INLINE void narrow(float x, BFloat16& out) {
  const uint32_t bits = detail::same_bits<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}
SOFT_MASK_INLINE void narrow(float x, Half& out) {
  const uint32_t bits = detail::same_bits<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    half = 0x7c00;  // 65520 and above round to infinity
  } else if (magnitude >= 0x38800000) {
    half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  } else {
    // Denormal: adding 0.5 makes the float unit round at a half's last bit.
    half = detail::same_bits<uint32_t>(detail::same_bits<float>(magnitude) + 0.5f) - 0x3f000000;
  }
  out.bits = uint16_t(half | sign);
}

}  // namespace soft_mask
