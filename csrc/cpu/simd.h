// Vectors as wide as the flags of this translation unit allow, through the compilers' own vector types: one source for
// every instruction set. Everything lives in a namespace of the set's name, so that no two builds of it can be confused.
#pragma once

#include <cstdint>
#include <cstring>

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
constexpr int kUnroll = 4;                  // independent chains that hide the latency of an addition
constexpr int kStep = kLanes * kUnroll;     // floats a trip of an inner loop
static_assert(64 % kStep == 0, "blocks are padded to 64 floats");

using VectorF = float __attribute__((vector_size(kVectorBytes)));
using VectorI = int32_t __attribute__((vector_size(kVectorBytes)));

inline VectorF load(const float* p) {
  VectorF v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline VectorF splat(float x) { return x - VectorF{}; }
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

// 2^y for y in [-126, 0], relative error 2e-7 (a polynomial of degree 5 fitted to the relative error over [-1/2, 1/2]).
inline VectorF exp2_nonpositive(VectorF y) {
  const VectorF shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const VectorF rounded = y + shifter;
  const VectorF f = y - (rounded - shifter);
  VectorF p = splat(0.001327647129073739f);
  p = p * f + splat(0.009675540961325169f);
  p = p * f + splat(0.05550713092088699f);
  p = p * f + splat(0.24022120237350464f);
  p = p * f + splat(0.6931469440460205f);
  p = p * f + splat(1.0f);
  return (VectorF)((VectorI)p + ((VectorI)rounded << 23));
}

}  // namespace soft_mask::SOFT_MASK_ISA
