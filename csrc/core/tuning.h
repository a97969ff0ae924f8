// How the work is cut into vectors, tiles, blocks and clusters: every number of the launches, with its reason. Plain
// C++.
//
// None of them depends on the number of rows, so that a row's result does not depend on the batch it is in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace advfeat::cuda {

// A vector is the 16 bytes of x that one thread reads at once: 4 float32, 2 float64, 8 half values.
constexpr int kVectorBytes = 16;

constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;  // gridDim.x; every kernel strides over what is beyond

// Elementwise kernels: one vector per thread. At the kernels' 44 to 60 registers 4 or 5 such blocks share a
// multiprocessor, each thread with 48 bytes of loads in flight: 48 KB, where 4.8 TB/s at some 700 ns over 132
// multiprocessors need 26.
constexpr int kFlatThreads = 256;

// A row on chip. The copies to shared memory are all in flight at once whatever the number of threads; fewer threads
// shorten the reduction over warps and let more rows share a multiprocessor, more of them shorten the arithmetic. Four
// and six vectors a thread, and so many threads at most, were the fastest on an H200 (docs/performance.md).
constexpr int kRowVectorsPerThread = 4, kRowVectorsOfHalves = 6;
constexpr int kMaxThreads = 384, kMaxThreadsOfHalves = 256;
constexpr int kRowBlocks = 2;  // for __launch_bounds__: 80 registers per thread

// A row arrives in two parts, and the first is summed while the second is under way.
constexpr int kStages = 2;

// Rows cut into tiles: eight vectors per thread, so that the block's reduction is small beside its reads; at most 1024
// tiles, so that one block combines them in a few steps. A short row is shared by more threads, two vectors each.
constexpr int kTileThreads = 256;
// Blocks of the L1 kernel on a multiprocessor, for __launch_bounds__: 64 registers a thread. Left to itself nvcc makes
// room for a fifth on sm_80, and spills.
constexpr int kSearchBlocks = 4;
constexpr int kShortRowVectors = 2;
constexpr int64_t kTileVectors = 8 * kTileThreads;
constexpr int64_t kMaxTiles = 1024;

// Static shared memory of the row kernel (reduction.cuh, l2_row.cuh), at most; it counts against the limits of a block.
constexpr int64_t kStaticShared = 2048;
constexpr int64_t kSharedForAll = 48 * 1024;  // of a block, static and dynamic; more has to be asked for

// A random start is computed once per attack; transcendental functions in float64 bind it, not memory.
constexpr int kRandomThreads = 256;

// A row of a FAB step or of an L1 step, whose searches pass over it many times: values per thread, as a warp reads
// them. More threads shorten its passes, fewer its reductions.
constexpr int kSearchValuesPerThread = 8;

// A shared-memory plan: where an L2 row is kept between its sums and its move. The first plan of the table that the row
// fits and the device can place is taken; a row that fits none goes through global memory in tiles, twice: 28 bytes per
// float32 value instead of 16.
struct SharedPlan {
  int blocks;              // of the thread-block cluster that shares the row; 1: a block alone
  int per_multiprocessor;  // blocks that one multiprocessor's shared memory is divided among
};
constexpr int kPortableCluster = 8;  // what every device with clusters takes
constexpr int kMaxCluster = 16;      // what a device may take
// Lengths: float32 values that fit an H100 or H200 (227 KB per block, 228 KB per multiprocessor), without momentum;
// with it three quarters of that.
constexpr SharedPlan kSharedPlans[] = {
    {1, 2},   // to 9,472. Two on a multiprocessor: one loads while the other reduces, which moves no memory.
    {2, 2},   // to 18,944. Before {1, 1}, for the same reason.
    {4, 2},   // to 37,888. No more blocks than needed: what they send each other grows with their number.
    {8, 2},   // to 75,776: 49,152.
    {16, 2},  // to 151,552: an ImageNet image, 150,528. Fits on 8 multiprocessors as well as on 16.
    {8, 1},   // to 153,600: the same image where 16 blocks cannot be placed.
    {16, 1},  // to 307,200: 262,144.
    {1, 1},   // to 19,200; devices without clusters, before sm_90.
};

// What the row kernel is compiled for.
static_assert(std::all_of(std::begin(kSharedPlans), std::end(kSharedPlans),
                          [](const SharedPlan& p) { return p.blocks <= kMaxCluster; }));

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// The threads of a block for so many vectors: whole warps.
inline int threads_for(int64_t vectors, int per_thread, int most) {
  const int64_t warps = ceil_div(ceil_div(vectors, per_thread), kWarp);
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, most));
}

// Of a block that holds so many vectors of `width` values each.
inline int row_threads(int64_t vectors, int width) {
  const bool halves = width > kVectorBytes / 4;
  return halves ? threads_for(vectors, kRowVectorsOfHalves, kMaxThreadsOfHalves)
                : threads_for(vectors, kRowVectorsPerThread, kMaxThreads);
}

// A row over the blocks that hold it, in vectors; a stage is a multiple of the block's threads.
struct RowParts {
  int64_t vectors, per_block;
  int per_stage, threads;
};

inline RowParts row_parts(int64_t vectors, int width, const SharedPlan& plan) {
  const int64_t per_block = ceil_div(vectors, plan.blocks);
  const int threads = row_threads(per_block, width);
  return {vectors, per_block, static_cast<int>(ceil_div(per_block, threads * kStages) * threads), threads};
}

// Of a block that has one tile, or one short row.
inline int tile_threads(int64_t vectors) { return threads_for(vectors, kShortRowVectors, kTileThreads); }

// A row as tiles of equal size (the last may be shorter), in vectors.
struct Tiles {
  int64_t vectors, tile_vectors, per_row;
};

inline Tiles tiles_of(int64_t vectors) {
  const int64_t tile = std::max(kTileVectors, ceil_div(vectors, kMaxTiles));
  return {vectors, tile, ceil_div(vectors, tile)};
}

}  // namespace advfeat::cuda
