// Sums and maxima over a block, or over the blocks of a thread-block cluster, in one fixed order: the same bits in
// every run. No atomics.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cuda/ptx>

#include "host_device.h"
#include "tuning.h"

namespace advfeat::cuda {

// Combines the lanes' N values; every lane gets the results. Whole warps.
template <int N, typename Combine>
__device__ inline void warp_reduce(double (&v)[N], Combine combine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = combine(v[n], __shfl_xor_sync(0xFFFFFFFFu, v[n], offset));
}

// Combines the threads' N values; every thread gets the results. All threads of the block call it; whole warps.
template <int N, typename Combine>
__device__ inline void block_reduce(double (&v)[N], Combine combine) {
  static_assert(kTileThreads <= kMaxThreads && kRandomThreads <= kMaxThreads);
  __shared__ double of_warps[N][kMaxThreads / kWarp];
  warp_reduce(v, combine);
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
  warp_reduce(v, combine);
}

// The blocks that share a row: one alone.
struct OneBlock {
  static constexpr bool kCompiled = true;
  __device__ int rank() const { return 0; }  // of this block among those of its row
  __device__ int64_t first_row() const { return blockIdx.x; }
  __device__ int64_t rows_at_once() const { return gridDim.x; }
  __device__ void wait_for_start() const {}

  template <int N, typename Combine>
  __device__ void reduce(double (&v)[N], Combine combine) {
    block_reduce(v, combine);
  }
};

namespace ptx = ::cuda::ptx;

// The blocks that share a row: a thread-block cluster. Only from sm_90 on; older architectures get no code for it, and
// the host asks (Launcher::cluster_count) before it launches.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
class BlockCluster {
 public:
  static constexpr bool kCompiled = true;

  __device__ int rank() const { return static_cast<int>(cluster().block_rank()); }
  __device__ int64_t first_row() const { return blockIdx.x / cluster().num_blocks(); }
  __device__ int64_t rows_at_once() const { return gridDim.x / cluster().num_blocks(); }

  // To be called once, before the first reduction: the shared memory of a block exists only once it has started.
  __device__ void wait_for_start() const {
    if (threadIdx.x == 0) {
      for (int turn = 0; turn < 2; ++turn) ptx::mbarrier_init(&inboxes()[turn].arrivals, 1);
      ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    }
    cluster().sync();
  }

  // Each block sends its result to every other and itself, and waits until as many bytes have arrived. It then reads
  // its own memory only, so that any block may end after its last reduction. There are two inboxes, used in turn: a
  // block sends into the same one again only after the results of the next reduction have come, which every other sent
  // after it had read this one's. Not by cluster.sync(): that also waits for all that a block has written to global
  // memory.
  template <int N, typename Combine>
  __device__ void reduce(double (&v)[N], Combine combine) {
    static_assert(N <= kMaxValues);
    block_reduce(v, combine);
    const int blocks = static_cast<int>(cluster().num_blocks()), lane = threadIdx.x % kWarp;
    Inbox& mine = inboxes()[turn_];
    if (threadIdx.x == 0)
      ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &mine.arrivals,
                                     static_cast<uint32_t>(blocks * N * sizeof(double)));
    if (threadIdx.x < blocks) {
      Inbox* theirs = cluster().map_shared_rank(&mine, static_cast<int>(threadIdx.x));
#pragma unroll
      for (int n = 0; n < N; ++n) ptx::st_async(&theirs->v[n][rank()], v[n], &theirs->arrivals);
    }
    while (!ptx::mbarrier_try_wait_parity(&mine.arrivals, parity_)) {
    }
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = lane < blocks ? mine.v[n][lane] : 0;
    warp_reduce(v, combine);
    turn_ ^= 1;
    if (turn_ == 0) parity_ ^= 1;
  }

 private:
  static constexpr int kMaxValues = 3;
  struct Inbox {
    double v[kMaxValues][kMaxCluster];  // by the sender's rank
    uint64_t arrivals;                  // an mbarrier that counts bytes
  };
  static_assert(kMaxCluster <= kWarp);

  __device__ static cooperative_groups::cluster_group cluster() { return cooperative_groups::this_cluster(); }
  __device__ static Inbox* inboxes() {
    __shared__ Inbox of_turns[2];
    return of_turns;
  }

  int turn_ = 0;
  uint32_t parity_ = 0;  // of the inboxes' phases
};
#else
struct BlockCluster {
  static constexpr bool kCompiled = false;
};
#endif

// Sums over all threads of the blocks; each gets them.
template <typename Blocks, int N>
__device__ inline void sum_over(Blocks& blocks, double (&v)[N]) {
  blocks.reduce(v, [](double a, double b) { return a + b; });
}

// Maxima of magnitudes.
template <typename Blocks, int N>
__device__ inline void max_over(Blocks& blocks, double (&v)[N]) {
  blocks.reduce(v, [](double a, double b) { return larger(a, b); });
}

// Of a row of `dim` values that one block does: body(i) adds value i to v, or makes v larger by it; each thread gets
// the results.
template <int N, typename Body>
__device__ inline void sum_row(int64_t dim, double (&v)[N], Body body) {
  OneBlock block;
  for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) body(i);
  sum_over(block, v);
}
template <int N, typename Body>
__device__ inline void max_row(int64_t dim, double (&v)[N], Body body) {
  OneBlock block;
  for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) body(i);
  max_over(block, v);
}

}  // namespace advfeat::cuda
