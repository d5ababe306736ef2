// The emulated counterpart of csrc/cuda/runtime.cu: memory is the host's, and a launch has ended when it returns.
#include <cstring>

#include "../cuda/params.h"

namespace soft_mask::cuda {

void read_back(void* to, const void* from, int64_t bytes, const Launch&) { std::memcpy(to, from, size_t(bytes)); }
bool capturing(const Launch&) { return false; }
// A small GPU, so that the tests' few rows are both split over blocks and not.
Launch launch_on(int device, void* stream) { return {stream, device, 4, 2048}; }

}  // namespace soft_mask::cuda
