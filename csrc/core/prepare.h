// From tensors to the plain arguments of the kernels: the arguments of steps, and what every operator's preparation is
// made of.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "args.h"
#include "check.h"

namespace advfeat {

using OptionalTensor = std::optional<Tensor>;

// The numbers of a step as they come from the schema: a float, or the tensor that replaces it.
struct StepNumbers {
  double step_size, eps, lo, hi;
  const OptionalTensor &step_size_rows, &eps_rows, &lo_channels, &hi_channels;
};

// What an in-place step keeps beside its iterate.
struct StepState {
  const OptionalTensor &grad_status, &velocity;
  double momentum;
};

// The arguments of a kernel, the tensors that their pointers need alive, and the copies that end the call, if any.
template <typename Args>
struct Prepared {
  Args args;
  std::vector<Tensor> alive;
  Tensor result;  // what the caller gets: x itself, or the new tensor

  // Where the kernel writes instead of a tensor whose layout it does not take, and that tensor.
  struct Copy {
    Tensor to, written;
  };
  std::vector<Copy> copies;

  void finish() {
    for (Copy& copy : copies) torch::stable::copy_(copy.to, copy.written);
  }
};

// x, x0 and velocity (optional) [B, ...] of one floating dtype; grad (optional) like x, or of a half type when x is
// float32.
Prepared<StepArgs> prepare_step(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers,
                                const StepState& state, bool in_place);

// The dtype of a gradient [B, ...] like x: that of x, or a half type when x is float32.
Dtype gradient_dtype(const Tensor& grad, const Tensor& x, const char* x_name);

// The layout in which x and a gradient (or null) go to a kernel: x's own where that is dense, so that most calls copy
// nothing; `other` where the kernel takes contiguous copies.
Layout common_layout(const Tensor& x, const Tensor* grad);

// The int32 counters [B, 2] of bad gradients, or null.
int32_t* counters_of(const OptionalTensor& grad_status, int64_t rows, const Tensor& x, const char* x_name);

// A [n] tensor as float64 on x's device.
const double* numbers_of(const Tensor& t, const char* name, int64_t n, const char* letter, const Tensor& x,
                         std::vector<Tensor>& alive);

bool is_radius(double v);  // at least 0; infinity is no ball at all
bool is_finite(double v);

// Values are looked at on the CPU alone, where that costs no synchronisation.
void check_values(const double* values, int64_t n, bool on_cpu, const char* name, const char* expected,
                  bool (*good)(double));

// A number for all rows, or the tensor [B] that replaces it.
PerRow per_row(double value, const OptionalTensor& rows, const char* name, const char* expected, bool (*good)(double),
               const Tensor& x, std::vector<Tensor>& alive);

// The ball and the box, for values that lie in this layout, into arguments that have them.
template <typename Args>
void set_eps_and_box(Prepared<Args>& p, const StepNumbers& n, const Tensor& x, Layout layout) {
  Args& a = p.args;
  a.eps = per_row(n.eps, n.eps_rows, "eps", "at least 0", is_radius, x, p.alive);
  a.lo.value = n.lo;
  a.hi.value = n.hi;
  if (!n.lo_channels && !n.hi_channels) {
    ADVFEAT_CHECK(n.lo <= n.hi, "lo should be at most hi, got lo=", n.lo, " and hi=", n.hi);
    return;
  }
  ADVFEAT_CHECK(x.dim() >= 2, "lo and hi by channel need a batch [B, C, ...], got shape ", shape(x));
  const int64_t c = x.size(1);
  if (n.lo_channels) a.lo.channels = numbers_of(*n.lo_channels, "lo", c, "C", x, p.alive);
  if (n.hi_channels) a.hi.channels = numbers_of(*n.hi_channels, "hi", c, "C", x, p.alive);
  for (int64_t i = 0; x.is_cpu() && i < c; ++i) {
    const double lo = at(a.lo, i), hi = at(a.hi, i);
    ADVFEAT_CHECK(lo <= hi, "lo should be at most hi, got lo=", lo, " and hi=", hi, " for channel ", i);
  }
  a.channels = c > 0 ? c : 1;
  a.inner = layout == Layout::channels_last ? 1 : (a.dim / a.channels > 0 ? a.dim / a.channels : 1);
}

}  // namespace advfeat
