// accumulate_gradient_ on CUDA: a block per row, which reads the gradient twice, for its norm and for the values. The
// second time most rows come out of the cache, so that a value moves 12 bytes of memory, float32: what the L2 step's
// shared memory would save is small beside the step that follows.
#include "../core/launch.h"
#include "../core/reduction.cuh"
#include "../core/values.cuh"
#include "accumulate_gradient.h"

namespace advfeat::cuda {
namespace {

// A row of both tensors; T is the type of total, by whose vectors both are read.
template <typename T, typename G>
struct AccumulatedRow {
  using A = ArithmeticOf<T>;
  static constexpr int width = kWidth<T>;

  T* total;
  const G* grad;
  int64_t dim, vectors;
  bool aligned;

  __device__ AccumulatedRow(const AccumulateArgs& a, int64_t row, int64_t vectors_, bool aligned_)
      : total(static_cast<T*>(a.total) + row * a.total_stride),
        grad(static_cast<const G*>(a.grad) + row * a.grad_stride),
        dim(a.dim),
        vectors(vectors_),
        aligned(aligned_) {}

  __device__ auto gradient(int64_t vector) const { return read_vector<width>(grad, vector * width, dim, aligned); }

  // The sum of |grad * scale|, which every thread gets. Values beyond the row are zeros and add nothing.
  __device__ double sum(double scale, OneBlock& block) const {
    double sums[1] = {0};
    for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
      const auto g = gradient(vector);
#pragma unroll
      for (int k = 0; k < width; ++k) sums[0] += fabs(load(g.v[k]) * scale);
    }
    sum_over(block, sums);
    return sums[0];
  }

  __device__ void accumulate(A decay, const L1Direction& direction) const {
    const A prescale = static_cast<A>(direction.prescale), factor = static_cast<A>(direction.factor);
    for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
      const int64_t i = vector * width;
      const bool whole = aligned && i + width <= dim;  // one branch for both, see Row::read
      Vector<T, width> t = whole ? read_whole<width>(total + i) : read_singly<width>(total, i, dim);
      const Vector<G, width> g = whole ? read_whole<width>(grad + i) : read_singly<width>(grad, i, dim);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        const A decayed = mul(decay, static_cast<A>(load(t.v[k])));
        const A share = mul(mul(static_cast<A>(load(g.v[k])), prescale), factor);
        store(t.v[k], direction.usable ? add(decayed, share) : decayed);
      }
      write_vector(total, i, dim, aligned, t);
    }
  }
};

template <typename T, typename G>
__global__ void __launch_bounds__(kMaxThreads, kRowBlocks)
    accumulate_rows(const __grid_constant__ AccumulateArgs a, int64_t vectors, bool aligned) {
  constexpr bool in_float64 = std::is_same_v<T, double>;
  OneBlock block;
  __shared__ L1Direction broadcast;
  for (int64_t i = blockIdx.x; i < a.rows; i += gridDim.x) {
    const AccumulatedRow<T, G> row(a, i, vectors, aligned);
    double sum = row.sum(1, block);
    // Every thread has the same sum, so all of them take this branch or none.
    const bool smaller = in_float64 && !finite(sum);
    if (smaller) sum = row.sum(kSmaller, block);
    __syncthreads();  // `broadcast` may still be read for the row before
    if (threadIdx.x == 0) {
      // Alone: a division in float64 by every thread would take longer than the barrier.
      broadcast = l1_direction(sum, smaller, in_float64);
      count_bad(a, i, sum == 0, !finite(sum));
    }
    __syncthreads();
    row.accumulate(static_cast<ArithmeticOf<T>>(a.decay), broadcast);
  }
}

template <typename T, typename G>
void launch(const AccumulateArgs& a) {
  const Launcher run(a.device);
  const int64_t vectors = ceil_div(a.dim, kWidth<T>);
  const bool aligned =
      rows_aligned(a.total, a.rows, a.total_stride * static_cast<int64_t>(sizeof(T)), kVectorBytes) &&
      rows_aligned(a.grad, a.rows, a.grad_stride * static_cast<int64_t>(sizeof(G)), kWidth<T> * sizeof(G));
  run("accumulate_rows", accumulate_rows<T, G>, a.rows, row_threads(vectors, kWidth<T>), 0, a, vectors, aligned);
}

void accumulate_gradient(const AccumulateArgs& args) {
  for_dtypes(args.dtype, args.grad_dtype,
             [&](auto value, auto grad) { launch<decltype(value), decltype(grad)>(args); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  m.impl("accumulate_gradient_", TORCH_BOX(&accumulate_gradient_<accumulate_gradient>));
}

}  // namespace advfeat::cuda
