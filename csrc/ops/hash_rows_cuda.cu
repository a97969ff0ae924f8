// hash_rows on CUDA: tiles of a row, whose sums meet in the row's hash. Sums of integers, so that the order in which
// the atomic additions come changes nothing.
#include <algorithm>

#include "../core/launch.h"
#include "../core/values.cuh"
#include "hash_rows.h"

namespace advfeat::cuda {
namespace {

template <typename Word>
constexpr int kWords = kVectorBytes / static_cast<int>(sizeof(Word));

// The positions of consecutive values in memory, as a row is indexed: channel by channel.
class Positions {
 public:
  __device__ Positions(const HashRowsArgs& a, int64_t i)
      : channels_(a.channels), to_next_channel_(kPosition * static_cast<uint64_t>(a.pixels)) {
    const Split place = split(i, channels_);
    pixel_ = place.quotient;
    channel_ = place.remainder;
    position_ = kPosition * static_cast<uint64_t>(pixel_ + 1) + to_next_channel_ * static_cast<uint64_t>(channel_);
  }
  __device__ uint64_t next() {
    const uint64_t position = position_;
    position_ += to_next_channel_;
    if (++channel_ == channels_) {
      channel_ = 0;
      position_ = kPosition * static_cast<uint64_t>(++pixel_ + 1);
    }
    return position;
  }

 private:
  const int64_t channels_;
  const uint64_t to_next_channel_;
  int64_t pixel_, channel_;
  uint64_t position_;
};

template <typename Word>
__global__ void __launch_bounds__(kTileThreads)
    hash_tiles(const __grid_constant__ HashRowsArgs a, Tiles tiles, bool aligned) {
  constexpr int N = kWords<Word>;
  const int64_t all = a.rows * tiles.per_row;
  for (int64_t tile = blockIdx.x; tile < all; tile += gridDim.x) {
    const Split place = split(tile, tiles.per_row);
    const int64_t row = place.quotient, first = place.remainder * tiles.tile_vectors;
    const int64_t end = min(first + tiles.tile_vectors, tiles.vectors);
    const Word* values = static_cast<const Word*>(a.x) + row * a.stride;
    unsigned long long sum = 0;
    for (int64_t vector = first + threadIdx.x; vector < end; vector += blockDim.x) {
      const int64_t i = vector * N;
      Positions positions(a, i);
      if (aligned && i + N <= a.dim) {
        const auto words = *reinterpret_cast<const Vector<Word, N>*>(values + i);
#pragma unroll
        for (int k = 0; k < N; ++k) sum += mixed(words.v[k], positions.next());
      } else {
        for (int k = 0; k < N && i + k < a.dim; ++k) sum += mixed(values[i + k], positions.next());
      }
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    if (threadIdx.x % kWarp == 0) atomicAdd(reinterpret_cast<unsigned long long*>(a.out) + row, sum);
  }
}

template <typename Word>
void launch(const HashRowsArgs& a) {
  const Launcher run(a.device);
  const Tiles tiles = tiles_of(ceil_div(a.dim, kWords<Word>));
  const bool aligned = rows_aligned(a.x, a.rows, a.stride * a.value_bytes, kVectorBytes);
  const int threads = tile_threads(tiles.vectors);
  run("hash_tiles", hash_tiles<Word>, a.rows * tiles.per_row, threads, 0, a, tiles, aligned);
}

void hash_rows(const HashRowsArgs& a) {
  if (a.value_bytes == 8) return launch<uint64_t>(a);
  if (a.value_bytes == 4) return launch<uint32_t>(a);
  return launch<uint16_t>(a);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) { m.impl("hash_rows", TORCH_BOX(&advfeat::hash_rows<hash_rows>)); }

}  // namespace advfeat::cuda
