// A block's part of a row in its shared memory: copied there asynchronously, stage by stage, and read from there by the
// sums and by the move, so that the row is read from memory once.
#pragma once

#include <cuda_pipeline.h>

#include "l2_row.cuh"

namespace advfeat::cuda {

// Each thread reads only the vectors that it copied, and copies into their places again only after it has moved them:
// the copies need no barrier.
template <typename T, typename G>
struct SharedRow {
  Vector<T, kWidth<T>>*x, *x0;
  Vector<G, kWidth<T>>* grad;  // null: no gradient
  int64_t first;               // the vector of the row that lies in front

  static constexpr int64_t vector_bytes(bool has_grad) {
    return 2 * sizeof(Vector<T, kWidth<T>>) + (has_grad ? sizeof(Vector<G, kWidth<T>>) : 0);
  }

  __device__ SharedRow(unsigned char* memory, int64_t first_, int64_t vectors, bool has_grad)
      : x(reinterpret_cast<Vector<T, kWidth<T>>*>(memory)),
        x0(x + vectors),
        grad(has_grad ? reinterpret_cast<Vector<G, kWidth<T>>*>(x0 + vectors) : nullptr),
        first(first_) {}

  // Starts the copies of a stage. They arrive with wait_for, in order.
  __device__ void copy(const Row<T, G>& row, const Span& stage) const {
    constexpr int width = kWidth<T>;
    for (int64_t vector = stage.first + threadIdx.x; vector < stage.end; vector += blockDim.x) {
      const int64_t i = vector * width;
      const int place = static_cast<int>(vector - first);
      if (row.aligned && i + width <= row.dim) {
        __pipeline_memcpy_async(x + place, row.x + i, sizeof *x);
        __pipeline_memcpy_async(x0 + place, row.x0 + i, sizeof *x0);
        if (grad) __pipeline_memcpy_async(grad + place, row.grad + i, sizeof *grad);
      } else {
        x[place] = read_vector<width>(row.x, i, row.dim, false);
        x0[place] = read_vector<width>(row.x0, i, row.dim, false);
        if (grad) grad[place] = read_vector<width>(row.grad, i, row.dim, false);
      }
    }
    __pipeline_commit();
  }

  // Waits until this thread's copies of a stage have arrived; those of later ones may still be under way.
  __device__ static void wait_for(int stage) { __pipeline_wait_prior(kStages - 1 - stage); }

  __device__ Operands<T, G> read(int64_t vector) const {
    const int place = static_cast<int>(vector - first);
    Operands<T, G> v;
    v.x = x[place];
    v.x0 = x0[place];
    v.grad = grad ? grad[place] : zero_vector<G, kWidth<T>>();
    return v;
  }
};

// One row after the other by the same blocks. The next row is on its way into each stage as soon as that stage has
// moved; only the reduction itself moves no memory.
template <typename T, typename G, typename Blocks>
__device__ void move_shared_rows(const StepArgs& a, const RowParts& parts, bool aligned) {
  Blocks blocks;
  const Span mine = part_of({0, parts.vectors}, blocks.rank(), parts.per_block);
  const SharedRow<T, G> shared_row(dynamic_shared(), mine.first, parts.per_block, a.grad != nullptr);
  int64_t row = blocks.first_row();
  if (row < a.rows)
    for (int stage = 0; stage < kStages; ++stage)
      shared_row.copy(Row<T, G>(a, row, aligned), part_of(mine, stage, parts.per_stage));
  blocks.wait_for_start();
  while (row < a.rows) {
    const RowNumbers numbers(a, row);
    double sums[3] = {0, 0, 0};
    for (int stage = 0; stage < kStages; ++stage) {
      shared_row.wait_for(stage);
      add_to_sums<T>(sums, shared_row, part_of(mine, stage, parts.per_stage), {});
    }
    const L2Move move = row_move<T>(a, row, numbers, total(sums, blocks), shared_row, mine, blocks);
    const int64_t next = row + blocks.rows_at_once();
    for (int stage = 0; stage < kStages; ++stage) {
      const Span span = part_of(mine, stage, parts.per_stage);
      move_vectors<T, G>(a, Row<T, G>(a, row, aligned), shared_row, span, move);
      if (next < a.rows) shared_row.copy(Row<T, G>(a, next, aligned), span);
    }
    row = next;
  }
}

}  // namespace advfeat::cuda
