// What the host calls of CUDA: limits are asked for and checked, and launches written down, before the emulator runs
// them.
#include "cuda_runtime.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "../../csrc/core/tuning.h"

namespace emulator {
namespace {

// What a launch may use without asking: of shared memory with the kernel's own arrays, whose size is known to the
// compiler alone and taken for the most that tuning.h grants them.
constexpr size_t kDynamicForAll = advfeat::cuda::kSharedForAll - advfeat::cuda::kStaticShared;
constexpr unsigned kClusterForAll = 8;

struct Allowed {
  size_t shared = kDynamicForAll;
  bool large_cluster = false;
};
std::map<const void*, Allowed> allowed;
cudaError_t last_error = cudaSuccess;  // that nobody has asked for
std::vector<Launch> launches;

unsigned cluster_of(const cudaLaunchConfig_t& config) {
  if (config.numAttrs == 0) return 1;
  const Index& size = config.attrs[0].val.clusterDim;
  if (config.numAttrs != 1 || config.attrs[0].id != cudaLaunchAttributeClusterDimension || size.y != 1 || size.z != 1)
    fail("a launch attribute that is no cluster of one dimension");
  return size.x;
}

}  // namespace

cudaError_t failed() { return last_error = cudaErrorInvalidValue; }

Launch checked(const void* kernel, const cudaLaunchConfig_t& config) {
  const std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
  const Launch asked{config.gridDim.x, cluster_of(config), config.blockDim.x, config.dynamicSmemBytes};
  const bool large = asked.cluster > kClusterForAll;
  if (asked.blocks == 0 || asked.blocks % asked.cluster) fail("a launch of no blocks, or of no whole clusters");
  if (asked.threads == 0 || asked.threads > 1024 || asked.threads % kWarpSize) fail("a launch of no whole warps");
  if (asked.shared > allowed[kernel].shared) fail("a launch with more shared memory than it was allowed");
  if (large && !allowed[kernel].large_cluster) fail("a launch with a larger cluster than it was allowed");
  if (asked.cluster > 1 && asked.cluster > static_cast<unsigned>(device.largest_cluster))
    fail("a launch with a larger cluster than the device has");
  if (asked.cluster > 1 && device.ptx_version < 90) fail("a launch of a cluster without code for it");
  launches.push_back(asked);
  return asked;
}

cudaError_t clusters_at_once(int* count, const void* kernel, const cudaLaunchConfig_t& config) {
  const std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
  const unsigned size = cluster_of(config);
  if (config.dynamicSmemBytes > allowed[kernel].shared) return failed();
  if (size > kClusterForAll && !allowed[kernel].large_cluster) return failed();
  if (size > static_cast<unsigned>(device.largest_cluster)) return failed();
  *count = device.clusters_at_once;
  return cudaSuccess;
}

}  // namespace emulator

cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute what, int value) {
  const std::lock_guard<std::recursive_mutex> alone(emulator::one_at_a_time);
  emulator::Allowed& allowed = emulator::allowed[kernel];
  if (what == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    allowed.large_cluster = value != 0;
  } else {
    if (value + advfeat::cuda::kStaticShared > emulator::device.shared_per_block) return emulator::failed();
    allowed.shared = static_cast<size_t>(value);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = emulator::device.ptx_version;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  switch (what) {
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulator::device.shared_per_multiprocessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulator::device.shared_per_block;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrClusterLaunch:
      *value = emulator::device.largest_cluster > 0;
      break;
  }
  return cudaSuccess;
}

// What the tests call (emulated_cuda.py).
extern "C" __attribute__((visibility("default"))) void advfeat_set_device(const emulator::Device* device) {
  const std::lock_guard<std::recursive_mutex> alone(emulator::one_at_a_time);
  emulator::device = *device;
  emulator::allowed.clear();
}

// The launches since the last call, the first `room` of them; how many there were.
extern "C" __attribute__((visibility("default"))) size_t advfeat_take_launches(emulator::Launch* to, size_t room) {
  const std::lock_guard<std::recursive_mutex> alone(emulator::one_at_a_time);
  const size_t count = emulator::launches.size();
  std::copy_n(emulator::launches.begin(), std::min(count, room), to);
  emulator::launches.clear();
  return count;
}
