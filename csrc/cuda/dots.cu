// What the gradient g of each mixed row says of its feedback and of the gate (design, section 3): d lambda = g . (sum_j probs_j
// E[ids_j] - E[base]), d probs_j = lambda (g . E[ids_j]). A block a position, a warp a dot product; then one block sums the
// gate's three numbers, always in the same order. Bytes of a mixed row: (k + 2) d s and 8 k.
#include "embedding_rows.h"

namespace soft_mask::cuda {
namespace {

struct Shared {
  Cell<int> open;
  Cell<int64_t> token;
  Cell<float> neg_entropy;
  Cell<float> dots[1 + kMaxBest];
};

template <class T>
SOFT_MASK_DEVICE float dot(const T* a, const T* b, int64_t width) {
  float sum = 0;
  if ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | uintptr_t(width * int64_t(sizeof(T)))) % kVectorBytes == 0) {
#pragma unroll 2
    for (int64_t c = int64_t(lane_index()) * kPerVector<T>; c < width; c += kWarp * kPerVector<T>) {
      const Vector x = read_vector(a + c), y = read_vector(b + c);
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i) sum += element<T>(x, i) * element<T>(y, i);
    }
  } else {
    for (int64_t c = lane_index(); c < width; c += kWarp) sum += to_float(read(a + c)) * to_float(read(b + c));
  }
  return warp_sum(sum);
}

template <class T>
SOFT_MASK_KERNEL(kMixThreads, 8) dots_kernel(SOFT_MASK_PARAMS DotsParams p) {
  auto& shared = shared_memory<Shared>();
  const int64_t position = block_index(), source = source_of(p.tokens, position);
  const int k = p.feedback.k;
  if (thread_index() == 0) {
    const Token token = Token::at(p.tokens, p.table.rows, position);
    const float neg_entropy = token.mixed && token.known ? read(p.feedback.neg_entropy + source) : -kInfinity;
    shared.token.set(token.id);
    shared.neg_entropy.set(neg_entropy);
    shared.open.set(Gate<float>::open(neg_entropy));
  }
  barrier();
  if (!shared.open.get()) {
    if (thread_index() < k) write(p.grad_probs + position * k + thread_index(), 0.0f);
    if (thread_index() == 0) {
      write(p.grad_neg_entropy + position, 0.0f);
      write(p.grad_lambda + position, 0.0f);
    }
    return;
  }
  const T* grad = static_cast<const T*>(p.grad) + position * p.table.width;
  const T* rows = static_cast<const T*>(p.table.data);
  for (int j = warp_index(); j <= k; j += kMixWarps) {
    const int64_t id = j == 0 ? shared.token.get() : read(p.feedback.ids + source * k + j - 1);
    const bool known = 0 <= id && id < p.table.rows;
    if (!known && lane_index() == 0) report(p.faults, Fault::feedback_ids, position);
    const float along = known ? dot(grad, rows + id * p.table.stride, p.table.width) : float_of(0x7fc00000u);
    if (lane_index() == 0) shared.dots[j].set(along);
  }
  barrier();
  if (warp_index() != 0) return;
  const auto gate = read_gate(p.feedback.gate);
  const float neg_entropy = shared.neg_entropy.get(), lambda = gate.lambda(neg_entropy);
  float along = 0;
  for (int j = lane_index(); j < k; j += kWarp) {
    const float one = shared.dots[1 + j].get();
    along += read(p.feedback.probs + source * k + j) * one;
    write(p.grad_probs + position * k + j, lambda * one);
  }
  along = warp_sum(along) - shared.dots[0].get();
  if (lane_index() != 0) return;
  write(p.grad_neg_entropy + position, along * gate.slopes(neg_entropy).neg_entropy);
  write(p.grad_lambda + position, along);
}

struct SumShared {
  Cell<double> sums[3][kSumWarps];
};

SOFT_MASK_KERNEL(kSumThreads, 1) sum_gate_kernel(SOFT_MASK_PARAMS DotsParams p) {
  auto& shared = shared_memory<SumShared>();
  const auto gate = read_gate(p.feedback.gate);
  double sums[3] = {0, 0, 0};
  for (int64_t i = thread_index(); i < p.tokens.count; i += kSumThreads) {
    const double along = read(p.grad_lambda + i);
    if (along == 0) continue;
    const auto slopes = gate.slopes(read(p.feedback.neg_entropy + source_of(p.tokens, i)));
    sums[0] += along * slopes.scale;
    sums[1] += along * slopes.steepness;
    sums[2] += along * slopes.centre;
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const double sum = warp_sum(sums[i]);
    if (lane_index() == 0) shared.sums[i][warp_index()].set(sum);
  }
  barrier();
  if (warp_index() != 0) return;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const double sum = warp_sum(shared.sums[i][lane_index()].get());
    if (lane_index() == 0) write(p.grad_gate + i, float(sum));
  }
}

constexpr void (*kKernels[3])(DotsParams) = {dots_kernel<float>, dots_kernel<BFloat16>, dots_kernel<Half>};

}  // namespace

void dots(const DotsParams& p, const Launch& where) {
  launch("dots", of_dtype(p.table.dtype, kKernels), p.tokens.count, kMixThreads, p, where);
  launch("sum_gate", sum_gate_kernel, 1, kSumThreads, p, where);
}

}  // namespace soft_mask::cuda
