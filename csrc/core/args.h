// The contract between the checks and the kernels: plain structs, no torch types. What one operator alone needs is
// beside it, in ops/.
//
// A batch [B, ...] is `rows` samples of `dim` values. Inside a row the values of every tensor of one call lie densely
// and in the same order (contiguous or channels_last); rows may be further apart than `dim`, or 0 apart for an expanded
// tensor.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace advfeat {

enum class Dtype : int { float32, float64, float16, bfloat16 };

// A number for all rows, or one number per row (device pointer on CUDA, where it is never read by the host).
struct PerRow {
  double value = 0;
  const double* rows = nullptr;  // [B] or null
};

// A bound for all values, or one per channel: value i of a row belongs to channel (i / inner) % channels.
struct Bound {
  double value = 0;
  const double* channels = nullptr;  // [C] or null
};

ADVFEAT_HOST_DEVICE inline double at(const PerRow& p, int64_t row) { return p.rows ? p.rows[row] : p.value; }
ADVFEAT_HOST_DEVICE inline double at(const Bound& b, int64_t channel) {
  return b.channels ? b.channels[channel] : b.value;
}

// out = clip(ball(x + momentum velocity + step)), the arguments of every step and, without a gradient, of the
// projections. A step with momentum also sets velocity = out - x (Polyak's heavy ball).
struct StepArgs {
  void* out = nullptr;  // may be x
  const void* x = nullptr;
  const void* grad = nullptr;  // null: no step, only the projection
  const void* x0 = nullptr;
  void* velocity = nullptr;  // null: no momentum
  int device = -1;           // CUDA device index
  int64_t rows = 0, dim = 0;
  // Values from one row to the next.
  int64_t out_stride = 0, x_stride = 0, grad_stride = 0, x0_stride = 0, velocity_stride = 0;
  Dtype dtype = Dtype::float32;       // of out, x, x0 and velocity
  Dtype grad_dtype = Dtype::float32;  // of grad: dtype, or a half type when dtype is float32
  PerRow step_size, eps;
  double momentum = 0;
  Bound lo, hi;
  int64_t channels = 1, inner = 1;
  int32_t* grad_status = nullptr;  // [B, 2] or null: column 0 += gradient all zero, column 1 += gradient not finite
};

// Counts a row's bad gradient, for arguments that have a grad_status. A good one touches no memory.
template <typename Args>
ADVFEAT_HOST_DEVICE inline void count_bad(const Args& a, int64_t row, bool zero, bool not_finite) {
  if (!a.grad_status) return;
  if (zero) ++a.grad_status[2 * row];
  if (not_finite) ++a.grad_status[2 * row + 1];
}

}  // namespace advfeat
