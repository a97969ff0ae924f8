// What every launch needs: the device, torch's current stream, a check with a message that says what failed.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "tuning.h"

namespace advfeat::cuda {

// Blocks that run together: a thread-block cluster, or a single block.
struct ClusterShape {
  int blocks, threads;
  int64_t shared;  // bytes per block
};

// Makes the device current while it lives, and launches on torch's current stream of that device.
class Launcher {
 public:
  explicit Launcher(int device) : device_(device), guard_(device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
                  const Arguments&... arguments) const {
    start(name, kernel, {1, threads, shared}, blocks, arguments...);
  }

  // The same for so many clusters.
  template <typename... Parameters, typename... Arguments>
  void clusters(const char* name, void (*kernel)(Parameters...), const ClusterShape& shape, int64_t count,
                const Arguments&... arguments) const {
    start(name, kernel, shape, count * shape.blocks, arguments...);
  }

  // How many clusters of this shape run at once; 0 where the device or the compiled code has none.
  template <typename... Parameters>
  int64_t cluster_count(void (*kernel)(Parameters...), const ClusterShape& shape) const {
    if (attribute(cudaDevAttrClusterLaunch) == 0) return 0;
    // A library built for older architectures runs on a new device, from PTX: then there is no code for clusters in it.
    cudaFuncAttributes compiled = {};
    STD_CUDA_CHECK(cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel)));
    if (compiled.ptxVersion < 90) return 0;
    int count = 0;
    const Config config(shape, shape.blocks, stream_);
    const bool can = allow(kernel, shape) == cudaSuccess &&
                     cudaOccupancyMaxActiveClusters(&count, kernel, &config.config) == cudaSuccess;
    if (!can) cudaGetLastError();  // a shape that is refused is an answer, and must not surface later as an error
    return can ? count : 0;
  }

  // The shared memory of one of so many blocks on a multiprocessor, beside the kernels' static arrays.
  int64_t shared_limit(int per_multiprocessor) const {
    const int64_t block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    const int64_t share = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / per_multiprocessor -
                          attribute(cudaDevAttrReservedSharedMemoryPerBlock);
    return std::min(block, share) - kStaticShared;
  }

  // Memory of torch's allocator: ordered by the current stream, and at a fixed place inside a captured graph.
  torch::stable::Tensor workspace(int64_t bytes) const {
    using torch::headeronly::DeviceType;
    using torch::headeronly::ScalarType;
    return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt,
                                torch::stable::Device(DeviceType::CUDA, device_));
  }

 private:
  // The launch configuration, and the attribute that it points to.
  struct Config {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster = {};

    Config(const ClusterShape& shape, int64_t blocks, cudaStream_t stream) {
      config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
      config.blockDim = dim3(static_cast<unsigned>(shape.threads));
      config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
      config.stream = stream;
      if (shape.blocks == 1) return;
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = static_cast<unsigned>(shape.blocks);
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
      config.attrs = &cluster;
      config.numAttrs = 1;
    }
    Config(const Config&) = delete;
  };

  // What is beyond the defaults has to be asked for, for each kernel and device. Always for the same, the most there
  // is: no call takes from another thread's, or from a captured graph, what it needs.
  template <typename Kernel>
  cudaError_t allow(Kernel* kernel, const ClusterShape& shape) const {
    const void* function = reinterpret_cast<const void*>(kernel);
    cudaError_t error = cudaSuccess;
    if (shape.shared + kStaticShared > kSharedForAll)  // the kernel's static arrays count as well
      error =
          cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStaticShared));
    if (error == cudaSuccess && shape.blocks > kPortableCluster)
      error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return error;
  }

  template <typename... Parameters, typename... Arguments>
  void start(const char* name, void (*kernel)(Parameters...), const ClusterShape& shape, int64_t blocks,
             const Arguments&... arguments) const {
    const Config config(shape, blocks, stream_);
    try {
      STD_CUDA_CHECK(allow(kernel, shape));
      STD_CUDA_CHECK(cudaLaunchKernelEx(&config.config, kernel, arguments...));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    } catch (const std::exception& error) {
      std::ostringstream message;
      message << "advfeat: kernel " << name << " did not start on CUDA device " << device_ << " ("
              << config.config.gridDim.x << " blocks of " << shape.threads << " threads";
      if (shape.blocks > 1) message << " in clusters of " << shape.blocks;
      message << ", " << shape.shared << " bytes of shared memory): " << error.what();
      throw std::runtime_error(message.str());
    }
  }

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }

  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace advfeat::cuda
