// Torch tensors as what the kernels take: bits and strides. Errors are words about the argument.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../common/dtypes.h"

namespace soft_mask {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream words;
  words << "soft_mask: ";
  (words << ... << parts);
  throw std::runtime_error(words.str());
}

template <class... Parts>
void need(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

inline Dtype dtype_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::Double: return Dtype::f64;
    default: fail(name, " must be float32, bfloat16, float16 or float64");
  }
}

inline void need_dim(const Tensor& x, int64_t dim, const char* name) {
  need(x.dim() == dim, name, " must have ", dim, " dimensions, got ", x.dim());
}

inline void need_type(const Tensor& x, ScalarType type, const char* name, const char* words) {
  need(x.scalar_type() == type, name, " must be ", words);
}

// Reads element i of a float32 or float64 tensor's data.
struct Reals {
  const void* data;
  bool wide;

  static Reals of(const Tensor& x, const char* name) {
    const auto type = x.scalar_type();
    need(type == ScalarType::Float || type == ScalarType::Double, name, " must be float32 or float64");
    need(x.is_contiguous(), name, " must be contiguous");
    return {x.const_data_ptr(), type == ScalarType::Double};
  }
  double operator[](int64_t i) const {
    return wide ? static_cast<const double*>(data)[i] : static_cast<const float*>(data)[i];
  }
};

struct MutableReals {
  void* data;
  bool wide;

  static MutableReals of(Tensor& x) { return {x.mutable_data_ptr(), x.scalar_type() == ScalarType::Double}; }
  void set(int64_t i, double value) const {
    if (wide) {
      static_cast<double*>(data)[i] = value;
    } else {
      static_cast<float*>(data)[i] = float(value);
    }
  }
};

}  // namespace soft_mask
