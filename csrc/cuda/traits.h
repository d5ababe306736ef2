// Every compile-time number of the CUDA kernels.
#pragma once

namespace soft_mask::cuda {

constexpr int kWarp = 32;
constexpr int kVectorBytes = 16;     // of one load
constexpr int kSectorBytes = 32;     // of memory; a warp's loads start at a multiple of kLineBytes, so that no sector is read twice
#if defined(SOFT_MASK_EMULATION)
constexpr int kLineBytes = 64;       // what torch aligns a CPU tensor to: no sum's order depends on where one lies
#else
constexpr int kLineBytes = 128;
#endif

// Reading rows of logits: a warp takes a chunk of kUnroll * kWarp vectors at a time, all its loads in flight together.
constexpr int kUnroll = 4;
constexpr int kRowWarps = 8;
constexpr int kRowThreads = kRowWarps * kWarp;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kRowBlocks = 3;        // at least so many on one multiprocessor: bounds the registers to 80
#else
constexpr int kRowBlocks = 4;        // to 64, which the older compilation target cannot do without spilling
#endif
constexpr int kChunkBytes = kUnroll * kWarp * kVectorBytes;
constexpr int kMaxSplits = kWarp;    // of one row over blocks: a lane merges each
constexpr int kMaxBest = 2 * kWarp;  // k: one or two entries a lane
constexpr int kMaxBans = 256;        // handed over with the launch

// Rows of the embedding.
constexpr int kMixWarps = 4;
constexpr int kMixThreads = kMixWarps * kWarp;
constexpr int kMixLoads = 4;         // rows of predictions read together, for latency

// Sums over a whole batch, in one block.
constexpr int kSumWarps = 32;
constexpr int kSumThreads = kSumWarps * kWarp;

// The embedding's gradient: a warp a row.
constexpr int kGatherWarps = 8;
constexpr int kGatherThreads = kGatherWarps * kWarp;
constexpr int kCountThreads = 256;   // a thread a position

}  // namespace soft_mask::cuda
