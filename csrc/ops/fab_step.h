// fab_step_: its arguments, and the function that the dispatcher calls.
#pragma once

#include "../core/boxed.h"
#include "../core/hyperplane.h"

namespace advfeat {

// The step's tensors, box and counters are those of every step; it has no step size, ball or velocity.
struct FabArgs {
  StepArgs step;
  const double* gap = nullptr;  // [B]
  Norm norm = Norm::linf;
  double eta = 0, alpha_max = 0;
};

ADVFEAT_HOST_DEVICE inline FabNumbers numbers_of_row(const FabArgs& a, int64_t row) {
  return {a.gap[row], a.eta, a.alpha_max};
}

// The numbers of a FAB step as they come from the schema.
struct FabSchema {
  const Tensor& gap;
  double order, eta, alpha_max, lo, hi;
  const OptionalTensor &lo_channels, &hi_channels, &grad_status;
};

Prepared<FabArgs> prepare_fab(const Tensor& x, const Tensor& grad, const Tensor& x0, const FabSchema& schema);

template <void (*kernel)(const FabArgs&)>
void fab_step_(Tensor x, Tensor grad, Tensor x0, Tensor gap, double order, double eta, double alpha_max, double lo,
               double hi, OptionalTensor lo_channels, OptionalTensor hi_channels, OptionalTensor grad_status) {
  Prepared<FabArgs> p =
      prepare_fab(x, grad, x0, {gap, order, eta, alpha_max, lo, hi, lo_channels, hi_channels, grad_status});
  if (p.args.step.rows > 0 && p.args.step.dim > 0) kernel(p.args);
  p.finish();
}

}  // namespace advfeat
