// The rows of the embedding: mixing them forward, and what backward asks of them. Sums in float (double for double), one
// rounding at the store; short runs of columns keep the sums in registers.
#pragma once

#include "../common/dtypes.h"
#include "kernels.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

constexpr int64_t kColumns = 64;

template <class T>
void mix_row(const MixTask& task) {
  using Real = typename Accumulator<T>::type;
  const T* table = static_cast<const T*>(task.table);
  const T* base = table + task.base * task.table_stride;
  T* out = static_cast<T*>(task.out);
  for (int64_t first = 0; first < task.width; first += kColumns) {
    const int n = int(task.width - first < kColumns ? task.width - first : kColumns);
    Real sum[kColumns];
    for (int c = 0; c < n; ++c) sum[c] = Real(task.keep) * widen(base[first + c]);
    for (int j = 0; j < task.k; ++j) {
      const Real weight = Real(task.weights[j]);
      if (weight == Real(0)) continue;
      const T* row = table + int64_t(task.ids[j]) * task.table_stride + first;
      for (int c = 0; c < n; ++c) sum[c] += weight * widen(row[c]);
    }
    for (int c = 0; c < n; ++c) narrow(sum[c], out[first + c]);
  }
}

template <class T>
double dot(const T* a, const T* b, int64_t width) {
  using Real = typename Accumulator<T>::type;
  Real lanes[kColumns] = {};
  int64_t c = 0;
  for (; c + kColumns <= width; c += kColumns) {
    for (int i = 0; i < kColumns; ++i) lanes[i] += widen(a[c + i]) * widen(b[c + i]);
  }
  double sum = 0;
  for (; c < width; ++c) sum += double(widen(a[c])) * double(widen(b[c]));
  for (int i = 0; i < kColumns; ++i) sum += lanes[i];
  return sum;
}

template <class T>
void dot_row(const DotTask& task) {
  const T* grad = static_cast<const T*>(task.grad);
  const T* table = static_cast<const T*>(task.table);
  task.dots[0] = dot(grad, table + task.base * task.table_stride, task.width);
  for (int j = 0; j < task.k; ++j) {
    task.dots[1 + j] = dot(grad, table + int64_t(task.ids[j]) * task.table_stride, task.width);
  }
}

template <class T>
void gather_rows(const GatherTask& task) {
  using Real = typename Accumulator<T>::type;
  const T* grad = static_cast<const T*>(task.grad) + task.first;
  T* out = static_cast<T*>(task.out) + task.first;
  const int n = int(task.columns);
  Real sum[kGatherColumns] = {};
  for (int64_t e = 0; e < task.entries; ++e) {
    const T* row = grad + task.positions[e] * task.width;
    const Real weight = Real(task.weights[e]);
    for (int c = 0; c < n; ++c) sum[c] += weight * widen(row[c]);
  }
  for (int c = 0; c < n; ++c) narrow(sum[c], out[c]);
}

}  // namespace soft_mask::SOFT_MASK_ISA
