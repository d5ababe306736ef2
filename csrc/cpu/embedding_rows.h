// The rows of the embedding: mixing them forward, and what backward asks of them. Sums in float (double for double), one
// rounding at the store.
#pragma once

#include "../common/dtypes.h"
#include "kernels.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

constexpr int64_t kColumns = 64;  // of a sum in registers

// Columns [first, first + n) of a mixed row, one by one.
template <class T>
inline void mix_columns(const MixTask& task, int64_t first, int64_t n) {
  using Real = typename Accumulator<T>::type;
  const T* table = static_cast<const T*>(task.table);
  for (int64_t c = first; c < first + n; ++c) {
    Real sum = Real(task.keep) * widen(table[task.base * task.table_stride + c]);
    for (int j = 0; j < task.k; ++j) {
      if (task.weights[j] != 0) sum += Real(task.weights[j]) * widen(table[task.ids[j] * task.table_stride + c]);
    }
    narrow(sum, static_cast<T*>(task.out)[c]);
  }
}

template <class T>
void mix_row(const MixTask& task) {
  constexpr int kVectors = kVectorBytes == 64 ? 8 : 4;
  constexpr int kRun = kVectors * kLanes;
  const T* table = static_cast<const T*>(task.table);
  int64_t first = 0;
  for (; first + kRun <= task.width; first += kRun) {
    const T* base = table + task.base * task.table_stride + first;
    VectorF sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = splat(float(task.keep)) * load(base + v * kLanes);
    for (int j = 0; j < task.k; ++j) {
      if (task.weights[j] == 0) continue;
      const T* row = table + task.ids[j] * task.table_stride + first;
      // Rows lie anywhere: the next one is called for while this one is added.
      const T* next = j + 1 < task.k ? table + task.ids[j + 1] * task.table_stride + first
                                     : table + task.ids[0] * task.table_stride + first + kRun;
      for (int byte = 0; byte < kRun * int(sizeof(T)); byte += 64) __builtin_prefetch(reinterpret_cast<const char*>(next) + byte);
      const VectorF weight = splat(float(task.weights[j]));
      for (int v = 0; v < kVectors; ++v) sum[v] += weight * load(row + v * kLanes);
    }
    for (int v = 0; v < kVectors; ++v) store(sum[v], static_cast<T*>(task.out) + first + v * kLanes);
  }
  mix_columns<T>(task, first, task.width - first);
}

template <>
inline void mix_row<double>(const MixTask& task) {
  mix_columns<double>(task, 0, task.width);
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
