// linf_step and project_linf: one vector per thread, or, to count bad gradients as well, one tile of a row per block.
#include "../core/boxed.h"
#include "../core/launch.h"
#include "../core/values.cuh"

namespace advfeat::cuda {
namespace {

struct Flags {
  bool nonzero = false, not_finite = false;
};

// One vector of a row. The sign of a zero or NaN gradient is 0.
template <typename K>
__device__ Flags move_vector(const Row<K>& row, int64_t vector, double step_size, double eps_,
                             const Box<typename K::A, StepArgs>& box) {
  using A = typename K::A;
  const A step = static_cast<A>(step_size), eps = static_cast<A>(eps_);
  const Operands<K> v = row.read(vector);
  Vector<typename K::Value, K::width> out;
  Flags flags;
  box.template for_values<K::width>(vector * K::width, [&](int k, A lo, A hi) {
    const A x = v.from(k, row.momentum), x0 = load(v.x0.v[k]), g = load(v.grad.v[k]);
    const A y = g > 0 ? add(x, step) : (g < 0 ? sub(x, step) : x);
    store(out.v[k], clip(clip(y, sub(x0, eps), add(x0, eps)), lo, hi));
    flags.nonzero |= g != 0;
    flags.not_finite |= !(g - g == 0);
  });
  row.write(vector, out, v);
  return flags;
}

template <typename K>
__global__ void __launch_bounds__(kFlatThreads)
    linf_flat(const __grid_constant__ StepArgs a, int64_t vectors, bool aligned) {
  const Box<typename K::A, StepArgs> box(a);
  const int64_t all = a.rows * vectors, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const Split at_row = a.rows == 1 ? Split{0, i} : split(i, vectors);
    const int64_t row = at_row.quotient;
    move_vector(Row<K>(a, row, aligned), at_row.remainder, at(a.step_size, row), at(a.eps, row), box);
  }
}

// Flags of the whole block: bit 0 nonzero, bit 1 not finite.
__device__ int block_flags(bool nonzero, bool not_finite) {
  return (__syncthreads_or(nonzero) ? 1 : 0) | (__syncthreads_or(not_finite) ? 2 : 0);
}

// A block has one tile of one row. A row of one tile is counted here, a longer one by count_rows.
template <typename K>
__global__ void __launch_bounds__(kTileThreads)
    linf_tiles(const __grid_constant__ StepArgs a, Tiles tiles, bool aligned, uint8_t* tile_flags) {
  const Box<typename K::A, StepArgs> box(a);
  const int64_t all = a.rows * tiles.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, tiles.per_row);
    const int64_t row = place.quotient, first = place.remainder * tiles.tile_vectors;
    const int64_t end = min(first + tiles.tile_vectors, tiles.vectors);
    const Row<K> values(a, row, aligned);
    const double step_size = at(a.step_size, row), eps = at(a.eps, row);
    Flags flags;
    for (int64_t vector = first + threadIdx.x; vector < end; vector += blockDim.x) {
      const Flags f = move_vector(values, vector, step_size, eps, box);
      flags.nonzero |= f.nonzero;
      flags.not_finite |= f.not_finite;
    }
    const int all_flags = block_flags(flags.nonzero, flags.not_finite);
    if (threadIdx.x != 0) continue;
    if (tiles.per_row == 1)
      count_bad(a, row, !(all_flags & 1), all_flags & 2);
    else
      tile_flags[i] = static_cast<uint8_t>(all_flags);
  }
}

__global__ void count_rows(const __grid_constant__ StepArgs a, int64_t tiles_per_row, const uint8_t* tile_flags) {
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    int flags = 0;
    for (int64_t i = threadIdx.x; i < tiles_per_row; i += blockDim.x) flags |= tile_flags[row * tiles_per_row + i];
    flags = block_flags(flags & 1, flags & 2);
    if (threadIdx.x == 0) count_bad(a, row, !(flags & 1), flags & 2);
  }
}

// Rows that lie one behind the other, with the same numbers for all, are one long row: no value has to find its row,
// and vectors may reach over the end of one, so that rows of odd lengths are read by whole vectors too.
StepArgs joined(const StepArgs& a) {
  const bool dense = a.out_stride == a.dim && a.x_stride == a.dim && a.x0_stride == a.dim &&
                     (!a.grad || a.grad_stride == a.dim) && (!a.velocity || a.velocity_stride == a.dim);
  const bool same_channels = a.dim % (a.channels * a.inner) == 0;  // at the same places of the long row
  if (!dense || !same_channels || a.step_size.rows || a.eps.rows || a.rows < 2) return a;
  StepArgs one = a;
  one.dim *= one.rows;
  one.rows = 1;
  return one;
}

template <typename K>
void launch(const StepArgs& given) {
  const Launcher run(given.device);
  const bool counts = given.grad && given.grad_status;
  const StepArgs a = counts ? given : joined(given);
  const int64_t vectors = ceil_div(a.dim, K::width);
  const bool aligned = step_aligned(a, sizeof(typename K::Value), sizeof(typename K::Grad));
  if (!counts) {
    run("linf_flat", linf_flat<K>, ceil_div(a.rows * vectors, kFlatThreads), kFlatThreads, 0, a, vectors, aligned);
    return;
  }
  const Tiles tiles = tiles_of(vectors);
  const int threads = tile_threads(tiles.vectors);
  if (tiles.per_row == 1) {
    run("linf_tiles", linf_tiles<K>, a.rows, threads, 0, a, tiles, aligned, static_cast<uint8_t*>(nullptr));
    return;
  }
  const torch::stable::Tensor flags = run.workspace(a.rows * tiles.per_row);
  uint8_t* tile_flags = static_cast<uint8_t*>(flags.mutable_data_ptr());
  run("linf_tiles", linf_tiles<K>, a.rows * tiles.per_row, threads, 0, a, tiles, aligned, tile_flags);
  run("count_rows", count_rows, a.rows, kWarp, 0, a, tiles.per_row, static_cast<const uint8_t*>(tile_flags));
}

void linf_step(const StepArgs& args) {
  for_step_types(args, [&](auto types) { launch<decltype(types)>(args); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  m.impl("linf_step", TORCH_BOX(&step<linf_step>));
  m.impl("linf_step_", TORCH_BOX(&step_<linf_step>));
  m.impl("project_linf", TORCH_BOX(&project<linf_step>));
  m.impl("project_linf_", TORCH_BOX(&project_<linf_step>));
}

}  // namespace advfeat::cuda
