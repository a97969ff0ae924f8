// l2_step and project_l2. A row that fits the shared memory of a block, or of a thread-block cluster, is read once
// (l2_rows); which of them, tuning.h says. A longer one is cut into tiles: one kernel sums, one decides, one moves.
// The decision is its own kernel because an in-place move overwrites what the rare second looks at a row read.
#include <optional>

#include "../core/boxed.h"
#include "../core/launch.h"
#include "l2_shared_row.cuh"

namespace advfeat::cuda {
namespace {

// Clusters of half types, which have fewer threads, may take the registers that those leave.
template <typename K, typename Blocks>
constexpr int kMostThreads =
    std::is_same_v<Blocks, OneBlock> || K::width <= kVectorBytes / 4 ? kMaxThreads : kMaxThreadsOfHalves;

template <typename K, typename Blocks>
__global__ void __launch_bounds__(kMostThreads<K, Blocks>, kRowBlocks)
    l2_rows(const __grid_constant__ StepArgs a, RowParts parts, bool aligned) {
  if constexpr (Blocks::kCompiled)
    move_shared_rows<K, Blocks>(a, parts, aligned);
  else
    __trap();  // rather than leave the values as they were
}

template <typename K>
__global__ void __launch_bounds__(kTileThreads)
    l2_sum_tiles(const __grid_constant__ StepArgs a, Tiles tiles, bool aligned, L2Sums* sums) {
  OneBlock block;
  const int64_t all = a.rows * tiles.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, tiles.per_row);
    const Span tile = part_of({0, tiles.vectors}, place.remainder, tiles.tile_vectors);
    double v[3] = {0, 0, 0};
    add_to_sums<K>(v, Row<K>(a, place.quotient, aligned), tile, {});
    const L2Sums s = total(v, block);
    if (threadIdx.x == 0) sums[i] = s;
  }
}

template <typename K>
__global__ void __launch_bounds__(kTileThreads, 1)  // the 1: few blocks, so registers rather than occupancy
    l2_decide(const __grid_constant__ StepArgs a, Tiles tiles, bool aligned, const L2Sums* sums, L2Move* moves) {
  OneBlock block;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    double v[3] = {0, 0, 0};
    for (int64_t i = threadIdx.x; i < tiles.per_row; i += blockDim.x) {
      const L2Sums s = sums[row * tiles.per_row + i];
      v[0] += s.gg;
      v[1] += s.dg;
      v[2] += s.dd;
    }
    const L2Move move =
        row_move<K>(a, row, RowNumbers(a, row), total(v, block), Row<K>(a, row, aligned), {0, tiles.vectors}, block);
    if (threadIdx.x == 0) moves[row] = move;
  }
}

template <typename K>
__global__ void __launch_bounds__(kTileThreads)
    l2_move_tiles(const __grid_constant__ StepArgs a, Tiles tiles, bool aligned, const L2Move* moves) {
  const int64_t all = a.rows * tiles.per_row;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const Split place = split(i, tiles.per_row);
    const Row<K> values(a, place.quotient, aligned);
    move_vectors(a, values, values, part_of({0, tiles.vectors}, place.remainder, tiles.tile_vectors),
                 moves[place.quotient]);
  }
}

// Where the rows of a call lie on chip: a plan that the device can place.
struct PlannedRows {
  SharedPlan plan;
  RowParts parts;
  ClusterShape shape;
  int64_t clusters;  // that run at once; of one block: not asked for
};

// The first line of kSharedPlans that takes rows of so many vectors, if any.
template <typename K>
std::optional<PlannedRows> plan_rows(const Launcher& run, int64_t vectors, bool has_grad) {
  const int64_t vector_bytes = SharedRow<K>::vector_bytes(has_grad);
  for (const SharedPlan& plan : kSharedPlans) {
    const RowParts parts = row_parts(vectors, K::width, plan);
    if (parts.per_block > run.shared_limit(plan.per_multiprocessor) / vector_bytes) continue;
    const ClusterShape shape = {plan.blocks, parts.threads, parts.per_block * vector_bytes};
    if (plan.blocks == 1) return PlannedRows{plan, parts, shape, 0};
    const int64_t clusters = run.cluster_count(l2_rows<K, BlockCluster>, shape);
    if (clusters > 0) return PlannedRows{plan, parts, shape, clusters};
  }
  return std::nullopt;
}

template <typename K>
void launch_tiles(const Launcher& run, const StepArgs& a, int64_t vectors, bool aligned) {
  const Tiles tiles = tiles_of(vectors);
  const int64_t blocks = a.rows * tiles.per_row, sum_bytes = blocks * static_cast<int64_t>(sizeof(L2Sums));
  const torch::stable::Tensor memory = run.workspace(sum_bytes + a.rows * static_cast<int64_t>(sizeof(L2Move)));
  L2Sums* sums = static_cast<L2Sums*>(memory.mutable_data_ptr());
  L2Move* moves = reinterpret_cast<L2Move*>(sums + blocks);
  run("l2_sum_tiles", l2_sum_tiles<K>, blocks, kTileThreads, 0, a, tiles, aligned, sums);
  run("l2_decide", l2_decide<K>, a.rows, kTileThreads, 0, a, tiles, aligned, static_cast<const L2Sums*>(sums), moves);
  run("l2_move_tiles", l2_move_tiles<K>, blocks, kTileThreads, 0, a, tiles, aligned, static_cast<const L2Move*>(moves));
}

template <typename K>
void launch(const StepArgs& a) {
  const Launcher run(a.device);
  const int64_t vectors = ceil_div(a.dim, K::width);
  const bool aligned = step_aligned(a, sizeof(typename K::Value), sizeof(typename K::Grad)),
             has_grad = a.grad != nullptr;
  // An attack calls with the same rows again and again, with a gradient or in turn with and without, and asking for
  // clusters takes longer than a small launch.
  struct Last {
    int device = -1;
    int64_t vectors = 0;
    std::optional<PlannedRows> planned;
  };
  thread_local Last lasts[2];
  Last& last = lasts[has_grad];
  if (last.device != a.device || last.vectors != vectors)
    last = {a.device, vectors, plan_rows<K>(run, vectors, has_grad)};
  if (!last.planned) return launch_tiles<K>(run, a, vectors, aligned);
  const PlannedRows planned = *last.planned;
  if (planned.plan.blocks == 1)
    run("l2_rows", l2_rows<K, OneBlock>, a.rows, planned.shape.threads, planned.shape.shared, a, planned.parts,
        aligned);
  else  // no more clusters than run at once, so that each copies its next row while it moves the one before
    run.clusters("l2_rows", l2_rows<K, BlockCluster>, planned.shape, std::min(a.rows, planned.clusters), a,
                 planned.parts, aligned);
}

void l2_step(const StepArgs& args) {
  for_step_types(args, [&](auto types) { launch<decltype(types)>(args); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  m.impl("l2_step", TORCH_BOX(&step<l2_step>));
  m.impl("l2_step_", TORCH_BOX(&step_<l2_step>));
  m.impl("project_l2", TORCH_BOX(&project<l2_step>));
  m.impl("project_l2_", TORCH_BOX(&project_<l2_step>));
}

}  // namespace advfeat::cuda
