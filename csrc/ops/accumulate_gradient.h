// accumulate_gradient_: its arguments, the function that the dispatcher calls, and what both devices compute of a row.
#pragma once

#include "../core/boxed.h"

namespace advfeat {

// For each row: total = decay total + grad / ||grad||_1.
struct AccumulateArgs {
  void* total = nullptr;
  const void* grad = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, dim = 0;
  int64_t total_stride = 0, grad_stride = 0;  // values from one row to the next
  Dtype dtype = Dtype::float32;               // of total
  Dtype grad_dtype = Dtype::float32;          // dtype, or a half type when dtype is float32
  double decay = 0;
  int32_t* grad_status = nullptr;  // as in StepArgs
};

// total, grad [B, ...]; grad like total, or of a half type when total is float32.
Prepared<AccumulateArgs> prepare_accumulate(const Tensor& total, const Tensor& grad, double decay,
                                            const OptionalTensor& grad_status);

template <void (*kernel)(const AccumulateArgs&)>
void accumulate_gradient_(Tensor total, Tensor grad, double decay, OptionalTensor grad_status) {
  Prepared<AccumulateArgs> p = prepare_accumulate(total, grad, decay, grad_status);
  if (p.args.rows > 0 && p.args.dim > 0) kernel(p.args);
  p.finish();
}

// Magnitudes are added in float64, where no sum of the smaller dtypes overflows and none vanishes. A float64 row whose
// sum is not finite is added again times this; the values that lose bits to it are nothing beside the largest.
constexpr int kSmallerExponent = -64;
constexpr double kSmaller = 0x1p-64;

// A gradient's part of the total, (g * prescale) * factor. The prescale is a power of two, so exact, and a normal
// number of the arithmetic type, as is the factor, whatever the size of the gradient.
struct L1Direction {
  bool usable;  // false: the gradient is zero or not finite, and is not looked at again
  double prescale, factor;
};

// From the sum of a row's magnitudes, or (smaller) of those times kSmaller.
ADVFEAT_HOST_DEVICE inline L1Direction l1_direction(double sum, bool smaller, bool in_float64) {
  const int exponent = smaller ? -kSmallerExponent : 0;  // the norm is sum * 2^exponent
  const double prescale = inverse_power_of_two(exponent_of(sum) + exponent, in_float64 ? 1022 : 126);
  return {sum > 0 && finite(sum), prescale, 1 / ldexp(sum, exponent_of(prescale) + exponent)};
}

}  // namespace advfeat
