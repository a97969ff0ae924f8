// l2_step and project_l2. A row that fits into a block's shared memory is read once (l2_rows). A longer one is cut into
// chunks: one kernel sums, one decides, one moves. The decision is its own kernel because an in-place move overwrites
// what the rare second looks at a row read.
#include <cuda_pipeline.h>

#include "kernels.h"
#include "l2_row.cuh"
#include "launch.h"

namespace advfeat::cuda {
namespace {

// A row in shared memory. Each thread reads only the groups that it copied, so the copies need no barrier.
template <typename T, typename G>
struct KeptRow {
  Pack<T, kWidth<T>>*x, *x0;
  Pack<G, kWidth<T>>* grad;  // null: no gradient

  static constexpr int64_t group_bytes(bool has_grad) {
    return 2 * sizeof(Pack<T, kWidth<T>>) + (has_grad ? sizeof(Pack<G, kWidth<T>>) : 0);
  }

  __device__ KeptRow(unsigned char* memory, int64_t groups, bool has_grad)
      : x(reinterpret_cast<Pack<T, kWidth<T>>*>(memory)),
        x0(x + groups),
        grad(has_grad ? reinterpret_cast<Pack<G, kWidth<T>>*>(x0 + groups) : nullptr) {}

  __device__ void copy(const Row<T, G>& row, int64_t groups) const {
    constexpr int width = kWidth<T>;
    for (int64_t group = threadIdx.x; group < groups; group += blockDim.x) {
      const int64_t i = group * width;
      if (row.aligned && i + width <= row.dim) {  // asynchronous: all of the row's reads are in flight at once
        __pipeline_memcpy_async(x + group, row.x + i, sizeof *x);
        __pipeline_memcpy_async(x0 + group, row.x0 + i, sizeof *x0);
        if (grad) __pipeline_memcpy_async(grad + group, row.grad + i, sizeof *grad);
      } else {
        x[group] = read_pack<width>(row.x, i, row.dim, false);
        x0[group] = read_pack<width>(row.x0, i, row.dim, false);
        if (grad) grad[group] = read_pack<width>(row.grad, i, row.dim, false);
      }
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
  }

  __device__ Group<T, G> read(int64_t group) const {
    Group<T, G> v;
    v.x = x[group];
    v.x0 = x0[group];
    v.grad = grad ? grad[group] : zero_pack<G, kWidth<T>>();
    return v;
  }
};

template <typename T, typename G>
__global__ void __launch_bounds__(kMaxThreads)
    l2_rows(const __grid_constant__ StepArgs a, int64_t groups, bool aligned) {
  const KeptRow<T, G> kept(dynamic_shared(), groups, a.grad != nullptr);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const Row<T, G> values(a, row, aligned);
    kept.copy(values, groups);
    const L2Move move = row_move<T>(a, row, row_sums<T>(kept, 0, groups, {}), kept, groups);
    move_row<T, G>(a, values, kept, 0, groups, move);
  }
}

template <typename T, typename G>
__global__ void __launch_bounds__(kChunkThreads)
    l2_sum_chunks(const __grid_constant__ StepArgs a, Chunks chunks, bool aligned, L2Sums* sums) {
  const int64_t all = a.rows * chunks.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, chunks.per_row);
    const int64_t first = place.remainder * chunks.chunk_groups;
    const L2Sums s =
        row_sums<T>(Row<T, G>(a, place.quotient, aligned), first, min(first + chunks.chunk_groups, chunks.groups), {});
    if (threadIdx.x == 0) sums[i] = s;
  }
}

template <typename T, typename G>
__global__ void __launch_bounds__(kChunkThreads, 1)  // the 1: few blocks, so registers rather than occupancy
    l2_decide(const __grid_constant__ StepArgs a, Chunks chunks, bool aligned, const L2Sums* sums, L2Move* moves) {
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    double total[3] = {0, 0, 0};
    for (int64_t i = threadIdx.x; i < chunks.per_row; i += blockDim.x) {
      const L2Sums s = sums[row * chunks.per_row + i];
      total[0] += s.gg;
      total[1] += s.dg;
      total[2] += s.dd;
    }
    block_sum(total);
    L2Sums s;
    s.gg = total[0];
    s.dg = total[1];
    s.dd = total[2];
    const L2Move move = row_move<T>(a, row, s, Row<T, G>(a, row, aligned), chunks.groups);
    if (threadIdx.x == 0) moves[row] = move;
  }
}

template <typename T, typename G>
__global__ void __launch_bounds__(kChunkThreads)
    l2_move_chunks(const __grid_constant__ StepArgs a, Chunks chunks, bool aligned, const L2Move* moves) {
  const int64_t all = a.rows * chunks.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, chunks.per_row);
    const int64_t first = place.remainder * chunks.chunk_groups;
    const Row<T, G> values(a, place.quotient, aligned);
    move_row<T, G>(a, values, values, first, min(first + chunks.chunk_groups, chunks.groups), moves[place.quotient]);
  }
}

template <typename T, typename G>
void launch(const StepArgs& a) {
  const Launcher run(a.device);
  const int64_t groups = ceil_div(a.dim, kWidth<T>);
  const bool aligned = step_aligned(a, sizeof(T), sizeof(G));
  const int64_t row_bytes = KeptRow<T, G>::group_bytes(a.grad != nullptr);
  if (groups <= run.shared_limit() / row_bytes) {
    run("l2_rows", l2_rows<T, G>, a.rows, row_threads(groups), groups * row_bytes, a, groups, aligned);
    return;
  }
  const Chunks chunks = chunks_of(groups);
  const int64_t blocks = a.rows * chunks.per_row, sum_bytes = blocks * static_cast<int64_t>(sizeof(L2Sums));
  const torch::stable::Tensor memory = run.workspace(sum_bytes + a.rows * static_cast<int64_t>(sizeof(L2Move)));
  L2Sums* sums = static_cast<L2Sums*>(memory.mutable_data_ptr());
  L2Move* moves = reinterpret_cast<L2Move*>(sums + blocks);
  run("l2_sum_chunks", l2_sum_chunks<T, G>, blocks, kChunkThreads, 0, a, chunks, aligned, sums);
  run("l2_decide", l2_decide<T, G>, a.rows, kChunkThreads, 0, a, chunks, aligned, static_cast<const L2Sums*>(sums),
      moves);
  run("l2_move_chunks", l2_move_chunks<T, G>, blocks, kChunkThreads, 0, a, chunks, aligned,
      static_cast<const L2Move*>(moves));
}

}  // namespace

void l2_step(const StepArgs& args) {
  for_dtypes(args.dtype, args.grad_dtype,
             [&](auto value, auto grad) { launch<decltype(value), decltype(grad)>(args); });
}

}  // namespace advfeat::cuda
