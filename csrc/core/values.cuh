// A value and a group of values on the device: types, loads, stores, the box. Same results, bit for bit, as
// rows.inl.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "args.h"
#include "tuning.h"

namespace advfeat::cuda {

using f16 = __half;
using bf16 = __nv_bfloat16;

template <typename T>
using ArithmeticOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float load(float v) { return v; }
__device__ inline double load(double v) { return v; }
__device__ inline float load(f16 v) { return __half2float(v); }
__device__ inline float load(bf16 v) { return __bfloat162float(v); }

__device__ inline void store(float& to, float v) { to = v; }
__device__ inline void store(double& to, double v) { to = v; }
__device__ inline void store(f16& to, float v) { to = __float2half_rn(v); }  // to nearest even, as on the CPU
__device__ inline void store(bf16& to, float v) { to = __float2bfloat16_rn(v); }

// The arithmetic on values is written with these, so that no compiler flag contracts a product and a sum into one
// rounding: the CPU kernels round both, and the two devices give the same bits.
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ inline double mul(double a, double b) { return __dmul_rn(a, b); }

template <typename T>
constexpr int kWidth = kGroupBytes / static_cast<int>(sizeof(T));

template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];
};

template <typename T, int N>
__device__ inline Pack<T, N> zero_pack() {
  Pack<T, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) store(pack.v[k], 0);
  return pack;
}

// The N values from `i` on; those at `dim` and beyond are zeros. Aligned: p + i is a multiple of the pack's size.
template <int N, typename T>
__device__ inline Pack<T, N> read_pack(const T* p, int64_t i, int64_t dim, bool aligned) {
  if (aligned && i + N <= dim) return *reinterpret_cast<const Pack<T, N>*>(p + i);
  Pack<T, N> pack = zero_pack<T, N>();
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (i + k < dim) pack.v[k] = p[i + k];
  return pack;
}

template <int N, typename T>
__device__ inline void write_pack(T* p, int64_t i, int64_t dim, bool aligned, const Pack<T, N>& pack) {
  if (aligned && i + N <= dim) {
    *reinterpret_cast<Pack<T, N>*>(p + i) = pack;
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (i + k < dim) p[i + k] = pack.v[k];
}

// The shared memory that a launch asked for.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char advfeat_dynamic_shared[];
  return advfeat_dynamic_shared;
}

// Whether every row of a tensor starts at a multiple of `bytes`.
inline bool rows_aligned(const void* p, int64_t rows, int64_t stride_bytes, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0 && (rows < 2 || stride_bytes % bytes == 0);
}

// Whether all tensors of a step can be read and written by whole packs.
inline bool step_aligned(const StepArgs& a, int64_t value_bytes, int64_t grad_bytes) {
  const auto ok = [&](const void* p, int64_t stride, int64_t size, int64_t bytes) {
    return rows_aligned(p, a.rows, stride * size, bytes);
  };
  return ok(a.out, a.out_stride, value_bytes, kGroupBytes) && ok(a.x, a.x_stride, value_bytes, kGroupBytes) &&
         ok(a.x0, a.x0_stride, value_bytes, kGroupBytes) &&
         (!a.grad || ok(a.grad, a.grad_stride, grad_bytes, kGroupBytes / value_bytes * grad_bytes));
}

// A group of x, gradient (zeros without one) and x0, each in its own type.
template <typename T, typename G>
struct Group {
  Pack<T, kWidth<T>> x, x0;
  Pack<G, kWidth<T>> grad;
};

// A row in global memory.
template <typename T, typename G>
struct Row {
  T* out;
  const T *x, *x0;
  const G* grad;  // null: no gradient
  int64_t dim;
  bool aligned;

  __device__ Row(const StepArgs& a, int64_t row, bool aligned_)
      : out(static_cast<T*>(a.out) + row * a.out_stride),
        x(static_cast<const T*>(a.x) + row * a.x_stride),
        x0(static_cast<const T*>(a.x0) + row * a.x0_stride),
        grad(a.grad ? static_cast<const G*>(a.grad) + row * a.grad_stride : nullptr),
        dim(a.dim),
        aligned(aligned_) {}

  __device__ Group<T, G> read(int64_t group) const {
    const int64_t i = group * kWidth<T>;
    Group<T, G> v;
    v.x = read_pack<kWidth<T>>(x, i, dim, aligned);
    v.x0 = read_pack<kWidth<T>>(x0, i, dim, aligned);
    v.grad = grad ? read_pack<kWidth<T>>(grad, i, dim, aligned) : zero_pack<G, kWidth<T>>();
    return v;
  }

  __device__ void write(int64_t group, const Pack<T, kWidth<T>>& pack) const {
    write_pack(out, group * kWidth<T>, dim, aligned, pack);
  }
};

// Division of an index: 32 bits wide where both fit, since 64-bit division is a long subroutine.
struct Split {
  int64_t quotient, remainder;
};
__device__ inline Split split(int64_t i, int64_t by) {
  if (i <= UINT32_MAX && by <= UINT32_MAX) {
    const uint32_t a = static_cast<uint32_t>(i), b = static_cast<uint32_t>(by);
    return {a / b, a % b};
  }
  return {i / by, i % by};
}

// The bounds of consecutive values: one pair for all, or looked up where the channel changes.
template <typename A, typename Args>
class Box {
 public:
  __device__ explicit Box(const Args& a) : lo(static_cast<A>(a.lo.value)), hi(static_cast<A>(a.hi.value)), a_(a) {}

  // Goes to value i of a row.
  __device__ void start(int64_t i) {
    if (!by_channel()) return;
    const Split place = split(i, a_.inner);
    within_ = place.remainder;
    channel_ = split(place.quotient, a_.channels).remainder;
    look_up();
  }

  // Goes to the next value.
  __device__ void next() {
    if (!by_channel() || ++within_ < a_.inner) return;
    within_ = 0;
    if (++channel_ == a_.channels) channel_ = 0;
    look_up();
  }

  A lo, hi;

 private:
  __device__ bool by_channel() const { return a_.lo.channels || a_.hi.channels; }
  __device__ void look_up() {
    lo = static_cast<A>(at(a_.lo, channel_));
    hi = static_cast<A>(at(a_.hi, channel_));
  }
  const Args& a_;  // in constant memory
  int64_t channel_ = 0, within_ = 0;
};

// Calls body(T{}, G{}) for the two dtypes of a step.
template <typename Body>
void for_dtypes(Dtype dtype, Dtype grad_dtype, Body body) {
  switch (dtype) {
    case Dtype::float64:
      return body(double{}, double{});
    case Dtype::float16:
      return body(f16{}, f16{});
    case Dtype::bfloat16:
      return body(bf16{}, bf16{});
    case Dtype::float32:
      break;
  }
  if (grad_dtype == Dtype::float16) return body(float{}, f16{});
  if (grad_dtype == Dtype::bfloat16) return body(float{}, bf16{});
  return body(float{}, float{});
}

}  // namespace advfeat::cuda
