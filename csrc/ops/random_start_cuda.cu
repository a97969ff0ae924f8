// random_start_linf and random_start_l2 on CUDA, in float64.
#include "../core/launch.h"
#include "../core/reduction.cuh"
#include "../core/values.cuh"
#include "random_start.h"

namespace advfeat::cuda {
namespace {

// Writes the values of one quad of a row: x0 + offset, clipped.
template <typename T>
__device__ void write_quad(const RandomStartArgs& a, int64_t row, int64_t quad, const double (&offset)[4],
                           const Box<ArithmeticOf<T>, RandomStartArgs>& box) {
  using A = ArithmeticOf<T>;
  const T* x0 = static_cast<const T*>(a.x0) + row * a.dim;
  T* out = static_cast<T*>(a.out) + row * a.dim;
  box.template for_values<4>(4 * quad, [&](int j, A lo, A hi) {
    const int64_t i = 4 * quad + j;
    if (i < a.dim) store(out[i], clip(add(static_cast<A>(load(x0[i])), static_cast<A>(offset[j])), lo, hi));
  });
}

template <typename T>
__global__ void __launch_bounds__(kRandomThreads)
    uniform_values(const __grid_constant__ RandomStartArgs a, int64_t quads) {
  const Box<ArithmeticOf<T>, RandomStartArgs> box(a);
  const int64_t all = a.rows * quads, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const Split place = split(i, quads);
    const int64_t row = place.quotient, quad = place.remainder;
    const Philox4 words = quad_words(a, row, quad);
    const double eps = at(a.eps, row);
    double offset[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) offset[j] = mul(signed_unit(words.v[j]), eps);
    write_quad<T>(a, row, quad, offset, box);
  }
}

// One block per row: the norm of its Gaussian vector, then the vector again, scaled. Drawing it twice costs no memory.
template <typename T>
__global__ void __launch_bounds__(kRandomThreads)
    gaussian_rows(const __grid_constant__ RandomStartArgs a, int64_t quads) {
  const Box<ArithmeticOf<T>, RandomStartArgs> box(a);
  OneBlock block;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    double normal[4], sum[1] = {0};
    for (int64_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
      normal_quad(a, row, quad, normal);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (4 * quad + j < a.dim) sum[0] = add(sum[0], mul(normal[j], normal[j]));
    }
    sum_over(block, sum);
    const double scale = ball_scale(a, row, sum[0]);
    for (int64_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
      normal_quad(a, row, quad, normal);
#pragma unroll
      for (int j = 0; j < 4; ++j) normal[j] = mul(normal[j], scale);
      write_quad<T>(a, row, quad, normal, box);
    }
  }
}

void random_start_linf(const RandomStartArgs& a) {
  const Launcher run(a.device);
  const int64_t quads = ceil_div(a.dim, 4);
  for_dtypes(a.dtype, a.dtype, [&](auto value, auto) {
    run("uniform_values", uniform_values<decltype(value)>, ceil_div(a.rows * quads, kRandomThreads), kRandomThreads, 0,
        a, quads);
  });
}

void random_start_l2(const RandomStartArgs& a) {
  const Launcher run(a.device);
  const int64_t quads = ceil_div(a.dim, 4);
  const int threads = threads_for(quads, kShortRowVectors, kRandomThreads);
  for_dtypes(a.dtype, a.dtype, [&](auto value, auto) {
    run("gaussian_rows", gaussian_rows<decltype(value)>, a.rows, threads, 0, a, quads);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  m.impl("random_start_linf", TORCH_BOX(&random_start<random_start_linf>));
  m.impl("random_start_l2", TORCH_BOX(&random_start<random_start_l2>));
}

}  // namespace advfeat::cuda
