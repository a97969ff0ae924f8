// The L2 step of one row by the blocks that share it: sums, then the decision, then the values. Each is written over a
// reader of vectors, so that it is the same for a row in shared memory and for one in global memory, and over the
// blocks (reduction.cuh), so that it is the same for one block and for a cluster.
//
// Products and sums are float64 whatever the dtype. A product of two float32 is exact there and its exponent always
// fits (1e-45 squared is 1e-90, 3e38 squared 1e77), so no scaling, no maximum and no second look is needed, and the
// direction is right for any finite gradient. The price is three fused multiply-adds and two conversions per value. A
// value moves 16 bytes, so the memory of an H200 brings each multiprocessor 1.2 values per clock (64 multiply-adds and
// 16 conversions per clock), that of a consumer card with 1/64 float64 rate about 0.2 (2 per clock of either): memory
// is the limit on both. Only rows that come out of the cache of such a consumer card wait for the float64 units.
#pragma once

#include "../core/l2_math.h"
#include "../core/reduction.cuh"
#include "../core/values.cuh"

namespace advfeat::cuda {

// What the sums are made of; x - x0, or with momentum x + momentum velocity - x0, is rounded as on the CPU.
template <typename K>
__device__ inline double difference(const Operands<K>& v, int k, typename K::A momentum) {
  return sub(v.from(k, momentum), static_cast<typename K::A>(load(v.x0.v[k])));
}
template <typename K>
__device__ inline double gradient(const Operands<K>& v, int k) {
  return load(v.grad.v[k]);
}

// Consecutive vectors of a row: those of a block, of a stage, of a tile.
struct Span {
  int64_t first, end;
};

__device__ inline Span part_of(const Span& span, int64_t index, int64_t size) {
  const int64_t first = span.first + index * size;
  return {min(first, span.end), min(first + size, span.end)};
}

// This thread's vectors of a span: every blockDim.x-th. Values beyond the row are zeros and add nothing.
template <typename Reader, typename Body>
__device__ inline void for_each_vector(const Reader& reader, const Span& span, Body body) {
  for (int64_t vector = span.first + threadIdx.x; vector < span.end; vector += blockDim.x) body(reader.read(vector));
}

// Adds this thread's vectors of a span to its sums gg, dg, dd. The multiply-adds are fused: for float32 and the half
// types the product is exact, so that is the CPU's result; for float64 it is one rounding less.
template <typename K, typename Reader>
__device__ void add_to_sums(double (&sums)[3], const Reader& reader, const Span& span, const L2Scales& scales) {
  for_each_vector(reader, span, [&](const auto& v) {
#pragma unroll
    for (int k = 0; k < K::width; ++k) {
      double g = gradient(v, k), d = difference(v, k, reader.momentum);
      if constexpr (std::is_same_v<typename K::Value, double>) {
        g *= scales.grad;
        d *= scales.d;
      }
      sums[0] = fma(g, g, sums[0]);
      sums[1] = fma(d, g, sums[1]);
      sums[2] = fma(d, d, sums[2]);
    }
  });
}

// The sums of all threads of the blocks; each gets them.
template <typename Blocks>
__device__ L2Sums total(double (&sums)[3], Blocks& blocks) {
  sum_over(blocks, sums);
  L2Sums s;
  s.gg = sums[0];
  s.dg = sums[1];
  s.dd = sums[2];
  return s;
}

// The largest magnitudes of gradient and difference, for float64 rows whose squares leave the range.
template <typename K, typename Reader, typename Blocks>
__device__ L2Scales row_scales(const Reader& reader, const Span& mine, Blocks& blocks, bool& zero, bool& not_finite) {
  double m[2] = {0, 0};
  for_each_vector(reader, mine, [&](const auto& v) {
#pragma unroll
    for (int k = 0; k < K::width; ++k) {
      m[0] = larger(m[0], fabs(gradient(v, k)));
      m[1] = larger(m[1], fabs(difference(v, k, reader.momentum)));
    }
  });
  max_over(blocks, m);
  zero = m[0] == 0;
  not_finite = !finite(m[0]);
  return scales_for(m[0], m[1]);
}

// ||d + u|| measured on the values, where the sums cancel.
template <typename K, typename Reader, typename Blocks>
__device__ double measured_norm(const Reader& reader, const Span& mine, Blocks& blocks, const L2Move& move,
                                double scale) {
  double sum[1] = {0};
  for_each_vector(reader, mine, [&](const auto& v) {
#pragma unroll
    for (int k = 0; k < K::width; ++k) {
      const double d = (difference(v, k, reader.momentum) + mul(gradient(v, k) * move.prescale, move.factor)) * scale;
      sum[0] = fma(d, d, sum[0]);
    }
  });
  sum_over(blocks, sum);
  return sqrt(sum[0]) / scale;
}

// What thread 0 broadcasts to its block. (Shared variables have no constructors, so not L2Move itself.)
struct SharedMove {
  bool has_grad, inside;
  double prescale, factor, d_prescale, shrink, norm;
};

// The numbers of a row, read before its sums so that the decision does not wait for memory.
struct RowNumbers {
  double step_size, eps;
  __device__ RowNumbers(const StepArgs& a, int64_t row) : step_size(at(a.step_size, row)), eps(at(a.eps, row)) {}
};

// From the sums of a row to its move; `mine` are this block's vectors. Every block decides by itself, from the same
// sums; the first counts the row in grad_status.
template <typename K, typename Reader, typename Blocks>
__device__ L2Move row_move(const StepArgs& a, int64_t row, const RowNumbers& numbers, L2Sums s, const Reader& reader,
                           const Span& mine, Blocks& blocks) {
  L2Scales scales;
  bool zero = s.gg == 0, not_finite = !finite(s.gg);
  if constexpr (std::is_same_v<typename K::Value, double>) {
    // Every thread has the same sums, so all of them take this branch or none.
    if (needs_scales(s, a.grad)) {
      scales = row_scales<K>(reader, mine, blocks, zero, not_finite);
      double sums[3] = {0, 0, 0};
      add_to_sums<K>(sums, reader, mine, scales);
      s = total(sums, blocks);
    }
  }
  __shared__ SharedMove broadcast;
  __syncthreads();  // `broadcast` may still be read for the row before
  if (threadIdx.x == 0) {
    // Alone: square roots and divisions in float64 by every thread would take longer than the barrier.
    L2Move m =
        l2_direction(s, scales, numbers.step_size, a.grad && !not_finite, std::is_same_v<typename K::Value, double>);
    const double norm = l2_moved_norm(s, scales, numbers.step_size, m);
    if (!(norm < 0)) l2_set_shrink(m, norm, numbers.eps);
    broadcast = {m.has_grad, m.inside, m.prescale, m.factor, m.d_prescale, m.shrink, norm};
  }
  __syncthreads();
  if (threadIdx.x == 0 && blocks.rank() == 0 && a.grad)
    count_bad(a, row, zero, not_finite);  // after the barrier: nobody waits for it
  L2Move m;
  m.has_grad = broadcast.has_grad;
  m.inside = broadcast.inside;
  m.prescale = broadcast.prescale;
  m.factor = broadcast.factor;
  m.d_prescale = broadcast.d_prescale;
  m.shrink = broadcast.shrink;
  if (broadcast.norm < 0)
    l2_set_shrink(m, measured_norm<K>(reader, mine, blocks, m, moved_scale(s, scales, numbers.step_size)), numbers.eps);
  return m;
}

// The move in the arithmetic type, ready for the values.
template <typename A>
struct Mover {
  bool has_grad, inside;
  A prescale, factor, d_prescale, shrink;

