// Keeps the better iterate of each sample. No other block reads a row's best value after it was overwritten: a row that
// one block copies is decided before that block writes the value; longer rows get their values from a second kernel.
#include <algorithm>

#include "../core/launch.h"
#include "../core/values.cuh"
#include "update_best.h"

namespace advfeat::cuda {
namespace {

template <typename V>
__device__ bool row_is_better(const UpdateBestArgs& a, int64_t row) {
  return is_better(static_cast<const V*>(a.value)[row], static_cast<const V*>(a.best_value)[row]);
}

template <typename V>
__device__ void set_value(const UpdateBestArgs& a, int64_t row) {
  static_cast<V*>(a.best_value)[row] = static_cast<const V*>(a.value)[row];
}

template <typename V, typename Word>
__global__ void __launch_bounds__(kTileThreads) copy_better(const __grid_constant__ UpdateBestArgs a, Tiles words) {
  const int64_t all = a.rows * words.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, words.per_row);
    const int64_t row = place.quotient, first = place.remainder * words.tile_vectors;
    const int64_t end = min(first + words.tile_vectors, words.vectors);
    const bool better = row_is_better<V>(a, row);
    if (words.per_row == 1) {
      __syncthreads();  // every thread has decided
      if (better && threadIdx.x == 0) set_value<V>(a, row);
    }
    if (!better) continue;
    Word* to = reinterpret_cast<Word*>(static_cast<char*>(a.best_x) + row * a.best_x_stride_bytes);
    const Word* from = reinterpret_cast<const Word*>(static_cast<const char*>(a.x) + row * a.x_stride_bytes);
    for (int64_t j = first + threadIdx.x; j < end; j += blockDim.x) to[j] = from[j];
  }
}

template <typename V>
__global__ void __launch_bounds__(kFlatThreads) keep_values(const __grid_constant__ UpdateBestArgs a) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < a.rows; row += stride)
    if (row_is_better<V>(a, row)) set_value<V>(a, row);
}

template <typename V, typename Word>
void launch(const UpdateBestArgs& a) {
  const Launcher run(a.device);
  const int64_t per_row = a.row_bytes / static_cast<int64_t>(sizeof(Word));
  // A row without values has one empty tile, so that its value is shared_row.
  const Tiles words = tiles_of(std::max<int64_t>(per_row, 1));
  const Tiles tiles = {per_row, words.tile_vectors, words.per_row};
  const int threads = std::min(row_threads(per_row), kTileThreads);
  run("copy_better", copy_better<V, Word>, a.rows * tiles.per_row, threads, 0, a, tiles);
  if (tiles.per_row > 1) run("keep_values", keep_values<V>, ceil_div(a.rows, kFlatThreads), kFlatThreads, 0, a);
}

template <typename V>
void launch(const UpdateBestArgs& a) {
  const auto fits = [&](int64_t bytes) {
    return a.row_bytes % bytes == 0 && rows_aligned(a.best_x, a.rows, a.best_x_stride_bytes, bytes) &&
           rows_aligned(a.x, a.rows, a.x_stride_bytes, bytes);
  };
  if (fits(sizeof(uint4))) return launch<V, uint4>(a);
  if (fits(sizeof(uint32_t))) return launch<V, uint32_t>(a);
  if (fits(sizeof(uint16_t))) return launch<V, uint16_t>(a);
  return launch<V, uint8_t>(a);
}

void update_best(const UpdateBestArgs& args) { args.value_is_double ? launch<double>(args) : launch<float>(args); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) { m.impl("update_best_", TORCH_BOX(&update_best_<update_best>)); }

}  // namespace advfeat::cuda
