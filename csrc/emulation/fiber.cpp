#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace soft_mask::emulation {
namespace {
constexpr size_t kStackBytes = 64 * 1024;
}

#if defined(__x86_64__)

// Saves the registers that a call must keep and the stack's place, and takes up another's: 20 ns, where swapcontext asks
// the system for its signal mask twice.
extern "C" void soft_mask_switch(void** save, void* to);
asm(R"(
.text
.local soft_mask_switch
.type soft_mask_switch,@function
soft_mask_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size soft_mask_switch,.-soft_mask_switch
)");

struct Fiber::Context {
  void* mine;
  void* scheduler;
};

void Fiber::start(void (*entry)()) {
  auto* top = reinterpret_cast<uint64_t*>(stack_ + kStackBytes) - 1;  // entry finds the stack as a call leaves it
  *top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  context_->mine = top;
}
void Fiber::resume() { soft_mask_switch(&context_->scheduler, context_->mine); }
void Fiber::yield() { soft_mask_switch(&context_->mine, context_->scheduler); }

#else

struct Fiber::Context {
  ucontext_t mine, scheduler;
};

void Fiber::start(void (*entry)()) {
  getcontext(&context_->mine);
  context_->mine.uc_stack.ss_sp = stack_;
  context_->mine.uc_stack.ss_size = kStackBytes;
  context_->mine.uc_link = nullptr;
  makecontext(&context_->mine, entry, 0);
}
void Fiber::resume() { swapcontext(&context_->scheduler, &context_->mine); }
void Fiber::yield() { swapcontext(&context_->mine, &context_->scheduler); }

#endif

Fiber::Fiber() : context_(new Context{}) {
  // The lowest page stays closed: a stack that overflows stops there, not in another's.
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  stack_ = static_cast<char*>(memory) + page;
}

Fiber::~Fiber() {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  munmap(stack_ - page, kStackBytes + page);
  delete context_;
}

}  // namespace soft_mask::emulation
