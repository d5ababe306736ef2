// The attainable bandwidth: reads memory once, keeps a sum. Compiled by bench/gpu_measure.py beside the report, not part of the library.
#include <cuda_runtime.h>

namespace {
constexpr int kThreads = 256, kUnroll = 4;

__global__ void read_reduce_kernel(const uint4* from, long long vectors, unsigned* sink) {
  unsigned sum = 0;
  const long long stride = static_cast<long long>(gridDim.x) * kThreads;
  long long i = static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < vectors; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(from + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < vectors; i += stride) sum += from[i].x;
  if (sum == 0x12345678u) *sink = sum;  // never optimised away, hardly ever true
}
}  // namespace

extern "C" int read_reduce(const void* from, long long bytes, void* sink, int blocks, void* stream) {
  read_reduce_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(from), bytes / 16, static_cast<unsigned*>(sink));
  return static_cast<int>(cudaGetLastError());
}