  __device__ explicit Mover(const L2Move& m)
      : has_grad(m.has_grad),
        inside(m.inside),
        prescale(static_cast<A>(m.prescale)),
        factor(static_cast<A>(m.factor)),
        d_prescale(static_cast<A>(m.d_prescale)),
        shrink(static_cast<A>(m.shrink)) {}

  // A gradient that is not part of the move is not looked at: it may be NaN.
  __device__ A operator()(A x, A g, A x0) const {
    const A u = mul(mul(g, prescale), factor);
    if (inside) return has_grad ? add(x, u) : x;
    const A d = mul(mul(sub(x, x0), d_prescale), shrink);
    return add(x0, has_grad ? add(d, u) : d);
  }
};

// Moves the vectors of a span from `reader` into the row `to`.
template <typename K, typename Reader>
__device__ void move_vectors(const StepArgs& a, const Row<K>& to, const Reader& reader, const Span& span,
                             const L2Move& move) {
  using A = typename K::A;
  const Mover<A> mover(move);
  const Box<A, StepArgs> box(a);
  for (int64_t vector = span.first + threadIdx.x; vector < span.end; vector += blockDim.x) {
    const Operands<K> v = reader.read(vector);
    Vector<typename K::Value, K::width> out;
    box.template for_values<K::width>(vector * K::width, [&](int k, A lo, A hi) {
      const A x = v.from(k, reader.momentum), g = static_cast<A>(load(v.grad.v[k])), x0 = load(v.x0.v[k]);
      store(out.v[k], clip(mover(x, g, x0), lo, hi));
    });
    to.write(vector, out, v);
  }
}

}  // namespace advfeat::cuda
