// The words of csrc/cuda/device.h on the emulated GPU. Included by it alone.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "machine.h"

#define SOFT_MASK_DEVICE inline
#define SOFT_MASK_KERNEL(threads, blocks) void
#define SOFT_MASK_PARAMS const

namespace soft_mask::cuda {

namespace detail {
using emulation::Access;
using emulation::Exchange;
using emulation::Machine;

// A place in the source: accesses of a warp's lanes from one place are one load or store of the warp.
struct Place {
  const char* file;
  int line;
};
#define SOFT_MASK_HERE detail::Place here = {__builtin_FILE(), __builtin_LINE()}

inline void touch(const void* address, int bytes, Access access, Place here) {
  Machine::get().touch(address, bytes, access, Machine::get().place_of(here.file, here.line));
}
template <class T>
T loaded(const void* from, Access access, Place here) {
  touch(from, int(sizeof(T)), access, here);
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
template <class T>
void stored(void* to, const T& x, Access access, Place here) {
  touch(to, int(sizeof(T)), access, here);
  std::memcpy(to, &x, sizeof x);
}
template <class T>
T exchanged(Exchange kind, T x, int argument = 0) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  bits = Machine::get().exchange(kind, bits, argument);
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
}  // namespace detail

inline int thread_index() { return detail::Machine::get().thread().index; }
inline int64_t block_index() { return detail::Machine::get().thread().block->index; }
inline int lane_index() { return thread_index() % kWarp; }
inline int warp_index() { return thread_index() / kWarp; }

inline void barrier() { detail::Machine::get().barrier(); }
inline void warp_barrier() { detail::exchanged<uint64_t>(detail::Exchange::any, 0); }
inline unsigned ballot(bool x) { return unsigned(detail::exchanged<uint64_t>(detail::Exchange::ballot, x)); }
inline bool any(bool x) { return detail::exchanged<uint64_t>(detail::Exchange::any, x) != 0; }
template <class T>
T shuffle(T x, int from) { return detail::exchanged(detail::Exchange::shuffle, x, from); }
template <class T>
T shuffle_up(T x, int by = 1) { return detail::exchanged(detail::Exchange::shuffle_up, x, by); }
template <class T>
T shuffle_xor(T x, int mask) { return detail::exchanged(detail::Exchange::shuffle_xor, x, mask); }
inline uint32_t reduce_max(uint32_t x) { return detail::exchanged(detail::Exchange::reduce_max, x); }
inline uint32_t reduce_or(uint32_t x) { return detail::exchanged(detail::Exchange::reduce_or, x); }
inline int count_bits(unsigned x) { return __builtin_popcount(x); }
inline int lowest_bit(unsigned x) { return __builtin_ffs(int(x)) - 1; }

inline uint32_t bits_of(float x) { return soft_mask::detail::same_bits<uint32_t>(x); }
inline float float_of(uint32_t x) { return soft_mask::detail::same_bits<float>(x); }
inline float exp2_fast(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline float max_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : a > b ? a : b; }
template <class T>
float to_float(T x) { return widen(x); }
template <class T>
void from_float(float x, T& to) { narrow(x, to); }

template <class T>
T read(const T* from, SOFT_MASK_HERE) { return detail::loaded<T>(from, detail::Access::read, here); }
template <class T>
T read_once(const T* from, SOFT_MASK_HERE) { return detail::loaded<T>(from, detail::Access::read, here); }
inline Vector read_vector(const void* from, SOFT_MASK_HERE) { return detail::loaded<Vector>(from, detail::Access::read, here); }
inline Vector read_vector_once(const void* from, SOFT_MASK_HERE) { return detail::loaded<Vector>(from, detail::Access::read, here); }
template <class T>
void write(T* to, T x, SOFT_MASK_HERE) { detail::stored(to, x, detail::Access::write, here); }
inline void write_vector(void* to, Vector x, SOFT_MASK_HERE) { detail::stored(to, x, detail::Access::write, here); }
inline void write_vector_once(void* to, Vector x, SOFT_MASK_HERE) { detail::stored(to, x, detail::Access::write, here); }

template <class T>
void publish(T* to, T x, SOFT_MASK_HERE) { detail::stored(to, x, detail::Access::publish, here); }
template <class T>
T consume(const T* from, SOFT_MASK_HERE) { return detail::loaded<T>(from, detail::Access::consume, here); }
inline void fence() { detail::Machine::get().fence(); }
inline int32_t atomic_add(int32_t* to, int32_t x, SOFT_MASK_HERE) {
  detail::touch(to, int(sizeof *to), detail::Access::atomic, here);
  const int32_t before = *to;
  *to += x;
  return before;
}
inline void atomic_set(int32_t* to, int32_t x, SOFT_MASK_HERE) {
  detail::touch(to, int(sizeof *to), detail::Access::atomic, here);
  *to = x;
}
inline void atomic_raise(uint64_t* to, uint64_t x, SOFT_MASK_HERE) {
  detail::touch(to, int(sizeof *to), detail::Access::atomic, here);
  if (x > *to) *to = x;
}

template <class T>
class Cell {
 public:
  T get() const {
    const auto& by = detail::Machine::get().thread();
    if (!set_) fail("reads a cell of shared memory that was never set");
    if (writer_ != by.index && write_epoch_ == by.block->epoch) fail("reads a cell of shared memory before a barrier after thread " + std::to_string(writer_) + " set it");
    if (read_epoch_ == by.block->epoch && reader_ != by.index) {
      reader_ = kMany;
    } else {
      reader_ = by.index;
    }
    read_epoch_ = by.block->epoch;
    return value_;
  }
  void set(T x) {
    const auto& by = detail::Machine::get().thread();
    if (set_ && writer_ != by.index && write_epoch_ == by.block->epoch) fail("sets a cell of shared memory that thread " + std::to_string(writer_) + " set since the last barrier");
    if (reader_ != by.index && read_epoch_ == by.block->epoch) fail("sets a cell of shared memory that another thread read since the last barrier");
    value_ = x;
    set_ = true;
    writer_ = by.index;
    write_epoch_ = by.block->epoch;
  }

 private:
  static constexpr int kMany = -2;
  [[noreturn]] static void fail(const std::string& words) {
    const auto& by = detail::Machine::get().thread();
    throw std::runtime_error("soft_mask emulation: race: thread " + std::to_string(by.index) + " of block " +
                             std::to_string(by.block->index) + " " + words);
  }
  T value_{};
  bool set_ = false;
  int writer_ = -1;
  mutable int reader_ = -1;
  uint32_t write_epoch_ = 0;
  mutable uint32_t read_epoch_ = 0;
};

class SharedMax {
 public:
  void reset() { value_ = 0; }
  void raise(uint32_t x) { value_ = x > value_ ? x : value_; }
  uint32_t get() const { return value_; }

 private:
  uint32_t value_ = 0;
};

// Made anew for each block, by whichever of its threads comes first.
template <class Shared>
Shared& shared_memory() {
  static_assert(std::is_trivially_destructible_v<Shared>);
  auto& block = *detail::Machine::get().thread().block;
  void* bytes = detail::Machine::get().shared(sizeof(Shared));
  if (!block.shared_made) new (bytes) Shared;
  block.shared_made = true;
  return *static_cast<Shared*>(bytes);
}

template <class Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, const Params& params, const Launch&) {
  if (blocks == 0) return;
  detail::Machine::get().run(name, blocks, threads, [&] { kernel(params); });
}

}  // namespace soft_mask::cuda
