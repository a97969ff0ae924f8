// A random point of the ball around each sample, clipped to the box; the formulas of cpu/random_start.cpp, in float64.
#include <cmath>

#include "../philox.h"
#include "kernels.h"
#include "launch.h"
#include "reduction.cuh"
#include "values.cuh"

namespace advfeat::cuda {
namespace {

constexpr double kTwoPi = 2 * 3.14159265358979323846;

// Writes the values of one quad of a row: x0 + offset, clipped.
template <typename T>
__device__ void write_quad(const RandomStartArgs& a, int64_t row, int64_t quad, const double (&offset)[4],
                           Box<ArithmeticOf<T>, RandomStartArgs>& box) {
  using A = ArithmeticOf<T>;
  const T* x0 = static_cast<const T*>(a.x0) + row * a.dim;
  T* out = static_cast<T*>(a.out) + row * a.dim;
  box.start(4 * quad);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t i = 4 * quad + j;
    if (i >= a.dim) return;
    store(out[i], clip(add(static_cast<A>(load(x0[i])), static_cast<A>(offset[j])), box.lo, box.hi));
    box.next();
  }
}

template <typename T>
__global__ void __launch_bounds__(kRandomThreads)
    uniform_values(const __grid_constant__ RandomStartArgs a, int64_t quads) {
  Box<ArithmeticOf<T>, RandomStartArgs> box(a);
  const int64_t all = a.rows * quads, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += stride) {
    const Split place = split(i, quads);
    const int64_t row = place.quotient, quad = place.remainder;
    const Philox4 words = philox(a.seed, a.sample_ids[row], static_cast<uint32_t>(quad), Stream::values);
    const double eps = at(a.eps, row);
    double offset[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) offset[j] = mul(2 * open_unit(words.v[j]) - 1, eps);  // 2 u - 1 is exact
    write_quad<T>(a, row, quad, offset, box);
  }
}

// Two words give two normals (Box-Muller).
__device__ void normals(const RandomStartArgs& a, int64_t row, int64_t quad, double (&normal)[4]) {
  const Philox4 words = philox(a.seed, a.sample_ids[row], static_cast<uint32_t>(quad), Stream::values);
#pragma unroll
  for (int j = 0; j < 4; j += 2) {
    const double r = sqrt(-2 * log(open_unit(words.v[j])));
    double sine, cosine;
    sincos(kTwoPi * open_unit(words.v[j + 1]), &sine, &cosine);
    normal[j] = mul(r, cosine);
    normal[j + 1] = mul(r, sine);
  }
}

// A block a row: the norm of its Gaussian vector, then the vector again, scaled. Making it twice costs no memory.
template <typename T>
__global__ void __launch_bounds__(kRandomThreads)
    gaussian_rows(const __grid_constant__ RandomStartArgs a, int64_t quads) {
  Box<ArithmeticOf<T>, RandomStartArgs> box(a);
  OneBlock block;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    double normal[4], sum[1] = {0};
    for (int64_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
      normals(a, row, quad, normal);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (4 * quad + j < a.dim) sum[0] = add(sum[0], mul(normal[j], normal[j]));
    }
    sum_over(block, sum);
    const double u = open_unit(philox(a.seed, a.sample_ids[row], 0, Stream::radius).v[0]);
    const double scale = at(a.eps, row) * pow(u, 1.0 / static_cast<double>(a.dim)) / sqrt(sum[0]);
    for (int64_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
      normals(a, row, quad, normal);
#pragma unroll
      for (int j = 0; j < 4; ++j) normal[j] = mul(normal[j], scale);
      write_quad<T>(a, row, quad, normal, box);
    }
  }
}

}  // namespace

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
  const int threads = std::min(row_threads(quads), kRandomThreads);
  for_dtypes(a.dtype, a.dtype, [&](auto value, auto) {
    run("gaussian_rows", gaussian_rows<decltype(value)>, a.rows, threads, 0, a, quads);
  });
}

}  // namespace advfeat::cuda
