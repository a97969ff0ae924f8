// Sums and maxima over a block, in one fixed order: the same bits in every run. No atomics.
#pragma once

#include <cuda_runtime.h>

#include "tuning.h"

namespace advfeat::cuda {

// Adds the threads' N values; every thread gets the sums. All threads of the block call it; whole warps.
template <int N, typename Combine>
__device__ void block_reduce(double (&v)[N], Combine combine) {
  __shared__ double of_warps[N][kMaxThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = combine(v[n], __shfl_xor_sync(0xFFFFFFFFu, v[n], offset));
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  if (warps == 1) return;
  __syncthreads();  // of_warps may still be read from the call before
  if (lane == 0)
#pragma unroll
    for (int n = 0; n < N; ++n) of_warps[n][warp] = v[n];
  __syncthreads();
  // Each warp combines the warps' values itself, in the same order: that saves the barrier of handing the result out.
#pragma unroll
  for (int n = 0; n < N; ++n) v[n] = lane < warps ? of_warps[n][lane] : 0;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = combine(v[n], __shfl_xor_sync(0xFFFFFFFFu, v[n], offset));
}

template <int N>
__device__ void block_sum(double (&v)[N]) {
  block_reduce(v, [](double a, double b) { return a + b; });
}

// Maxima of magnitudes; a NaN wins over every number.
template <int N>
__device__ void block_max(double (&v)[N]) {
  block_reduce(v, [](double a, double b) { return b > a || b != b ? b : a; });
}

}  // namespace advfeat::cuda
