// The gradient of a row of logits from that of its feedback: one read, one write (csrc/cpu/kernels.h has the formula).
//
// A block a row. In powers of two: with y = log2 p, out = 2^y (a y + b), where a and b are the row's; then the k best are
// written once more, with their own part. A row without a gradient is filled with zeros and not read.
// Bytes: 2 V s; V s where only the temperature's gradient is wanted.
#include "logit_state.h"

namespace soft_mask::cuda {
namespace {

struct Shared {
  Cell<int> some;
  Cell<float> best[kMaxBest];  // to x of the k best
  Cell<double> along[kRowWarps];
};

// The row's curve over ln p, and the same over y.
struct Curve {
  double inverse, logsumexp, neg_entropy, to_entropy, to_logsumexp;

  SOFT_MASK_DEVICE double at(double log_p) const {
    return inverse * exp(log_p) * (to_entropy * (log_p - neg_entropy) + to_logsumexp);
  }
};

template <class T>
struct Pass {
  const LogitsParams& logits;
  float centre, bits, rest, a, b;
  float along = 0;  // sum of out_j y_j

  SOFT_MASK_DEVICE Pass(const LogitsParams& logits_, const Curve& curve) : logits(logits_) {
    // y = (z - centre) bits - rest: the difference first, so that large logits lose nothing.
    centre = float(curve.logsumexp / curve.inverse);
    bits = float(curve.inverse / kLn2);
    rest = float((curve.logsumexp - double(centre) * curve.inverse) / kLn2);
    a = float(curve.inverse * curve.to_entropy * kLn2);
    b = float(curve.inverse * (curve.to_logsumexp - curve.to_entropy * curve.neg_entropy));
  }

  SOFT_MASK_DEVICE float of(float z) {
    const float y = fmaxf((z - centre) * bits - rest, LogitState::kFloor);
    const float e = y > -126.0f ? exp2_fast(y) : 0.0f;  // exactly 0 for -inf
    const float g = e * (a * y + b);
    along += g * y;
    return g;
  }

  SOFT_MASK_DEVICE bool banned(int id) const {
    bool found = false;
    for (int i = 0; i < logits.n_bans; ++i) found |= logits.bans[i] == id;
    return found;
  }

  SOFT_MASK_DEVICE void loose(const T* z, T* out, int first, int last) {
    for (int id = first + thread_index(); id < last; id += kRowThreads) {
      const float g = of(banned(id) ? -kInfinity : to_float(read_once(z + id)));
      if (out == nullptr) continue;
      T x;
      from_float(g, x);
      write(out + id, x);
    }
  }

