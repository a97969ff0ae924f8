// The part of CUDA that the .cu files of csrc use, over the emulator.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// The emulator gives each block its own copy of this library's thread-local storage.
#define __shared__ thread_local

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline void __syncthreads() { emulator::block_barrier(); }
inline int __syncthreads_or(int predicate) { return emulator::block_barrier_or(predicate != 0); }
inline double __shfl_xor_sync(unsigned mask, double value, int lanes) {
  if (mask != 0xFFFFFFFFu) emulator::fail("a shuffle by a part of a warp");
  return emulator::shuffle_xor(value, lanes);
}
inline unsigned long long __shfl_xor_sync(unsigned mask, unsigned long long value, int lanes) {
  return std::bit_cast<unsigned long long>(__shfl_xor_sync(mask, std::bit_cast<double>(value), lanes));
}

// All threads of a launch take turns on one thread of the CPU.
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
  const unsigned long long before = *to;
  *to += value;
  return before;
}

[[noreturn]] inline void __trap() { emulator::fail("a trap"); }

// One rounding each: compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// What the host calls.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrClusterLaunch,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };

struct dim3 : emulator::Index {
  explicit dim3(unsigned x_ = 1) : Index{x_, 1, 1} {}
};
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    emulator::Index clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulator {

// What a kernel was allowed; throws for what a launch must not be.
Launch checked(const void* kernel, const cudaLaunchConfig_t& config);
cudaError_t clusters_at_once(int* count, const void* kernel, const cudaLaunchConfig_t& config);

}  // namespace emulator

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute what, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device);
cudaError_t cudaGetLastError();

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, void (*kernel)(Parameters...),
                                           const cudaLaunchConfig_t* config) {
  return emulator::clusters_at_once(count, reinterpret_cast<const void*>(kernel), *config);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  emulator::launch(emulator::checked(reinterpret_cast<const void*>(kernel), *config), [&] { kernel(arguments...); });
  return cudaSuccess;
}
