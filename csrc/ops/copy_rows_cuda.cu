// copy_rows_ on CUDA: bytes, in the widest words that all rows are aligned to.
#include <algorithm>

#include "../core/launch.h"
#include "../core/values.cuh"
#include "copy_rows.h"

namespace advfeat::cuda {
namespace {

template <typename Word>
__global__ void __launch_bounds__(kTileThreads) copy_words(const __grid_constant__ CopyRowsArgs a, Tiles words) {
  const int64_t all = a.rows * words.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, words.per_row);
    const int64_t row = place.quotient, first = place.remainder * words.tile_vectors;
    const int64_t end = min(first + words.tile_vectors, words.vectors);
    if (!a.mask[row]) continue;
    Word* to = reinterpret_cast<Word*>(static_cast<char*>(a.dst) + row * a.dst_stride_bytes);
    const Word* from = reinterpret_cast<const Word*>(static_cast<const char*>(a.src) + row * a.src_stride_bytes);
    for (int64_t j = first + threadIdx.x; j < end; j += blockDim.x) to[j] = from[j];
  }
}

template <typename Word>
void launch(const CopyRowsArgs& a) {
  const Launcher run(a.device);
  // Tiles of words, where a step has vectors: the same 16 bytes where rows are aligned.
  const Tiles words = tiles_of(a.row_bytes / static_cast<int64_t>(sizeof(Word)));
  const int threads = tile_threads(words.vectors);
  run("copy_words", copy_words<Word>, a.rows * words.per_row, threads, 0, a, words);
}

void copy_rows(const CopyRowsArgs& a) {
  const auto fits = [&](int64_t bytes) {
    return a.row_bytes % bytes == 0 && rows_aligned(a.dst, a.rows, a.dst_stride_bytes, bytes) &&
           rows_aligned(a.src, a.rows, a.src_stride_bytes, bytes);
  };
  if (fits(sizeof(uint4))) return launch<uint4>(a);
  if (fits(sizeof(uint32_t))) return launch<uint32_t>(a);
  if (fits(sizeof(uint16_t))) return launch<uint16_t>(a);
  return launch<uint8_t>(a);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) { m.impl("copy_rows_", TORCH_BOX(&copy_rows_<copy_rows>)); }

}  // namespace advfeat::cuda