  SOFT_MASK_DEVICE void row(const T* z, T* out) {
    const RowCut cut = RowCut::of(z, logits.vocab);
    if ((reinterpret_cast<uintptr_t>(z) - reinterpret_cast<uintptr_t>(out)) % kVectorBytes != 0 && out != nullptr) {
      return loose(z, out, 0, logits.vocab);
    }
    loose(z, out, 0, cut.head);
    int ban = 0;
#pragma unroll 2
    for (int v = thread_index(); v < cut.vectors; v += kRowThreads) {
      const int first = cut.head + v * kPerVector<T>;
      Vector x = read_vector_once(z + first);
      while (ban < logits.n_bans && logits.bans[ban] < first) ++ban;
      for (int i = ban; i < logits.n_bans && logits.bans[i] < first + kPerVector<T>; ++i) strike<T>(x, logits.bans[i] - first);
      float g[kPerVector<T>];
#pragma unroll
      for (int i = 0; i < kPerVector<T>; ++i) g[i] = of(element<T>(x, i));
      if (out != nullptr) write_vector_once(out + first, packed<T>(g));
    }
    loose(z, out, cut.tail, logits.vocab);
  }
};

template <class T>
SOFT_MASK_DEVICE void fill_with_zeros(T* out, int vocab) {
  const RowCut cut = RowCut::of(out, vocab);
  const T zero{};
  for (int i = thread_index(); i < cut.head; i += kRowThreads) write(out + i, zero);
  for (int v = thread_index(); v < cut.vectors; v += kRowThreads) write_vector_once(out + cut.head + v * kPerVector<T>, Vector{});
  for (int i = cut.tail + thread_index(); i < vocab; i += kRowThreads) write(out + i, zero);
}

template <class T>
SOFT_MASK_KERNEL(kRowThreads, kRowBlocks) logits_grad_kernel(SOFT_MASK_PARAMS LogitsGradParams p) {
  auto& shared = shared_memory<Shared>();
  const int64_t row = block_index();
  const T* z = logits_row<T>(p.logits, row);
  T* out = p.out == nullptr ? nullptr : static_cast<T*>(p.out) + row * p.logits.vocab;
  const float neg_entropy = read(p.neg_entropy + row);
  const Curve curve{inverse_temperature(p.logits), read(p.logsumexp + row), neg_entropy, read(p.grad_neg_entropy + row),
                    read(p.grad_logsumexp + row)};
  if (warp_index() == 0) {
    float mean = 0;
    for (int j = lane_index(); j < p.k; j += kWarp) mean += read(p.probs + row * p.k + j) * read(p.grad_probs + row * p.k + j);
    mean = warp_sum(mean);
    bool some = curve.to_entropy != 0 || curve.to_logsumexp != 0;
    for (int j = lane_index(); j < p.k; j += kWarp) {
      const float best = read(p.probs + row * p.k + j) * (read(p.grad_probs + row * p.k + j) - mean);
      shared.best[j].set(best);
      some |= best != 0;
    }
    some = any(some) && neg_entropy != -kInfinity;
    if (lane_index() == 0) shared.some.set(some);
  }
  barrier();
  if (!shared.some.get()) {
    if (out != nullptr) fill_with_zeros(out, p.logits.vocab);
    if (thread_index() == 0) write(p.along + row, 0.0);
    return;
  }
  Pass<T> pass(p.logits, curve);
  pass.row(z, out);
  const double along = warp_sum(double(pass.along)) * kLn2;
  if (lane_index() == 0) shared.along[warp_index()].set(along);
  barrier();
  if (warp_index() != 0) return;
  double total = lane_index() < kRowWarps ? shared.along[lane_index()].get() : 0.0;
  for (int j = lane_index(); j < p.k; j += kWarp) {
    const float best = shared.best[j].get();
    if (best == 0) continue;
    const int32_t id = read(p.ids + row * p.k + j);
    const double log_p = double(to_float(read_once(z + id))) * curve.inverse - curve.logsumexp;
    const double more = double(best) * curve.inverse;
    total += more * log_p;
    if (out == nullptr) continue;
    T x;
    from_float(float(curve.at(log_p) + more), x);
    write(out + id, x);
  }
  // x_j = ln p_j + logsumexp, and the out_j sum to grad_logsumexp / T.
  total = warp_sum(total) + curve.logsumexp * curve.to_logsumexp * curve.inverse;
  if (lane_index() == 0) write(p.along + row, total);
}

struct SumShared {
  Cell<double> sums[kSumWarps];
};

SOFT_MASK_KERNEL(kSumThreads, 1) sum_temperature_kernel(SOFT_MASK_PARAMS LogitsGradParams p) {
  auto& shared = shared_memory<SumShared>();
  double sum = 0;
  for (int64_t i = thread_index(); i < p.rows; i += kSumThreads) sum -= read(p.along + i);
  sum = warp_sum(sum);
  if (lane_index() == 0) shared.sums[warp_index()].set(sum);
  barrier();
  if (warp_index() != 0) return;
  sum = warp_sum(shared.sums[lane_index()].get());
  if (lane_index() == 0) write(p.grad_temperature, sum);
}

constexpr void (*kKernels[3])(LogitsGradParams) = {logits_grad_kernel<float>, logits_grad_kernel<BFloat16>, logits_grad_kernel<Half>};

}  // namespace

void logits_grad(const LogitsGradParams& p, const Launch& where) {
  launch("logits_grad", of_dtype(p.logits.dtype, kKernels), p.rows, kRowThreads, p, where);
  launch("sum_temperature", sum_temperature_kernel, 1, kSumThreads, p, where);
}

}  // namespace soft_mask::cuda
