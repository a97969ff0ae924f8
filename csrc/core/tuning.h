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

// A row on chip: two vectors per thread. The copies to shared memory are all in flight at once whatever the number of
// threads, so more threads only shorten the arithmetic between them, and the reduction over warps grows. At most 512:
// with 64 registers per thread, two such blocks share a multiprocessor.
constexpr int kRowVectorsPerThread = 2;
constexpr int kMaxThreads = 512;
constexpr int kRowBlocks = 2;  // for __launch_bounds__

// A row arrives in four parts, and each is summed while the later ones are under way: only the last quarter of the
// conversions to float64 (16 per clock, 1.3 us for 19,000 values) is not hidden behind memory.
constexpr int kStages = 4;

// Rows cut into tiles: eight vectors per thread, so that the block's reduction is small beside its reads; at most 1024
// tiles, so that one block combines them in a few steps.
constexpr int kTileThreads = 256;
constexpr int64_t kTileVectors = 8 * kTileThreads;
constexpr int64_t kMaxTiles = 1024;

// Static shared memory of the row kernel (reduction.cuh, l2_row.cuh), at most; it counts against the limits of a block.
constexpr int64_t kStaticShared = 2048;
constexpr int64_t kSharedForAll = 48 * 1024;  // of a block, static and dynamic; more has to be asked for

// A random start is computed once per attack; transcendental functions in float64 bind it, not memory.
constexpr int kRandomThreads = 256;

// A shared-memory plan: where an L2 row is kept between its sums and its move. The first plan of the table that the row
// fits and the device can place is taken; a row that fits none goes through global memory in tiles, twice: 28 bytes per
// float32 value instead of 16.
struct SharedPlan {
  int blocks;              // of the thread-block cluster that shares the row; 1: a block alone
  int per_multiprocessor;  // blocks that one multiprocessor's shared memory is divided among
  int max_threads;
};
constexpr int kPortableCluster = 8;  // what every device with clusters takes
constexpr int kMaxCluster = 16;      // what a device may take
// Lengths: float32 values that fit an H100 or H200 (227 KB per block, 228 KB per multiprocessor), without momentum;
// with it three quarters of that.
constexpr SharedPlan kSharedPlans[] = {
    {1, 2, 512},   // to 9,472. Two on a multiprocessor: one loads while the other reduces, which moves no memory.
    {2, 2, 512},   // to 18,944. Before {1, 1}, for the same reason.
    {4, 2, 512},   // to 37,888. No more blocks than needed: their barrier gets slower with their number.
    {8, 2, 384},   // to 75,776: 49,152 as 72 KB per block, three on a multiprocessor with 56 registers per thread.
    {16, 2, 512},  // to 151,552: an ImageNet image, 150,528. Fits on 8 multiprocessors as well as on 16.
    {8, 1, 512},   // to 153,600: the same image where 16 blocks cannot be placed.
    {16, 1, 512},  // to 307,200: 262,144.
    {1, 1, 512},   // to 19,200; devices without clusters, before sm_90.
};

// What the row kernel is compiled for.
static_assert(std::all_of(std::begin(kSharedPlans), std::end(kSharedPlans),
                          [](const SharedPlan& p) { return p.max_threads <= kMaxThreads && p.blocks <= kMaxCluster; }));

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// The threads of a block that works on so many vectors.
inline int row_threads(int64_t vectors, int max_threads = kMaxThreads) {
  const int64_t warps = ceil_div(ceil_div(vectors, kRowVectorsPerThread), kWarp);
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, max_threads));
}

// A row over the blocks that hold it, in vectors; a stage is a multiple of the block's threads.
struct RowParts {
  int64_t vectors, per_block;
  int per_stage, threads;
};

inline RowParts row_parts(int64_t vectors, const SharedPlan& plan) {
  const int64_t per_block = ceil_div(vectors, plan.blocks);
  const int threads = row_threads(per_block, plan.max_threads);
  return {vectors, per_block, static_cast<int>(ceil_div(per_block, threads * kStages) * threads), threads};
}

// A row as tiles of equal size (the last may be shorter), in vectors.
struct Tiles {
  int64_t vectors, tile_vectors, per_row;
};

inline Tiles tiles_of(int64_t vectors) {
  const int64_t tile = std::max(kTileVectors, ceil_div(vectors, kMaxTiles));
  return {vectors, tile, ceil_div(vectors, tile)};
}

}  // namespace advfeat::cuda
