// Every function of these headers is forced inline: the same header is compiled once for each instruction set, and an
// out-of-line copy from the widest one, picked by the linker, would crash the narrower machines.
#pragma once

#if defined(__CUDACC__)
#define SOFT_MASK_INLINE __host__ __device__ __forceinline__
#else
#define SOFT_MASK_INLINE inline __attribute__((always_inline))
#endif
