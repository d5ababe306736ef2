// The tokens of a call and which of their rows are to be mixed.
#pragma once

#include <optional>
#include <vector>

#include "tensors.h"

namespace soft_mask {

struct Tokens {
  const int64_t* ids;  // [count]
  int64_t batch, length, count;
  std::vector<int64_t> mixed;  // positions to be mixed, ascending
  std::vector<int64_t> plain;  // the others

  Tokens(const Tensor& input_ids, const std::optional<Tensor>& where, int64_t mask_token_id, int64_t vocab) {
    need_dim(input_ids, 2, "input_ids");
    need_type(input_ids, ScalarType::Long, "input_ids", "int64");
    need(input_ids.is_contiguous(), "input_ids must be contiguous");
    ids = static_cast<const int64_t*>(input_ids.const_data_ptr());
    batch = input_ids.size(0);
    length = input_ids.size(1);
    count = batch * length;
    const bool* chosen = nullptr;
    if (where.has_value()) {
      need_type(*where, ScalarType::Bool, "where", "bool");
      need(where->is_contiguous() && where->numel() == count, "where must be contiguous and shaped like input_ids");
      chosen = static_cast<const bool*>(where->const_data_ptr());
    }
    for (int64_t i = 0; i < count; ++i) {
      need(0 <= ids[i] && ids[i] < vocab, "input_ids: id ", ids[i], " at row ", i, " (flattened) has no row in the embedding of ",
           vocab, " rows");
      (chosen ? chosen[i] : ids[i] == mask_token_id) ? mixed.push_back(i) : plain.push_back(i);
    }
  }

  // The row of [batch, length] whose logits or feedback belong to `position`.
  int64_t source(int64_t position, int64_t shift) const {
    return shift != 0 && position % length != 0 ? position - 1 : position;
  }
};

// The embedding's rows as the kernels take them.
struct Table {
  const void* data;
  int64_t rows, width, stride;
  Dtype dtype;
  int64_t row_bytes;

  explicit Table(const Tensor& embedding) {
    need_dim(embedding, 2, "embedding");
    need(embedding.size(1) <= 1 || embedding.stride(1) == 1, "embedding must have neighbouring columns");
    data = embedding.const_data_ptr();
    rows = embedding.size(0);
    width = embedding.size(1);
    stride = embedding.stride(0);
    dtype = dtype_of(embedding, "embedding");
    row_bytes = width * kDtypeBytes[int(dtype)];
  }
  const void* row(int64_t id) const {
    return static_cast<const char*>(data) + id * stride * kDtypeBytes[int(dtype)];
  }

  // Ask the caches for a few rows that are needed soon; of many rows, mixing itself asks in time.
  void call_for(const int32_t* ids, int k) const {
    constexpr int kFew = 4;
    for (int j = 0; j < k && j < kFew; ++j) {
      const char* start = static_cast<const char*>(row(ids[j]));
      for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(start + byte, 0, 2);
    }
  }
};

}  // namespace soft_mask
