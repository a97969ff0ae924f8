// The operators as a device folder registers them: the checks of check.h around that folder's kernels.
#pragma once

#include <torch/csrc/stable/library.h>

#include "check.h"

namespace advfeat {

// A device's kernels, as template argument of the operators below.
template <void (*linf_step_kernel)(const StepArgs&), void (*l2_step_kernel)(const StepArgs&),
          void (*random_linf_kernel)(const RandomStartArgs&), void (*random_l2_kernel)(const RandomStartArgs&),
          void (*update_best_kernel)(const UpdateBestArgs&)>
struct Operators {
  template <void (*kernel)(const StepArgs&)>
  static Tensor run(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers,
                    const OptionalTensor& status, bool in_place) {
    Prepared<StepArgs> p = prepare_step(x, grad, x0, numbers, status, in_place);
    if (p.args.rows > 0 && p.args.dim > 0) kernel(p.args);
    p.finish();
    return p.result;
  }

  template <void (*kernel)(const StepArgs&)>
  static Tensor step(Tensor x, Tensor grad, Tensor x0, double step_size, double eps, double lo, double hi,
                     OptionalTensor step_size_rows, OptionalTensor eps_rows, OptionalTensor lo_channels,
                     OptionalTensor hi_channels) {
    const OptionalTensor none;
    return run<kernel>(x, &grad, x0, {step_size, eps, lo, hi, step_size_rows, eps_rows, lo_channels, hi_channels}, none,
                       false);
  }

  template <void (*kernel)(const StepArgs&)>
  static void step_(Tensor x, Tensor grad, Tensor x0, double step_size, double eps, double lo, double hi,
                    OptionalTensor step_size_rows, OptionalTensor eps_rows, OptionalTensor lo_channels,
                    OptionalTensor hi_channels, OptionalTensor grad_status) {
    run<kernel>(x, &grad, x0, {step_size, eps, lo, hi, step_size_rows, eps_rows, lo_channels, hi_channels}, grad_status,
                true);
  }

  template <void (*kernel)(const StepArgs&)>
  static Tensor project(Tensor x, Tensor x0, double eps, double lo, double hi, OptionalTensor eps_rows,
                        OptionalTensor lo_channels, OptionalTensor hi_channels) {
    const OptionalTensor none;
    return run<kernel>(x, nullptr, x0, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels}, none, false);
  }

  template <void (*kernel)(const StepArgs&)>
  static void project_(Tensor x, Tensor x0, double eps, double lo, double hi, OptionalTensor eps_rows,
                       OptionalTensor lo_channels, OptionalTensor hi_channels) {
    const OptionalTensor none;
    run<kernel>(x, nullptr, x0, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels}, none, true);
  }

  template <void (*kernel)(const RandomStartArgs&)>
  static Tensor random_start(Tensor x0, double eps, int64_t seed, Tensor sample_ids, double lo, double hi,
                             OptionalTensor eps_rows, OptionalTensor lo_channels, OptionalTensor hi_channels) {
    const OptionalTensor none;
    Prepared<RandomStartArgs> p =
        prepare_random_start(x0, seed, sample_ids, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels});
    if (p.args.rows > 0 && p.args.dim > 0) kernel(p.args);
    p.finish();
    return p.result;
  }

  static void update_best_(Tensor best_x, Tensor best_value, Tensor x, Tensor value) {
    Prepared<UpdateBestArgs> p = prepare_update_best(best_x, best_value, x, value);
    if (p.args.rows > 0) update_best_kernel(p.args);
    p.finish();
  }

  static void add_to(torch::stable::detail::StableLibrary& m) {
    m.impl("linf_step", TORCH_BOX(&step<linf_step_kernel>));
    m.impl("linf_step_", TORCH_BOX(&step_<linf_step_kernel>));
    m.impl("l2_step", TORCH_BOX(&step<l2_step_kernel>));
    m.impl("l2_step_", TORCH_BOX(&step_<l2_step_kernel>));
    m.impl("project_linf", TORCH_BOX(&project<linf_step_kernel>));
    m.impl("project_linf_", TORCH_BOX(&project_<linf_step_kernel>));
    m.impl("project_l2", TORCH_BOX(&project<l2_step_kernel>));
    m.impl("project_l2_", TORCH_BOX(&project_<l2_step_kernel>));
    m.impl("random_start_linf", TORCH_BOX(&random_start<random_linf_kernel>));
    m.impl("random_start_l2", TORCH_BOX(&random_start<random_l2_kernel>));
    m.impl("update_best_", TORCH_BOX(&update_best_));
  }
};

}  // namespace advfeat
