// How the work is cut into groups, chunks and blocks: every number of the launches, with its reason. Plain C++.
//
// None of them depends on the number of rows, so that a row's result does not depend on the batch it is in.
#pragma once

#include <algorithm>
#include <cstdint>

namespace advfeat::cuda {

// A group is the 16 bytes of x that one thread reads at once: 4 float32, 2 float64, 8 half values.
constexpr int kGroupBytes = 16;

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;  // gridDim.x; every kernel strides over what is beyond

// Elementwise kernels: one group a thread. At the kernels' 44 to 60 registers 4 or 5 such blocks share a
// multiprocessor, each thread with 48 bytes of loads in flight: 48 KB, where 4.8 TB/s at some 700 ns over 132
// multiprocessors need 26.
constexpr int kFlatThreads = 256;

// A row on chip: two groups a thread. The copies to shared memory are all in flight at once whatever the number of
// threads, so more threads only shorten the arithmetic between them, and the reduction over warps grows.
constexpr int kRowGroupsPerThread = 2;

// Rows cut into chunks: eight groups a thread, so that the block's reduction is small beside its reads; at most 1024
// chunks, so that one block combines them in a few steps.
constexpr int kChunkThreads = 256;
constexpr int64_t kChunkGroups = 8 * kChunkThreads;
constexpr int64_t kMaxChunks = 1024;

// Static shared memory of the row kernel (reduction.cuh), which counts against the limit of a block.
constexpr int64_t kStaticShared = 2048;

// A random start is computed once an attack; transcendental functions in float64 bind it, not memory.
constexpr int kRandomThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// The threads of a block that holds a row of so many groups.
inline int row_threads(int64_t groups) {
  const int64_t warps = ceil_div(ceil_div(groups, kRowGroupsPerThread), kWarp);
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, kMaxThreads));
}

// A row as chunks of equal size (the last may be shorter), in groups.
struct Chunks {
  int64_t groups, chunk_groups, per_row;
};

inline Chunks chunks_of(int64_t groups) {
  const int64_t chunk = std::max(kChunkGroups, ceil_div(groups, kMaxChunks));
  return {groups, chunk, ceil_div(groups, chunk)};
}

}  // namespace advfeat::cuda
