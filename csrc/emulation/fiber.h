// A thread of the emulated GPU: a stack of its own, switched to and from by hand.
#pragma once

#include <cstddef>

namespace soft_mask::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void (*entry)());  // from its beginning at the next resume
  void resume();                // from the scheduler: runs until the fiber yields
  void yield();                 // from the fiber: back to the scheduler

 private:
  struct Context;
  Context* context_;
  char* stack_;
};

}  // namespace soft_mask::emulation
