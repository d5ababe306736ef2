// What the CPU kernels offer to the glue: one table of row functions for each instruction set.
// A row function works on one row, knows nothing of threads, and neither allocates nor throws.
#pragma once

#include <cstdint>

#include "../common/dtypes.h"

namespace soft_mask {

enum class Fault : int { none = 0, not_finite = 1, all_banned = 2 };

// One row of logits in, its feedback out. Bytes: vocab * element size, read once; about k blocks of a kilobyte or four are
// looked at again while they are in the cache.
struct SummaryTask {
  const void* logits;  // [vocab], neighbouring elements
  int64_t vocab;
  int k;
  double inverse_temperature;
  const int64_t* bans;  // [n_bans], ascending, unique
  int64_t n_bans;
  float* maxima;  // scratch [maxima_of(vocab)]
  // results
  int32_t* ids;        // [k]
  double* probs;       // [k]
  double neg_entropy;  // nats
  double logsumexp;
  Fault fault;  // with a fault the numbers above are NaN, or "no feedback" where every logit is -inf
};

// Scratch for one row: a maximum for every 16 logits, in sets of 64.
constexpr int64_t maxima_of(int64_t vocab) { return (vocab + 1023) / 1024 * 64; }

// out = keep * table[base] + sum_j weights[j] * table[ids[j]]. Bytes: (k + 2) * width * element size.
struct MixTask {
  const void* table;  // [.., width]
  int64_t table_stride;  // elements from row to row
  int64_t width;
  int64_t base;
  const int32_t* ids;     // [k]
  const double* weights;  // [k]
  int k;
  double keep;
  void* out;  // [width]
};

// dots[0] = grad . table[base], dots[1 + j] = grad . table[ids[j]]. Bytes: (k + 2) * width * element size.
struct DotTask {
  const void* grad;  // [width]
  const void* table;
  int64_t table_stride;
  int64_t width;
  int64_t base;
  const int32_t* ids;  // [k]
  int k;
  double* dots;  // [k + 1]
};

// out[c] = sum over entries of weights[e] * grad[positions[e]][c], for `columns` columns from `first` on; entries in order.
struct GatherTask {
  const void* grad;  // [.., width]
  int64_t width;
  const int64_t* positions;  // [entries]
  const double* weights;     // [entries]
  int64_t entries;
  int64_t first, columns;  // columns <= kGatherColumns
  void* out;               // the whole gradient row, [width]
};
constexpr int64_t kGatherColumns = 256;

// The gradient that a row's feedback hands on to its logits z, with x = z / T and p = e^(x - logsumexp) (design, section 3):
//   out_j = inverse_temperature * (p_j (grad_neg_entropy (ln p_j - neg_entropy) + grad_logsumexp) + [j = ids_i] grad_best_i)
// Bytes: vocab * element size read once, and as much written once if `out` is wanted. Logits of -inf get exactly 0.
struct LogitsGradTask {
  const void* logits;  // [vocab]
  int64_t vocab;
  double inverse_temperature;
  const int64_t* bans;  // [n_bans], ascending, unique
  int64_t n_bans;
  double logsumexp, neg_entropy, grad_logsumexp, grad_neg_entropy;
  const int32_t* ids;       // [k]
  const double* grad_best;  // [k], to x; 0 where there is no such entry
  int k;
  void* out;     // [vocab] of the logits' type, or null
  double along;  // result: sum out_j x_j
};

struct KernelTable {
  const char* name;
  void (*summarise[kDtypes])(SummaryTask&);
  void (*mix[kDtypes])(const MixTask&);
  void (*dot[kDtypes])(const DotTask&);
  void (*gather[kDtypes])(const GatherTask&);
  void (*logits_grad[kDtypes])(LogitsGradTask&);
};

extern const KernelTable kPortableKernels, kAvx2Kernels, kAvx512Kernels;

// The widest set that this machine has, or the one that SOFT_MASK_CPU=portable|avx2|avx512 names; throws where it has not.
const KernelTable& kernels();

}  // namespace soft_mask
