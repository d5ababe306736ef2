// The k best (value, id) that a warp has seen, best first: entry j lies in lane j % 32, word j / 32. Equal values go by id,
// whatever the order in which they come.
#pragma once

#include "elements.h"

namespace soft_mask::cuda {

// Unsigned numbers in the order of the floats; -0 is 0. NaN may lie anywhere.
SOFT_MASK_DEVICE uint32_t ordered(float x) {
  const uint32_t bits = bits_of(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The k-th largest of the lanes' keys, k <= 32.
SOFT_MASK_DEVICE uint32_t kth_largest(uint32_t key, int k) {
  for (int i = 1; i < k; ++i) {
    const uint32_t best = reduce_max(key);
    const int holder = lowest_bit(ballot(key == best));
    if (lane_index() == holder) key = 0;
  }
  return reduce_max(key);
}

template <int kWords>
struct WarpList {
  float value[kWords];  // -inf: none
  int32_t id[kWords];
  int k;
  float last_value = -kInfinity;  // the k-th
  int32_t last_id = -1;

  SOFT_MASK_DEVICE explicit WarpList(int k_) : k(k_) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      value[w] = -kInfinity;
      id[w] = -1;
    }
  }

  SOFT_MASK_DEVICE bool takes(float v, int32_t i) const { return v > last_value || (v == last_value && i < last_id); }

  // One entry, the same in all lanes.
  SOFT_MASK_DEVICE void insert(float v, int32_t i) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int at = count_bits(ballot(value[w] > v || (value[w] == v && id[w] < i)));
      const float before = shuffle_up(value[w]);
      const int32_t id_before = shuffle_up(id[w]);
      float out = v;
      int32_t id_out = i;
      if (w + 1 < kWords && at < kWarp) {
        out = shuffle(value[w], kWarp - 1);
        id_out = shuffle(id[w], kWarp - 1);
      }
      if (lane_index() > at) {
        value[w] = before;
        id[w] = id_before;
      } else if (lane_index() == at) {
        value[w] = v;
        id[w] = i;
      }
      v = out;
      i = id_out;
    }
    last_value = shuffle(value[kWords - 1], (k - 1) % kWarp);  // kWords is as few as hold k
    last_id = shuffle(id[kWords - 1], (k - 1) % kWarp);
  }

  // An entry of each lane, where `mine`: the best first, so that no more than k are inserted.
  SOFT_MASK_DEVICE void offer(float v, int32_t i, bool mine) {
    for (;;) {
      mine = mine && takes(v, i);
      if (!any(mine)) return;
      const uint32_t key = mine ? ordered(v) : 0;
      const uint32_t best = reduce_max(key);
      const int from = lowest_bit(ballot(mine && key == best));
      insert(shuffle(v, from), shuffle(i, from));
      mine = mine && lane_index() != from;
    }
  }
};

}  // namespace soft_mask::cuda
