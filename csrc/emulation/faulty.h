// Kernels that are each wrong in one way, to show that the emulated GPU says so.
#pragma once

#include "../cuda/device.h"

namespace soft_mask::cuda::faulty {

struct Params {
  const float* in;  // [64]
  float* out;       // [64]
  int32_t* ticket;  // [1]
};

constexpr int kThreads = 64, kBlocks = 2;

inline int64_t place() { return block_index() * kThreads + thread_index(); }

inline void right(Params p) {
  if (block_index() == 0) write(p.out + thread_index(), read(p.in + thread_index()));
}
inline void reads_out_of_bounds(Params p) {
  if (block_index() == 0) write(p.out + thread_index(), read(p.in + thread_index() + 1));
}
inline void writes_out_of_bounds(Params p) {
  if (block_index() == 0) write(p.out + thread_index() - 1, 0.0f);
}
inline void writes_an_input(Params p) {
  if (place() == 0) write(const_cast<float*>(p.in), 0.0f);
}
inline void misaligned(Params p) {
  if (place() == 0) write_vector(p.out + 1, Vector{});
}
inline void divergent_barrier(Params) {
  if (thread_index() < kWarp) barrier();
}
inline void absent_lanes(Params) {
  if (lane_index() != 3) ballot(true);
}
inline void different_exchanges(Params) {
  if (lane_index() < 16) {
    ballot(true);
  } else {
    shuffle(1, 0);
  }
}
inline void race_between_blocks(Params p) { write(p.out + thread_index(), 1.0f); }
inline void race_in_a_block(Params p) {
  if (block_index() == 0) write(p.out + thread_index() / 2, 1.0f);
}
struct Shared {
  Cell<int> cells[kThreads];
};
inline void shared_before_it_is_set(Params) { shared_memory<Shared>().cells[thread_index()].get(); }
inline void shared_without_a_barrier(Params) {
  auto& cells = shared_memory<Shared>().cells;
  cells[thread_index()].set(1);
  cells[kThreads - 1 - thread_index()].get();
}
inline void shared_set_by_all(Params) { shared_memory<Shared>().cells[0].set(thread_index()); }
// What the last block reads was published but not fenced.
inline void no_fence(Params p) {
  if (thread_index() != 0) return;
  publish(p.out + block_index(), 1.0f);
  if (atomic_add(p.ticket, 1) < kBlocks - 1) return;
  consume(p.out + 1 - block_index());
  atomic_set(p.ticket, 0);
}
// Whoever reads did not wait for the other's count.
inline void no_ticket(Params p) {
  if (thread_index() != 0) return;
  publish(p.out + block_index(), 1.0f);
  fence();
  consume(p.out + 1 - block_index());
}
inline void ticket_left(Params p) {
  if (thread_index() == 0) atomic_add(p.ticket, 1);
}

struct Named {
  const char* name;
  void (*kernel)(Params);
};
constexpr Named kAll[] = {
    {"right", right},
    {"reads_out_of_bounds", reads_out_of_bounds},
    {"writes_out_of_bounds", writes_out_of_bounds},
    {"writes_an_input", writes_an_input},
    {"misaligned", misaligned},
    {"divergent_barrier", divergent_barrier},
    {"absent_lanes", absent_lanes},
    {"different_exchanges", different_exchanges},
    {"race_between_blocks", race_between_blocks},
    {"race_in_a_block", race_in_a_block},
    {"shared_before_it_is_set", shared_before_it_is_set},
    {"shared_without_a_barrier", shared_without_a_barrier},
    {"shared_set_by_all", shared_set_by_all},
    {"no_fence", no_fence},
    {"no_ticket", no_ticket},
    {"ticket_left", ticket_left},
};

}  // namespace soft_mask::cuda::faulty
