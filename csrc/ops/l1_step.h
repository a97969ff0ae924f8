// l1_step and project_l1: their arguments, and the functions that the dispatcher calls.
#pragma once

#include "../core/boxed.h"
#include "../core/l1_math.h"

namespace advfeat {

// Those of every step, and the share of the values that move.
struct L1Args {
  StepArgs step;
  PerRow share;
};

inline bool is_share(double v) { return v > 0 && v <= 1; }

template <void (*kernel)(const L1Args&)>
Tensor run_l1(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers, double share,
              const OptionalTensor& share_rows, const StepState& state, bool in_place) {
  Prepared<StepArgs> p = prepare_step(x, grad, x0, numbers, state, in_place);
  L1Args a{p.args, {}};
  if (grad) {
    a.share = per_row(share, share_rows, "share", "above 0 and at most 1", is_share, x, p.alive);
    if (a.share.rows && in_place && a.step.rows > 0) {
      const int64_t size = static_cast<int64_t>(x.element_size());
      check_apart(Rows(a.step.out, a.step.out_stride * size, a.step.dim * size), "x", Rows(a.share.rows, 8, 8), "share",
                  a.step.rows);
    }
  }
  if (a.step.rows > 0 && a.step.dim > 0) kernel(a);
  p.finish();
  return p.result;
}

template <void (*kernel)(const L1Args&)>
Tensor l1_step(Tensor x, Tensor grad, Tensor x0, double step_size, double eps, double lo, double hi, double share,
               OptionalTensor step_size_rows, OptionalTensor eps_rows, OptionalTensor lo_channels,
               OptionalTensor hi_channels, OptionalTensor share_rows) {
  const OptionalTensor none;
  return run_l1<kernel>(x, &grad, x0, {step_size, eps, lo, hi, step_size_rows, eps_rows, lo_channels, hi_channels},
                        share, share_rows, {none, none, 0}, false);
}

template <void (*kernel)(const L1Args&)>
void l1_step_(Tensor x, Tensor grad, Tensor x0, double step_size, double eps, double lo, double hi, double share,
              OptionalTensor step_size_rows, OptionalTensor eps_rows, OptionalTensor lo_channels,
              OptionalTensor hi_channels, OptionalTensor share_rows, OptionalTensor grad_status,
              OptionalTensor velocity, double momentum) {
  run_l1<kernel>(x, &grad, x0, {step_size, eps, lo, hi, step_size_rows, eps_rows, lo_channels, hi_channels}, share,
                 share_rows, {grad_status, velocity, momentum}, true);
}

template <void (*kernel)(const L1Args&)>
Tensor project_l1(Tensor x, Tensor x0, double eps, double lo, double hi, OptionalTensor eps_rows,
                  OptionalTensor lo_channels, OptionalTensor hi_channels) {
  const OptionalTensor none;
  return run_l1<kernel>(x, nullptr, x0, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels}, 1, none,
                        {none, none, 0}, false);
}

template <void (*kernel)(const L1Args&)>
void project_l1_(Tensor x, Tensor x0, double eps, double lo, double hi, OptionalTensor eps_rows,
                 OptionalTensor lo_channels, OptionalTensor hi_channels) {
  const OptionalTensor none;
  run_l1<kernel>(x, nullptr, x0, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels}, 1, none, {none, none, 0},
                 true);
}

}  // namespace advfeat
