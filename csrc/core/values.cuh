// A value and a vector of values on the device: types, loads, stores, the box. Same results, bit for bit, as in
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
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
  T v[N];
};

template <typename T, int N>
__device__ inline Vector<T, N> zero_vector() {
  Vector<T, N> values;
#pragma unroll
  for (int k = 0; k < N; ++k) store(values.v[k], 0);
  return values;
}

// N values at once: p is a multiple of their size.
template <int N, typename T>
__device__ inline Vector<T, N> read_whole(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}

// The N values from `i` on, one by one; those at `dim` and beyond are zeros.
template <int N, typename T>
__device__ inline Vector<T, N> read_singly(const T* p, int64_t i, int64_t dim) {
  Vector<T, N> values = zero_vector<T, N>();
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (i + k < dim) values.v[k] = p[i + k];
  return values;
}

// The same, at once where they can be. Aligned: p + i is a multiple of the vector's size.
template <int N, typename T>
__device__ inline Vector<T, N> read_vector(const T* p, int64_t i, int64_t dim, bool aligned) {
  return aligned && i + N <= dim ? read_whole<N>(p + i) : read_singly<N>(p, i, dim);
}

template <int N, typename T>
__device__ inline void write_vector(T* p, int64_t i, int64_t dim, bool aligned, const Vector<T, N>& values) {
  if (aligned && i + N <= dim) {
    *reinterpret_cast<Vector<T, N>*>(p + i) = values;
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (i + k < dim) p[i + k] = values.v[k];
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

// What the kernels of a step are compiled for.
template <typename T, typename G, bool kWithMomentum>
struct StepTypes {
  using Value = T;  // of x, x0 and velocity
  using Grad = G;
  using A = ArithmeticOf<T>;
  static constexpr int width = kWidth<T>;
  static constexpr bool momentum = kWithMomentum;
};

// Whether all tensors of a step can be read and written by whole vectors.
inline bool step_aligned(const StepArgs& a, int64_t value_bytes, int64_t grad_bytes) {
  const auto ok = [&](const void* p, int64_t stride, int64_t size, int64_t bytes) {
    return rows_aligned(p, a.rows, stride * size, bytes);
  };
  return ok(a.out, a.out_stride, value_bytes, kVectorBytes) && ok(a.x, a.x_stride, value_bytes, kVectorBytes) &&
         ok(a.x0, a.x0_stride, value_bytes, kVectorBytes) &&
         (!a.velocity || ok(a.velocity, a.velocity_stride, value_bytes, kVectorBytes)) &&
         (!a.grad || ok(a.grad, a.grad_stride, grad_bytes, kVectorBytes / value_bytes * grad_bytes));
}

struct NoVelocity {};

// The vectors of x, gradient (zeros without one), x0 and velocity at one place of a row, each in its own type.
template <typename K>
struct Operands {
  using A = typename K::A;
  using Values = Vector<typename K::Value, K::width>;

  Values x, x0;
  Vector<typename K::Grad, K::width> grad;
  std::conditional_t<K::momentum, Values, NoVelocity> velocity;

  // The point from which value k moves.
  __device__ A from(int k, A momentum) const {
    if constexpr (K::momentum) return add(static_cast<A>(load(x.v[k])), mul(momentum, load(velocity.v[k])));
    return load(x.v[k]);
  }
};

// A row in global memory.
template <typename K>
struct Row {
  using T = typename K::Value;
  using G = typename K::Grad;
  using A = typename K::A;

  T *out, *velocity;  // velocity: with momentum only
  const T *x, *x0;
  const G* grad;  // null: no gradient
  A momentum;
  int64_t dim;
  bool aligned;

  __device__ Row(const StepArgs& a, int64_t row, bool aligned_)
      : out(static_cast<T*>(a.out) + row * a.out_stride),
        velocity(K::momentum ? static_cast<T*>(a.velocity) + row * a.velocity_stride : nullptr),
        x(static_cast<const T*>(a.x) + row * a.x_stride),
        x0(static_cast<const T*>(a.x0) + row * a.x0_stride),
        grad(a.grad ? static_cast<const G*>(a.grad) + row * a.grad_stride : nullptr),
        momentum(static_cast<A>(a.momentum)),
        dim(a.dim),
        aligned(aligned_) {}

  __device__ Operands<K> read(int64_t vector) const {
    constexpr int width = kWidth<T>;
    const int64_t i = vector * width;
    Operands<K> v;
    // One branch for all tensors: after a branch of its own each would be waited for before the next is asked for.
    if (aligned && i + width <= dim) {
      v.x = read_whole<width>(x + i);
      v.x0 = read_whole<width>(x0 + i);
      if constexpr (K::momentum) v.velocity = read_whole<width>(velocity + i);
      v.grad = grad ? read_whole<width>(grad + i) : zero_vector<G, width>();
    } else {
      v.x = read_singly<width>(x, i, dim);
      v.x0 = read_singly<width>(x0, i, dim);
      if constexpr (K::momentum) v.velocity = read_singly<width>(velocity, i, dim);
      v.grad = grad ? read_singly<width>(grad, i, dim) : zero_vector<G, width>();
    }
    return v;
  }

  // Writes what the vector `from` has become; with momentum also how far it has moved.
  __device__ void write(int64_t vector, const Vector<T, kWidth<T>>& values, const Operands<K>& from) const {
    const int64_t i = vector * kWidth<T>;
    write_vector(out, i, dim, aligned, values);
    if constexpr (K::momentum) {
      Vector<T, kWidth<T>> moved;
#pragma unroll
      for (int k = 0; k < kWidth<T>; ++k)
        store(moved.v[k], sub(static_cast<A>(load(values.v[k])), static_cast<A>(load(from.x.v[k]))));
      write_vector(velocity, i, dim, aligned, moved);
    }
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
  __device__ explicit Box(const Args& a) : a_(a), lo_(static_cast<A>(a.lo.value)), hi_(static_cast<A>(a.hi.value)) {}

  // Calls body(k, lo, hi) for the N values of a row from value `first` on.
  template <int N, typename Body>
  __device__ void for_values(int64_t first, Body body) const {
    if (a_.lo.channels || a_.hi.channels) return by_channel<N>(first, body);
    // One branch for all of them, not one for each: with two bytes a value, instructions would bind, not memory.
#pragma unroll
    for (int k = 0; k < N; ++k) body(k, lo_, hi_);
  }

 private:
  template <int N, typename Body>
  __device__ void by_channel(int64_t first, Body body) const {
    const Split place = split(first, a_.inner);
    int64_t within = place.remainder, channel = split(place.quotient, a_.channels).remainder;
    A lo = static_cast<A>(at(a_.lo, channel)), hi = static_cast<A>(at(a_.hi, channel));
#pragma unroll
    for (int k = 0; k < N; ++k) {
      body(k, lo, hi);
      if (++within < a_.inner) continue;
      within = 0;
      if (++channel == a_.channels) channel = 0;
      lo = static_cast<A>(at(a_.lo, channel));
      hi = static_cast<A>(at(a_.hi, channel));
    }
  }

  const Args& a_;  // in constant memory
  A lo_, hi_;
};

// Calls body(T{}, G{}) for two dtypes, of values and gradient.
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

// Calls body(StepTypes<...>{}) for the types of a step.
template <typename Body>
void for_step_types(const StepArgs& a, Body body) {
  for_dtypes(a.dtype, a.grad_dtype, [&](auto value, auto grad) {
    if (a.velocity)
      body(StepTypes<decltype(value), decltype(grad), true>{});
    else
      body(StepTypes<decltype(value), decltype(grad), false>{});
  });
}

}  // namespace advfeat::cuda
