// l2_step and project_l2. A row that fits the shared memory of a block, or of a thread-block cluster, is read once
// (l2_rows); which of them, tuning.h says. A longer one is cut into chunks: one kernel sums, one decides, one moves.
// The decision is its own kernel because an in-place move overwrites what the rare second looks at a row read.
#include <optional>

#include "../core/boxed.h"
#include "../core/launch.h"
#include "l2_kept_row.cuh"

namespace advfeat::cuda {
namespace {

template <typename T, typename G, typename Blocks>
__global__ void __launch_bounds__(kMaxThreads, kRowBlocks)
    l2_rows(const __grid_constant__ StepArgs a, RowParts parts, bool aligned) {
  if constexpr (Blocks::kCompiled)
    move_kept_rows<T, G, Blocks>(a, parts, aligned);
  else
    __trap();  // rather than leave the values as they were
}

template <typename T, typename G>
__global__ void __launch_bounds__(kChunkThreads)
    l2_sum_chunks(const __grid_constant__ StepArgs a, Chunks chunks, bool aligned, L2Sums* sums) {
  OneBlock block;
  const int64_t all = a.rows * chunks.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, chunks.per_row);
    const Span chunk = part_of({0, chunks.groups}, place.remainder, chunks.chunk_groups);
    double v[3] = {0, 0, 0};
    add_to_sums<T>(v, Row<T, G>(a, place.quotient, aligned), chunk, {});
    const L2Sums s = total(v, block);
    if (threadIdx.x == 0) sums[i] = s;
  }
}

template <typename T, typename G>
__global__ void __launch_bounds__(kChunkThreads, 1)  // the 1: few blocks, so registers rather than occupancy
    l2_decide(const __grid_constant__ StepArgs a, Chunks chunks, bool aligned, const L2Sums* sums, L2Move* moves) {
  OneBlock block;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    double v[3] = {0, 0, 0};
    for (int64_t i = threadIdx.x; i < chunks.per_row; i += blockDim.x) {
      const L2Sums s = sums[row * chunks.per_row + i];
      v[0] += s.gg;
      v[1] += s.dg;
      v[2] += s.dd;
    }
    const L2Move move =
        row_move<T>(a, row, RowNumbers(a, row), total(v, block), Row<T, G>(a, row, aligned), {0, chunks.groups}, block);
    if (threadIdx.x == 0) moves[row] = move;
  }
}

template <typename T, typename G>
__global__ void __launch_bounds__(kChunkThreads)
    l2_move_chunks(const __grid_constant__ StepArgs a, Chunks chunks, bool aligned, const L2Move* moves) {
  const int64_t all = a.rows * chunks.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, chunks.per_row);
    const Row<T, G> values(a, place.quotient, aligned);
    move_groups<T, G>(a, values, values, part_of({0, chunks.groups}, place.remainder, chunks.chunk_groups),
                      moves[place.quotient]);
  }
}

// How the rows of a call are held on chip.
struct Held {
  Holding holding;
  RowParts parts;
  ClusterShape shape;
  int64_t clusters;  // that run at once; of one block: not asked for
};

// The first line of kHoldings that takes rows of so many groups, if any.
template <typename T, typename G>
std::optional<Held> hold(const Launcher& run, int64_t groups, bool has_grad) {
  const int64_t group_bytes = KeptRow<T, G>::group_bytes(has_grad);
  for (const Holding& holding : kHoldings) {
    const RowParts parts = row_parts(groups, holding);
    if (parts.per_block > run.shared_limit(holding.per_multiprocessor) / group_bytes) continue;
    const ClusterShape shape = {holding.blocks, parts.threads, parts.per_block * group_bytes};
    if (holding.blocks == 1) return Held{holding, parts, shape, 0};
    const int64_t clusters = run.cluster_count(l2_rows<T, G, BlockCluster>, shape);
    if (clusters > 0) return Held{holding, parts, shape, clusters};
  }
  return std::nullopt;
}

template <typename T, typename G>
void launch_chunks(const Launcher& run, const StepArgs& a, int64_t groups, bool aligned) {
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

template <typename T, typename G>
void launch(const StepArgs& a) {
  const Launcher run(a.device);
  const int64_t groups = ceil_div(a.dim, kWidth<T>);
  const bool aligned = step_aligned(a, sizeof(T), sizeof(G)), has_grad = a.grad != nullptr;
  // An attack calls with the same rows again and again, with a gradient or in turn with and without, and asking for
  // clusters takes longer than a small launch.
  struct Last {
    int device = -1;
    int64_t groups = 0;
    std::optional<Held> held;
  };
  thread_local Last lasts[2];
  Last& last = lasts[has_grad];
  if (last.device != a.device || last.groups != groups) last = {a.device, groups, hold<T, G>(run, groups, has_grad)};
  if (!last.held) return launch_chunks<T, G>(run, a, groups, aligned);
  const Held held = *last.held;
  if (held.holding.blocks == 1)
    run("l2_rows", l2_rows<T, G, OneBlock>, a.rows, held.shape.threads, held.shape.shared, a, held.parts, aligned);
  else  // no more clusters than run at once, so that each copies its next row while it moves the one before
    run.clusters("l2_rows", l2_rows<T, G, BlockCluster>, held.shape, std::min(a.rows, held.clusters), a, held.parts,
                 aligned);
}

void l2_step(const StepArgs& args) {
  for_dtypes(args.dtype, args.grad_dtype,
             [&](auto value, auto grad) { launch<decltype(value), decltype(grad)>(args); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  m.impl("l2_step", TORCH_BOX(&step<l2_step>));
  m.impl("l2_step_", TORCH_BOX(&step_<l2_step>));
  m.impl("project_l2", TORCH_BOX(&project<l2_step>));
  m.impl("project_l2_", TORCH_BOX(&project_<l2_step>));
}

}  // namespace advfeat::cuda
