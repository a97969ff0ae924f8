// The functions that the dispatcher calls, around the kernel of a device: an operator names them in TORCH_BOX, once for
// the CPU and once for CUDA. All steps share these; what is not a step has its own beside its arguments, in ops/.
#pragma once

#include <torch/csrc/stable/library.h>

#include "prepare.h"

namespace advfeat {

using StepKernel = void (*)(const StepArgs&);

template <StepKernel kernel>
Tensor run_step(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers,
                const StepState& state, bool in_place) {
  Prepared<StepArgs> p = prepare_step(x, grad, x0, numbers, state, in_place);
  if (p.args.rows > 0 && p.args.dim > 0) kernel(p.args);
  p.finish();
  return p.result;
}

template <StepKernel kernel>
Tensor step(Tensor x, Tensor grad, Tensor x0, double step_size, double eps, double lo, double hi,
            OptionalTensor step_size_rows, OptionalTensor eps_rows, OptionalTensor lo_channels,
            OptionalTensor hi_channels) {
  const OptionalTensor none;
  return run_step<kernel>(x, &grad, x0, {step_size, eps, lo, hi, step_size_rows, eps_rows, lo_channels, hi_channels},
                          {none, none, 0}, false);
}

template <StepKernel kernel>
void step_(Tensor x, Tensor grad, Tensor x0, double step_size, double eps, double lo, double hi,
           OptionalTensor step_size_rows, OptionalTensor eps_rows, OptionalTensor lo_channels,
           OptionalTensor hi_channels, OptionalTensor grad_status, OptionalTensor velocity, double momentum) {
  run_step<kernel>(x, &grad, x0, {step_size, eps, lo, hi, step_size_rows, eps_rows, lo_channels, hi_channels},
                   {grad_status, velocity, momentum}, true);
}

template <StepKernel kernel>
Tensor project(Tensor x, Tensor x0, double eps, double lo, double hi, OptionalTensor eps_rows,
               OptionalTensor lo_channels, OptionalTensor hi_channels) {
  const OptionalTensor none;
  return run_step<kernel>(x, nullptr, x0, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels}, {none, none, 0},
                          false);
}

template <StepKernel kernel>
void project_(Tensor x, Tensor x0, double eps, double lo, double hi, OptionalTensor eps_rows,
              OptionalTensor lo_channels, OptionalTensor hi_channels) {
  const OptionalTensor none;
  run_step<kernel>(x, nullptr, x0, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels}, {none, none, 0}, true);
}

}  // namespace advfeat
