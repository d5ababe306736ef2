// The words in which kernels are written. Compiled by nvcc they are the GPU's own; compiled as C++ (csrc/emulation) each
// goes through an emulated GPU that checks and counts. Kernels touch global memory only through read*, write*, publish,
// consume and atomic*, and shared memory only through Cell and SharedMax.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/dtypes.h"
#include "params.h"
#include "traits.h"

namespace soft_mask::cuda {

struct alignas(kVectorBytes) Vector {
  uint32_t words[4];
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace soft_mask::cuda

#if defined(SOFT_MASK_EMULATION)
#include "../emulation/device.h"
#else

#include <stdexcept>
#include <string>

#define SOFT_MASK_DEVICE __device__ __forceinline__
#define SOFT_MASK_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define SOFT_MASK_PARAMS const __grid_constant__

namespace soft_mask::cuda {

SOFT_MASK_DEVICE int thread_index() { return int(threadIdx.x); }
SOFT_MASK_DEVICE int64_t block_index() { return int64_t(blockIdx.x); }
SOFT_MASK_DEVICE int lane_index() { return int(threadIdx.x) % kWarp; }
// The same for all lanes of a warp, and the compiler is shown that it is.
SOFT_MASK_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / kWarp, 0); }

SOFT_MASK_DEVICE void barrier() { __syncthreads(); }
SOFT_MASK_DEVICE void warp_barrier() { __syncwarp(); }
SOFT_MASK_DEVICE unsigned ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
SOFT_MASK_DEVICE bool any(bool x) { return __any_sync(0xffffffffu, x); }
template <class T>
SOFT_MASK_DEVICE T shuffle(T x, int from) { return __shfl_sync(0xffffffffu, x, from); }
template <class T>
SOFT_MASK_DEVICE T shuffle_up(T x, int by = 1) { return __shfl_up_sync(0xffffffffu, x, by); }
template <class T>
SOFT_MASK_DEVICE T shuffle_xor(T x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
SOFT_MASK_DEVICE uint32_t reduce_max(uint32_t x) { return __reduce_max_sync(0xffffffffu, x); }
SOFT_MASK_DEVICE uint32_t reduce_or(uint32_t x) { return __reduce_or_sync(0xffffffffu, x); }
SOFT_MASK_DEVICE int count_bits(unsigned x) { return __popc(x); }
SOFT_MASK_DEVICE int lowest_bit(unsigned x) { return __ffs(int(x)) - 1; }

SOFT_MASK_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
SOFT_MASK_DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }
// 2^x within 2 units of the last place; 0 below the normal numbers.
SOFT_MASK_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger; NaN where either is.
SOFT_MASK_DEVICE float max_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
SOFT_MASK_DEVICE float to_float(float x) { return x; }
SOFT_MASK_DEVICE float to_float(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
SOFT_MASK_DEVICE float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
SOFT_MASK_DEVICE void from_float(float x, float& to) { to = x; }
SOFT_MASK_DEVICE void from_float(float x, BFloat16& to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
SOFT_MASK_DEVICE void from_float(float x, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

namespace detail {
SOFT_MASK_DEVICE uint4 as_uint4(Vector v) { return make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]); }
SOFT_MASK_DEVICE Vector as_vector(uint4 v) { return {{v.x, v.y, v.z, v.w}}; }
}  // namespace detail

// Global memory. `_once`: what no one reads again, such as logits, gives way first in the caches.
template <class T>
SOFT_MASK_DEVICE T read(const T* from) { return __ldg(from); }
SOFT_MASK_DEVICE BFloat16 read(const BFloat16* from) { return {__ldg(&from->bits)}; }
SOFT_MASK_DEVICE Half read(const Half* from) { return {__ldg(&from->bits)}; }
SOFT_MASK_DEVICE Vector read_vector(const void* from) { return detail::as_vector(__ldg(static_cast<const uint4*>(from))); }
SOFT_MASK_DEVICE float read_once(const float* from) { return __ldcs(from); }
SOFT_MASK_DEVICE BFloat16 read_once(const BFloat16* from) { return {__ldcs(&from->bits)}; }
SOFT_MASK_DEVICE Half read_once(const Half* from) { return {__ldcs(&from->bits)}; }
SOFT_MASK_DEVICE Vector read_vector_once(const void* from) { return detail::as_vector(__ldcs(static_cast<const uint4*>(from))); }
template <class T>
SOFT_MASK_DEVICE void write(T* to, T x) { *to = x; }
SOFT_MASK_DEVICE void write_vector(void* to, Vector x) { *static_cast<uint4*>(to) = detail::as_uint4(x); }
SOFT_MASK_DEVICE void write_vector_once(void* to, Vector x) { __stcs(static_cast<uint4*>(to), detail::as_uint4(x)); }

// From block to block within a launch: publish; fence, barrier, one atomic_add; who sees its count has all to consume.
template <class T>
SOFT_MASK_DEVICE void publish(T* to, T x) { __stcg(to, x); }
template <class T>
SOFT_MASK_DEVICE T consume(const T* from) { return __ldcg(from); }
SOFT_MASK_DEVICE void fence() { __threadfence(); }
SOFT_MASK_DEVICE int32_t atomic_add(int32_t* to, int32_t x) { return atomicAdd(to, x); }
SOFT_MASK_DEVICE void atomic_set(int32_t* to, int32_t x) { atomicExch(to, x); }
SOFT_MASK_DEVICE void atomic_raise(uint64_t* to, uint64_t x) {
  atomicMax(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x));
}

// Shared memory: what one thread sets, others get after a barrier.
template <class T>
class Cell {
 public:
  SOFT_MASK_DEVICE T get() const { return value_; }
  SOFT_MASK_DEVICE void set(T x) { value_ = x; }

 private:
  T value_;
};
// A number that any thread may raise and look at, at any time.
class SharedMax {
 public:
  SOFT_MASK_DEVICE void reset() { value_ = 0; }  // by one thread, before a barrier
  SOFT_MASK_DEVICE void raise(uint32_t x) { atomicMax(&value_, x); }
  SOFT_MASK_DEVICE uint32_t get() const { return *const_cast<const volatile uint32_t*>(&value_); }

 private:
  uint32_t value_;
};
template <class Shared>
SOFT_MASK_DEVICE Shared& shared_memory() {
  __shared__ alignas(kVectorBytes) char bytes[sizeof(Shared)];
  return *reinterpret_cast<Shared*>(bytes);
}

// Errors of the launch itself; those of the kernel show at the next synchronisation, as with all of torch.
void need_launched(const char* name);

template <class Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, const Params& params, const Launch& where) {
  if (blocks == 0) return;
  kernel<<<unsigned(blocks), unsigned(threads), 0, static_cast<cudaStream_t>(where.stream)>>>(params);
  need_launched(name);
}

}  // namespace soft_mask::cuda
#endif
