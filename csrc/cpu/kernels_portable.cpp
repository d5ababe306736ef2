// The kernels with what every machine of this architecture has.
#define SOFT_MASK_ISA portable
#include "kernel_table.h"

namespace soft_mask {
const KernelTable kPortableKernels = SOFT_MASK_KERNEL_TABLE("portable");
}
