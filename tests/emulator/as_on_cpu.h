// Included before every source: csrc as a second library, "advfeat_emulated", whose CUDA kernels take tensors on the
// CPU. Of the .cpp files it has the operators and their checks; their CPU kernels are left out.
#pragma once

// First all of torch that the sources include, so that the names below change in the sources alone.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#define advfeat advfeat_emulated
#ifdef ADVFEAT_CUDA_SOURCE
#define CUDA CPU  // the dispatch key and the device of workspaces
#else
// Nothing calls this function, nor what only it refers to, so the compiler drops the CPU kernels of the file.
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) \
  [[maybe_unused]] static void not_registered(torch::stable::detail::StableLibrary& m)
#endif

// What needs torch's CUDA library.
namespace torch::stable::accelerator {
struct NoDeviceGuard {
  explicit NoDeviceGuard(int) {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard NoDeviceGuard
#define aoti_torch_get_current_cuda_stream(device, stream) (*(stream) = nullptr, (device), 0)
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) \
  if (const int error = (call)) throw std::runtime_error("CUDA error " + std::to_string(error) + " of " #call)
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_KERNEL_LAUNCH_CHECK() STD_CUDA_CHECK(cudaGetLastError())
