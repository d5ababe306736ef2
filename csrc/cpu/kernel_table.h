// The table of one instruction set; included once by each kernels_<set>.cpp, compiled with that set's flags.
#pragma once

#include "embedding_rows.h"
#include "logits_grad.h"
#include "summarise_f64.h"
#include "summarise_row.h"

#define SOFT_MASK_EACH_DTYPE(function)                                                                       \
  {soft_mask::SOFT_MASK_ISA::function<float>, soft_mask::SOFT_MASK_ISA::function<soft_mask::BFloat16>,       \
   soft_mask::SOFT_MASK_ISA::function<soft_mask::Half>, soft_mask::SOFT_MASK_ISA::function<double>}

#define SOFT_MASK_KERNEL_TABLE(name)                                                     \
  {name, SOFT_MASK_EACH_DTYPE(summarise_row), SOFT_MASK_EACH_DTYPE(mix_row),             \
   SOFT_MASK_EACH_DTYPE(dot_row), SOFT_MASK_EACH_DTYPE(gather_rows),         \
   SOFT_MASK_EACH_DTYPE(logits_grad)}
