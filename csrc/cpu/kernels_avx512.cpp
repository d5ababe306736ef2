// The kernels with AVX-512 (F, BW, VL, DQ).
#define SOFT_MASK_ISA avx512
#include "kernel_table.h"

namespace soft_mask {
const KernelTable kAvx512Kernels = SOFT_MASK_KERNEL_TABLE("avx512");
}
