// A block's part of a row in its shared memory: copied there asynchronously, stage by stage, and read from there by the
// sums and by the move, so that the row is read from memory once.
#pragma once

#include <cuda_pipeline.h>

#include "l2_row.cuh"

namespace advfeat::cuda {

// Each thread reads only the vectors that it copied, and copies into their places again only after it has moved them:
// the copies need no barrier.
template <typename K>
struct SharedRow {
  using Values = Vector<typename K::Value, K::width>;
  using Gradient = Vector<typename K::Grad, K::width>;

  Values *x, *x0, *velocity;  // velocity: with momentum only
  Gradient* grad;             // null: no gradient
  int64_t first;              // the vector of the row that lies in front
  typename K::A momentum;

  static constexpr int64_t vector_bytes(bool has_grad) {
    return (K::momentum ? 3 : 2) * sizeof(Values) + (has_grad ? sizeof(Gradient) : 0);
  }

  __device__ SharedRow(const StepArgs& a, unsigned char* memory, int64_t first_, int64_t vectors)
      : x(reinterpret_cast<Values*>(memory)),
        x0(x + vectors),
        velocity(K::momentum ? x0 + vectors : nullptr),
        grad(a.grad ? reinterpret_cast<Gradient*>(x0 + (K::momentum ? 2 : 1) * vectors) : nullptr),
        first(first_),
        momentum(static_cast<typename K::A>(a.momentum)) {}

  // Starts the copies of a stage. They arrive with wait_for, in order.
  __device__ void copy(const Row<K>& row, const Span& stage) const {
    constexpr int width = K::width;
    for (int64_t vector = stage.first + threadIdx.x; vector < stage.end; vector += blockDim.x) {
      const int64_t i = vector * width;
      const int place = static_cast<int>(vector - first);
      if (row.aligned && i + width <= row.dim) {
        __pipeline_memcpy_async(x + place, row.x + i, sizeof *x);
        __pipeline_memcpy_async(x0 + place, row.x0 + i, sizeof *x0);
        if (grad) __pipeline_memcpy_async(grad + place, row.grad + i, sizeof *grad);
        if constexpr (K::momentum) __pipeline_memcpy_async(velocity + place, row.velocity + i, sizeof *velocity);
      } else {
        x[place] = read_vector<width>(row.x, i, row.dim, false);
        x0[place] = read_vector<width>(row.x0, i, row.dim, false);
        if (grad) grad[place] = read_vector<width>(row.grad, i, row.dim, false);
        if constexpr (K::momentum) velocity[place] = read_vector<width>(row.velocity, i, row.dim, false);
      }
    }
    __pipeline_commit();
  }

  // Waits until this thread's copies of a stage have arrived; those of later ones may still be under way.
  __device__ static void wait_for(int stage) { __pipeline_wait_prior(kStages - 1 - stage); }

  __device__ Operands<K> read(int64_t vector) const {
    const int place = static_cast<int>(vector - first);
    Operands<K> v;
    v.x = x[place];
    v.x0 = x0[place];
    v.grad = grad ? grad[place] : zero_vector<typename K::Grad, K::width>();
    if constexpr (K::momentum) v.velocity = velocity[place];
    return v;
  }
};

// One row after the other by the same blocks. The next row is on its way into each stage as soon as that stage has
// moved; only the reduction itself moves no memory.
template <typename K, typename Blocks>
__device__ void move_shared_rows(const StepArgs& a, const RowParts& parts, bool aligned) {
  Blocks blocks;
  const Span mine = part_of({0, parts.vectors}, blocks.rank(), parts.per_block);
  const SharedRow<K> shared_row(a, dynamic_shared(), mine.first, parts.per_block);
  int64_t row = blocks.first_row();
  if (row < a.rows)
    for (int stage = 0; stage < kStages; ++stage)
      shared_row.copy(Row<K>(a, row, aligned), part_of(mine, stage, parts.per_stage));
  blocks.wait_for_start();
  while (row < a.rows) {
    const RowNumbers numbers(a, row);
    double sums[3] = {0, 0, 0};
    for (int stage = 0; stage < kStages; ++stage) {
      shared_row.wait_for(stage);
      add_to_sums<K>(sums, shared_row, part_of(mine, stage, parts.per_stage), {});
    }
    const L2Move move = row_move<K>(a, row, numbers, total(sums, blocks), shared_row, mine, blocks);
    const int64_t next = row + blocks.rows_at_once();
    for (int stage = 0; stage < kStages; ++stage) {
      const Span span = part_of(mine, stage, parts.per_stage);
      move_vectors(a, Row<K>(a, row, aligned), shared_row, span, move);
      if (next < a.rows) shared_row.copy(Row<K>(a, next, aligned), span);
    }
    row = next;
  }
}

}  // namespace advfeat::cuda
