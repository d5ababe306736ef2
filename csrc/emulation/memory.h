// The emulated GPU's global memory: which addresses a launch may touch, who wrote what, and how much was moved.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace soft_mask::emulation {

struct Traffic {
  int64_t read_bytes = 0, read_sectors = 0, written_bytes = 0, written_sectors = 0, atomics = 0;
};

enum class Access { read, write, publish, consume, atomic };

// Who touches memory, and when: `epoch` counts the block's barriers, `clock` all that happened in the launch.
struct Toucher {
  int64_t block;
  int thread;
  uint32_t epoch;
};

// A tensor of the launch.
struct Region {
  std::string name;
  const char* first;
  int64_t bytes;
  bool writable;
  bool zeroed_back = false;  // must hold zeros when the launch ends, as it did before

  // Per two bytes of a writable region, made when first written.
  struct Trace {
    int64_t thread = -1;  // over the launch
    uint32_t epoch = 0;
    uint32_t published = 0;  // the clock at which it was published; 0: stored plainly
  };
  std::vector<Trace> traces;
};

// Exported: soft_mask._emulation looks into the library of emulated kernels.
#define SOFT_MASK_EXPORT __attribute__((visibility("default")))

class SOFT_MASK_EXPORT Memory {
 public:
  // Of one call, which may be several launches; what is not registered may not be touched.
  void add(Region region);
  void clear();
  // Around each launch; throws where a region that has to be zero again is not.
  void begin(int64_t blocks, int threads);
  void end();

  // Throws in words where the access is not allowed.
  void touch(const void* address, int bytes, Access access, const Toucher& by);
  void fence(const Toucher& by);

  // The bytes and sectors of one load or store of a warp: each address once, as the hardware joins them.
  struct Piece {
    uintptr_t address;
    int bytes;
  };
  void count(std::vector<Piece>& pieces, bool written);
  void count_atomic(const void* address);

  std::map<std::string, Traffic>& traffic() { return traffic_; }

 private:
  Region& find(uintptr_t address, int bytes, const char* what);

  struct BlockOrder {
    uint32_t released = 0, acquired = 0;  // the clock of its last atomic
  };
  std::vector<Region> regions_;
  size_t last_ = 0;
  int threads_ = 0;
  uint32_t clock_ = 1;
  std::vector<BlockOrder> blocks_;
  std::vector<uint32_t> fences_;  // of each thread of the launch
  std::map<std::string, Traffic> traffic_;
};

}  // namespace soft_mask::emulation
