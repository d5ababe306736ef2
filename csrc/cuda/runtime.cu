// What the glue needs of the CUDA runtime, which is linked in statically: copies, capture, errors in words.
#include <stdexcept>
#include <string>

#include "device.h"

namespace soft_mask::cuda {
namespace {

[[noreturn]] void fail(const std::string& what, cudaError_t error) {
  std::string words = "soft_mask: " + what + " failed: " + cudaGetErrorString(error);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    words += ". Its CUDA " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) +
             " runtime needs an NVIDIA driver >= 580; the one here serves CUDA up to " + std::to_string(driver / 1000) + "." +
             std::to_string(driver % 1000 / 10) + ". Update the driver, or use SOFT_MASK_BACKEND=reference.";
  } else if (error == cudaErrorNoKernelImageForDevice) {
    words += ". soft_mask.build_info()['cuda_archs'] lists what this build serves; TORCH_CUDA_ARCH_LIST chooses at build time.";
  }
  throw std::runtime_error(words);
}

}  // namespace

void need_launched(const char* name) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) fail(std::string("launching ") + name, error);
}

void read_back(void* to, const void* from, int64_t bytes, const Launch& where) {
  const auto stream = static_cast<cudaStream_t>(where.stream);
  cudaError_t error = cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDeviceToHost, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  if (error != cudaSuccess) fail("a kernel, or copying back what it found,", error);
}

bool capturing(const Launch& where) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(where.stream), &status);
  if (error != cudaSuccess) fail("asking for the stream's state", error);
  return status != cudaStreamCaptureStatusNone;
}

Launch launch_on(int device, void* stream) {
  Launch where{stream, device, 0, 0};
  // This library's copy of the runtime follows torch's, which has made the device current.
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&where.processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&where.threads, cudaDevAttrMaxThreadsPerMultiProcessor, device);
  if (error != cudaSuccess) fail("asking for the device's size", error);
  return where;
}

}  // namespace soft_mask::cuda
