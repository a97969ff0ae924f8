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

// Makes the device current while it lives, and launches on torch's current stream of that device.
class Launcher {
 public:
  explicit Launcher(int device) : device_(device), guard_(device) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
                  const Arguments&... arguments) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream_;
    try {
      if (shared > 48 * 1024)  // the default limit of a block; more has to be asked for, for each kernel and device
        STD_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
      STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    } catch (const std::exception& error) {
      std::ostringstream message;
      message << "advfeat: kernel " << name << " did not start on CUDA device " << device_ << " (" << config.gridDim.x
              << " blocks of " << threads << " threads, " << shared << " bytes of shared memory): " << error.what();
      throw std::runtime_error(message.str());
    }
  }

  // The shared memory that a block may ask for, beside the kernels' static arrays.
  int64_t shared_limit() const {
    int bytes = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_));
    return bytes - kStaticShared;
  }

  // Memory of torch's allocator: ordered by the current stream, and at a fixed place inside a captured graph.
  torch::stable::Tensor workspace(int64_t bytes) const {
    using torch::headeronly::DeviceType;
    using torch::headeronly::ScalarType;
    return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt,
                                torch::stable::Device(DeviceType::CUDA, device_));
  }

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace advfeat::cuda
