// What the kernels take and how they are launched: raw pointers, sizes and strides. Knows neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/dtypes.h"
#include "traits.h"

namespace soft_mask::cuda {

// Where a kernel runs.
struct Launch {
  void* stream;
  int device;
  int processors;  // streaming multiprocessors
  int threads;     // that one of them holds at a time
};

// What a kernel found wrong with the data, by the first row that has it: ~row, so that zeros mean nothing was found.
enum class Fault : int { not_finite = 0, all_banned = 1, input_ids = 2, feedback_ids = 3, predicted_ids = 4, temperature = 5 };
constexpr int kFaults = 6;

// The gate's scale, steepness and centre: on the device, or, where `data` is null, known on the host.
struct GateParams {
  const float* data;  // [3]
  float values[3];
};

struct LogitsParams {
  const void* data;      // [B, L, V]
  Dtype dtype;           // float32, bfloat16 or float16
  int64_t batch_stride;  // elements
  int64_t row_stride;
  int64_t length;        // L
  int32_t vocab;         // V
  const double* temperature;  // [1] on the device, or null where it is known on the host:
  double inverse_temperature;
  int32_t n_bans;
  int32_t bans[kMaxBans];     // ascending
};

// The tokens of a call; rows are positions of [B, L], flattened.
struct TokenParams {
  const int64_t* ids;    // [N]
  const uint8_t* where;  // [N] which are mixed, or null: those that hold mask_token_id
  int64_t count, length, mask_token_id;
  int shift;             // position t reads row max(t - 1, 0)
};

struct TableParams {
  const void* data;  // [rows, width]
  Dtype dtype;
  int64_t rows, width, stride;  // elements
};

// One read of each row of logits, and the mixing of what it says. Bytes of a mixed row: V s + (k + 2) d s; plain: 2 d s.
struct SummariseParams {
  LogitsParams logits;
  int k;
  int64_t rows;
  // results, one a row
  int32_t* ids;        // [rows, k]
  float* probs;        // [rows, k]
  float* neg_entropy;  // [rows]
  float* logsumexp;    // [rows]
  // soft_mask_embed only (out not null): rows are positions
  TokenParams tokens;
  TableParams table;
  GateParams gate;
  void* out;          // [rows, width] of the table's type
  // rows over several blocks, merged by the last of them
  int splits;
  float* partials;    // [rows, splits, partial_floats(k)]
  int32_t* tickets;   // [rows], zero before and after
  uint64_t* faults;   // [kFaults] or null
};
constexpr int partial_floats(int k) { return 3 + 2 * k; }  // max, sum, weighted; values; ids

struct FeedbackParams {
  const int32_t* ids;        // [N, k]
  const float* probs;        // [N, k]
  const float* neg_entropy;  // [N]
  int k;
  GateParams gate;
};

struct MixParams {
  TokenParams tokens;
  FeedbackParams feedback;
  TableParams table;
  void* out;         // [N, width]
  uint64_t* faults;  // [kFaults] or null
};

// What each mixed position's gradient says of its own feedback and of the gate.
struct DotsParams {
  TokenParams tokens;
  FeedbackParams feedback;
  TableParams table;
  const void* grad;         // [N, width] of the table's type
  float* grad_probs;        // [N, k]
  float* grad_neg_entropy;  // [N]
  float* grad_lambda;       // [N] scratch
  float* grad_gate;         // [3]
  uint64_t* faults;
};

// Who adds what to which row of the embedding's gradient. Entry e = position * (k + 1) + slot: slot 0 is the position's own
// token, slot 1 + j its j-th prediction. Sorted by row, so that each row of the gradient is written once, without atomics.
struct EntriesParams {
  TokenParams tokens;
  FeedbackParams feedback;
  int64_t rows;      // of the embedding
  int32_t* start;    // [rows + 1] counts, then the start of each row's entries
  int32_t* next;     // [rows] where the next entry of a row goes
  float* weights;    // [N (k + 1)]; 0 where there is no entry
  int32_t* order;    // [N (k + 1)] entries, by row
  int32_t* keys;     // [N (k + 1)] each entry's row, or `rows` where there is none; or null
  uint64_t* faults;
};

struct GatherParams {
  EntriesParams entries;
  const void* grad;   // [N, width]
  Dtype dtype;
  int64_t width;
  int64_t chunk;      // a row with more entries than this is heavy: summed chunk by chunk first
  int64_t chunks;
  float* partials;    // [chunks, 2, width]: of the heavy rows that hold a chunk's first and its last entry
  const int64_t* chosen;  // [n] rows to write, or null: all
  int64_t n;
  void* out;          // [n, width]
};

// The gradient of logits: one read and one write of a row (csrc/cpu/kernels.h has the formula).
struct LogitsGradParams {
  LogitsParams logits;
  int k;
  int64_t rows;
  const int32_t* ids;        // [rows, k]
  const float* probs;        // [rows, k]
  const float* neg_entropy;  // [rows]
  const float* logsumexp;    // [rows]
  const float* grad_probs;
  const float* grad_neg_entropy;
  const float* grad_logsumexp;
  void* out;                 // [rows, V] contiguous, or null
  double* along;             // [rows] scratch: each row's sum of out_j x_j
  double* grad_temperature;  // [1]
};

void summarise(const SummariseParams&, const Launch&);
int splits_for(int64_t rows, int64_t row_bytes, const Launch&);
void mix(const MixParams&, const Launch&);
void dots(const DotsParams&, const Launch&);
void count_entries(const EntriesParams&, const Launch&);   // start, weights, keys; start holds zeros before
void order_entries(const EntriesParams&, const Launch&);   // order, in no certain order within a row
void gather_entries(const GatherParams&, const Launch&);
void logits_grad(const LogitsGradParams&, const Launch&);

// Copies to the host, waiting for all that was launched before.
void read_back(void* to, const void* from, int64_t bytes, const Launch&);
bool capturing(const Launch&);  // into a CUDA graph
Launch launch_on(int device, void* stream);

}  // namespace soft_mask::cuda
