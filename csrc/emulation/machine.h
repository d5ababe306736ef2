// An emulated GPU: blocks of threads as fibers, warps that exchange values, barriers; one launch at a time.
//
// A seed other than 0 puts blocks, warps and lanes in random order and lets several blocks run at once. What a GPU would
// hang or be corrupted by is an error in words: a barrier or an exchange that not all threads reach, shared memory read
// before it is set or in the same stretch between barriers in which another thread sets it, and what memory.h looks for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "memory.h"

namespace soft_mask::emulation {

enum class Exchange : int { none, ballot, any, shuffle, shuffle_up, shuffle_xor, reduce_max, reduce_or };

struct Block;

struct Thread {
  enum class State { ready, exchanging, waiting, done };
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;
  State state = State::done;
  Exchange exchange = Exchange::none;
  uint64_t value = 0;
  int argument = 0;
  std::vector<int> calls;  // of each place in the source, since the warp's last meeting
};

// The loads, or stores, that a warp does together: its lanes' n-th at one place in the source.
struct Together {
  std::vector<std::vector<Memory::Piece>> calls;
};

struct Block {
  int64_t index = 0;
  uint32_t epoch = 1;
  int arrived = 0, done = 0;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::vector<Together>> loads, stores;  // [warp][place]
  std::vector<char> shared;
  bool shared_made = false;
};

class SOFT_MASK_EXPORT Machine {
 public:
  static Machine& get();

  // Runs `body` in every thread of every block; `name` is for the errors.
  void run(const char* name, int64_t blocks, int threads, const std::function<void()>& body);
  void set_seed(uint64_t seed) { seed_ = seed; }
  Memory& memory() { return memory_; }
  // Whether gates and temperatures are taken as the host's, as a GPU's glue does where they are not on the device.
  void set_numbers_on_host(bool yes) { numbers_on_host_ = yes; }
  bool numbers_on_host() const { return numbers_on_host_; }

  // From within a thread:
  Thread& thread() { return *current_; }
  void barrier();
  uint64_t exchange(Exchange kind, uint64_t value, int argument = 0);
  void touch(const void* address, int bytes, Access access, int place);
  void fence();
  void* shared(size_t bytes);
  int place_of(const char* file, int line);

 private:
  static void enter();
  void begin(Block& block, int64_t index, int threads);
  bool step(Block& block);  // whether any of its threads moved
  void run_warp(Block& block, int warp);
  void finish_exchange(Block& block, int warp);
  void count(Block& block, int warp);
  [[noreturn]] void stuck(const Block& block) const;

  Memory memory_;
  Thread* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Block>> resident_;
  std::vector<std::pair<const char*, int>> places_;
  std::string error_;
  uint64_t seed_ = 0;
  bool numbers_on_host_ = false;
  std::mt19937_64 random_;
};

}  // namespace soft_mask::emulation
