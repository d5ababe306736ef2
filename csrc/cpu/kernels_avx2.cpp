// The kernels with AVX2, FMA and F16C.
#define SOFT_MASK_ISA avx2
#include "kernel_table.h"

namespace soft_mask {
const KernelTable kAvx2Kernels = SOFT_MASK_KERNEL_TABLE("avx2");
}
