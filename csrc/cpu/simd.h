// Vectors as wide as the flags of this translation unit allow, through the compilers' own vector types: one source for
// every instruction set. Everything lives in a namespace of the set's name, so that no two builds of it can be confused.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/dtypes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef SOFT_MASK_ISA
#error "define SOFT_MASK_ISA (portable, avx2, avx512) before including the kernels"
#endif

namespace soft_mask::SOFT_MASK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
// Independent chains that hide the latency of an addition: as many as the registers hold with what a chain needs.
constexpr int kUnroll = kVectorBytes == 64 ? 4 : 2;
constexpr int kStep = kLanes * kUnroll;  // elements a trip of an inner loop

constexpr double kLn2 = 0.69314718055994530942;

using VectorF = float __attribute__((vector_size(kVectorBytes)));
using VectorI = int32_t __attribute__((vector_size(kVectorBytes)));

inline VectorF splat(float x) { return x - VectorF{}; }
// kLanes elements from p on, as float.
inline VectorF load(const float* p) {
  VectorF v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline VectorF load(const BFloat16* p) {
#if defined(__AVX512F__)
  return (VectorF)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  return (VectorF)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#elif defined(__SSE2__)
  return (VectorF)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  VectorF v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = widen(p[lane]);
  return v;
#endif
}
inline VectorF load(const Half* p) {
#if defined(__AVX512F__)
  return (VectorF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (VectorF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
#if defined(__SSE2__)
  const auto bits = (VectorI)_mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
#else
  VectorI bits;
  for (int lane = 0; lane < kLanes; ++lane) bits[lane] = p[lane].bits;
#endif
  const VectorI magnitude = (bits & 0x7fff) << 13;
  // As widen(Half): 2^112 moves the exponent's bias, denormals included; inf and NaN keep all exponent bits.
  const VectorI finite = (VectorI)((VectorF)magnitude * splat(0x1p112f));
  const VectorI special = (bits & 0x7c00) == 0x7c00;
  return (VectorF)((special & (magnitude | 0x7f800000)) | (~special & finite) | ((bits & 0x8000) << 16));
#endif
}
// 2 * kLanes elements from p on, in any order: for sums and maxima, which do not ask whose they are.
struct Pair {
  VectorF first, second;
};
template <class T>
inline Pair load_pair(const T* p) {
  return {load(p), load(p + kLanes)};
}
inline Pair load_pair(const BFloat16* p) {
  VectorI both;  // a bfloat16 is the upper half of its float
  std::memcpy(&both, p, sizeof both);
  return {(VectorF)(both << 16), (VectorF)(both & int32_t(0xffff0000))};
}

// kLanes elements to p, each rounded once.
inline void store(VectorF v, float* p) { std::memcpy(p, &v, sizeof v); }
inline void store(VectorF v, BFloat16* p) {
#if defined(__AVX512F__)
  const VectorI bits = (VectorI)v;
  const VectorI rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const VectorI quiet = v != v;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)((quiet & 0x7fc0) | (~quiet & rounded))));
#else
  for (int lane = 0; lane < kLanes; ++lane) narrow(v[lane], p[lane]);
#endif
}
inline void store(VectorF v, Half* p) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes; ++lane) narrow(v[lane], p[lane]);
#endif
}
// The greater; `b` where either is not a number. Spelt out on x86, where compilers make four instructions of the choice.
inline VectorF greater_of(VectorF a, VectorF b) {
#if defined(__AVX512F__)
  return (VectorF)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);  // all lanes; the plain form makes GCC 12 warn
#elif defined(__AVX2__)
  return (VectorF)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (VectorF)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Whether any lane of a comparison holds.
inline bool any_lane(VectorI truth) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)truth, (__m512i)truth) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)truth) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)truth) != 0;
#else
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= truth[lane];
  return any != 0;
#endif
}

// 2^y for y in [-126, 126], relative error 2e-7; 2^0 is 1. A polynomial of degree 5 in what rounding y to an integer leaves,
// fitted to the relative error: over [0, 1) where one instruction splits y downwards and one puts the exponent back
// (AVX-512), over [-1/2, 1/2] elsewhere.
inline VectorF exp2_of(VectorF y) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  const VectorF f = (VectorF)_mm512_maskz_reduce_ps(0xffff, (__m512)y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  VectorF p = splat(0.001867130515165627f);
  p = p * f + splat(0.009017029777169228f);
  p = p * f + splat(0.05579991266131401f);
  p = p * f + splat(0.24016444385051727f);
  p = p * f + splat(0.6931512951850891f);
  p = p * f + splat(1.0f);
  return (VectorF)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)y);  // p * 2^floor(y)
#else
  const VectorF shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const VectorF rounded = y + shifter;
  const VectorF f = y - (rounded - shifter);
  VectorF p = splat(0.001326472731307149f);
  p = p * f + splat(0.009671512991189957f);
  p = p * f + splat(0.05550733581185341f);
  p = p * f + splat(0.24022242426872253f);
  p = p * f + splat(0.6931470036506653f);
  p = p * f + splat(1.0f);
  return (VectorF)((VectorI)p + ((VectorI)rounded << 23));
#endif
}

}  // namespace soft_mask::SOFT_MASK_ISA
