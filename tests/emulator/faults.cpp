// Kernels with one mistake each, and a right one, for the test that the emulator sees mistakes (test_emulated_cuda.py).
#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>

namespace advfeat::cuda {
extern __shared__ __align__(16) unsigned char advfeat_dynamic_shared[];

namespace {

float* shared() { return reinterpret_cast<float*>(advfeat_dynamic_shared); }

struct Arguments {
  int mistake;
  const float* in;
  float* out;
};

enum Mistake {
  none,
  thread_skips_barrier,
  thread_ends_before_barrier,
  lane_skips_shuffle,
  no_barrier_before_read,
  write_beyond_shared,
  copy_not_waited_for,
  copy_never_arrives,
  copy_not_aligned,
  other_block_not_started,
  other_block_ended,
  no_cluster_barrier_before_read,
  too_much_shared,
  too_large_cluster,
  no_whole_warps,
};

// out[i] = the sum over the cluster of in, twice, from shared memory.
void sum(Arguments a) {
  const auto cluster = cooperative_groups::this_cluster();
  __shared__ double of_warps[2];
  __shared__ double of_blocks[16];
  const unsigned thread = threadIdx.x;
  if (a.mistake != other_block_not_started) cluster.sync();

  const bool skips = thread == 40;
  const int shift = a.mistake == copy_not_aligned ? 1 : 0;
  float* mine = shared() + thread;
  __pipeline_memcpy_async(reinterpret_cast<char*>(mine) + shift, a.in + blockIdx.x * blockDim.x + thread, sizeof *mine);
  if (a.mistake != copy_never_arrives) __pipeline_commit();
  if (a.mistake != copy_not_waited_for) __pipeline_wait_prior(0);
  double v = *mine;
  if (a.mistake == copy_not_waited_for) __pipeline_wait_prior(0);
  if (a.mistake == write_beyond_shared && skips) shared()[blockDim.x] = 0;
  if (a.mistake == thread_ends_before_barrier && skips) return;

  for (int lanes = 16; lanes > 0; lanes /= 2)
    if (!(a.mistake == lane_skips_shuffle && skips)) v += __shfl_xor_sync(0xFFFFFFFFu, v, lanes);
  if (thread % 32 == 0) of_warps[thread / 32] = v;
  if (!(a.mistake == thread_skips_barrier && skips) && a.mistake != no_barrier_before_read) __syncthreads();
  v = of_warps[0] + of_warps[1];

  const unsigned rank = cluster.block_rank(), blocks = cluster.num_blocks();
  if (a.mistake == other_block_ended && rank == 0) return;
  if (thread < blocks) cluster.map_shared_rank(of_blocks, static_cast<int>(thread))[rank] = v;
  if (a.mistake != no_cluster_barrier_before_read && a.mistake != other_block_ended) cluster.sync();
  v = 0;
  for (unsigned b = 0; b < blocks; ++b) v += of_blocks[b];
  if (a.mistake == no_cluster_barrier_before_read) cluster.sync();
  a.out[blockIdx.x * blockDim.x + thread] = static_cast<float>(v);
}

}  // namespace
}  // namespace advfeat::cuda

// Sums 4 clusters of 4 blocks of 64 values. What was wrong with it, or an empty string.
extern "C" __attribute__((visibility("default"))) void advfeat_run_mistake(int mistake, const float* in, float* out,
                                                                           char* message, size_t room) {
  using namespace advfeat::cuda;
  cudaLaunchAttribute attribute{cudaLaunchAttributeClusterDimension, {{4, 1, 1}}};
  cudaLaunchConfig_t config{dim3(16), dim3(64), 64 * sizeof(float), nullptr, &attribute, 1};
  if (mistake == too_much_shared) config.dynamicSmemBytes = 100 * 1024;
  if (mistake == too_large_cluster) attribute.val.clusterDim.x = 16;
  if (mistake == no_whole_warps) config.blockDim = dim3(63);
  message[0] = '\0';
  try {
    cudaLaunchKernelEx(&config, sum, Arguments{mistake, in, out});
  } catch (const std::exception& error) {
    strncpy(message, error.what(), room - 1);
    message[room - 1] = '\0';
  }
}
