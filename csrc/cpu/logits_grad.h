// The gradient into a row of logits: one read, one write (LogitsGradTask has the formula).
//
// In powers of two: with y = log2 p, out = 2^y (a y + b), where a and b are the row's. The k best have their own part added
// after the row is written, from the logit again in double, so that they too are rounded once.
#pragma once

#include <cmath>

#include "blocks.h"
#include "kernels.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

// The row's curve out(y) = 2^y (a y + b) over y = log2 p.
struct GradCurve {
  double a, b;
  explicit GradCurve(const LogitsGradTask& task)
      : a(task.inverse_temperature * task.grad_neg_entropy * kLn2),
        b(task.inverse_temperature * (task.grad_logsumexp - task.grad_neg_entropy * task.neg_entropy)) {}
  inline double at(double log_p) const { return std::exp(log_p) * (a * (log_p / kLn2) + b); }
};

template <class T>
inline double bulk(const LogitsGradTask& task, const GradCurve& curve) {
  // y = (z - centre) * bits - rest: the difference first, so that large logits lose nothing.
  const float centre = float(task.logsumexp / task.inverse_temperature);
  const double rest = (task.logsumexp - double(centre) * task.inverse_temperature) / kLn2;
  const VectorF m = splat(centre), bits = splat(float(task.inverse_temperature / kLn2)), less = splat(float(rest));
  const VectorF a = splat(float(curve.a)), b = splat(float(curve.b)), floor = splat(-126.0f);
  Blocks<T> blocks(task);
  T* out = static_cast<T*>(task.out);
  alignas(64) T buffer[kBlock];
  double along = 0;
  for (int64_t first = 0; first < task.vocab; first += kBlock) {
    const T* z = blocks.at(first);
    T* to = out != nullptr && blocks.filled == blocks.size ? out + first : buffer;
    VectorF total = {};
    for (int i = 0; i < blocks.size; i += kLanes) {
      const VectorF y = greater_of(floor, (load(z + i) - m) * bits - less);
      const VectorF e = (VectorF)((VectorI)exp2_of(y) & (y > floor));  // exactly 0 for -inf
      const VectorF g = e * (a * y + b);
      total += g * y;
      store(g, to + i);
    }
    if (out != nullptr && to == buffer) std::memcpy(out + first, buffer, size_t(blocks.filled) * sizeof(T));
    for (int lane = 0; lane < kLanes; ++lane) along += double(total[lane]) * kLn2;
  }
  return along;
}

template <>
inline double bulk<double>(const LogitsGradTask& task, const GradCurve& curve) {
  const double* z = static_cast<const double*>(task.logits);
  double* out = static_cast<double*>(task.out);
  double along = 0;
  int64_t ban = 0;
  for (int64_t i = 0; i < task.vocab; ++i) {
    const bool banned = ban < task.n_bans && task.bans[ban] == i;
    if (banned) ++ban;
    const bool some = !banned && z[i] > -std::numeric_limits<double>::infinity();
    const double log_p = some ? z[i] * task.inverse_temperature - task.logsumexp : 0.0;
    const double g = some ? curve.at(log_p) : 0.0;
    along += g * log_p;
    if (out != nullptr) out[i] = g;
  }
  return along;
}

template <class T>
void logits_grad(LogitsGradTask& task) {
  const GradCurve curve(task);
  double along = bulk<T>(task, curve);  // sum out_j ln p_j
  for (int j = 0; j < task.k; ++j) {
    if (task.grad_best[j] == 0) continue;
    const T z = static_cast<const T*>(task.logits)[task.ids[j]];
    const double log_p = double(widen(z)) * task.inverse_temperature - task.logsumexp;
    const double best = task.grad_best[j] * task.inverse_temperature;
    along += best * log_p;
    if (task.out == nullptr) continue;
    using Real = typename Accumulator<T>::type;
    narrow(Real(curve.at(log_p) + best), static_cast<T*>(task.out)[task.ids[j]]);
  }
  // x_j = ln p_j + logsumexp, and the out_j sum to grad_logsumexp / T.
  task.along = along + task.logsumexp * task.grad_logsumexp * task.inverse_temperature;
}

}  // namespace soft_mask::SOFT_MASK_ISA
