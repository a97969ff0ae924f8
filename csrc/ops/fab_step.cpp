// fab_step_: the operator, and its kernel on the CPU. A row is core/hyperplane.inl.h.
#include "fab_step.h"

#include <cmath>

#include "../core/cpu_step.h"

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def(
      "fab_step_(Tensor(a!) x, Tensor grad, Tensor x0, Tensor gap, float order, float eta, float alpha_max, float lo, "
      "float hi, Tensor? lo_channels, Tensor? hi_channels, Tensor(b!)? grad_status) -> ()");
}

namespace advfeat {
namespace {

Norm norm_of(double order) {
  if (order == 1) return Norm::l1;
  if (order == 2) return Norm::l2;
  ADVFEAT_CHECK(std::isinf(order) && order > 0, "order should be 1, 2 or inf, got ", order);
  return Norm::linf;
}

}  // namespace

Prepared<FabArgs> prepare_fab(const Tensor& x, const Tensor& grad, const Tensor& x0, const FabSchema& schema) {
  const OptionalTensor none;
  Prepared<StepArgs> step =
      prepare_step(x, &grad, x0, {0, 0, schema.lo, schema.hi, none, none, schema.lo_channels, schema.hi_channels},
                   {schema.grad_status, none, 0}, true);
  Prepared<FabArgs> p;
  p.args.step = step.args;
  p.alive = std::move(step.alive);
  p.result = step.result;
  for (const auto& copy : step.copies) p.copies.push_back({copy.to, copy.written});
  p.args.norm = norm_of(schema.order);
  ADVFEAT_CHECK(schema.eta >= 1 && std::isfinite(schema.eta), "eta should be at least 1 and finite, got ", schema.eta);
  ADVFEAT_CHECK(schema.alpha_max >= 0 && schema.alpha_max <= 1, "alpha_max should be at least 0 and at most 1, got ",
                schema.alpha_max);
  p.args.eta = schema.eta;
  p.args.alpha_max = schema.alpha_max;
  p.args.gap = numbers_of(schema.gap, "gap", p.args.step.rows, "B", x, p.alive);
  const StepArgs& a = p.args.step;
  if (a.rows > 0) {
    const int64_t size = static_cast<int64_t>(x.element_size());
    check_apart(Rows(a.out, a.out_stride * size, a.dim * size), "x", Rows(p.args.gap, 8, 8), "gap", a.rows);
  }
  return p;
}

}  // namespace advfeat

namespace advfeat::cpu {
namespace {

void fab_step(const FabArgs& a) {
  const StepArgs& s = a.step;
  const RowKernels& k = row_kernels(s.dtype, s.grad_dtype);
  const RowBox box(s);
  for_each_searched_row(s, [&](int64_t row, double* scratch) {
    return k.fab_row(s, box.box(), row, a.norm, numbers_of_row(a, row), scratch);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) { m.impl("fab_step_", TORCH_BOX(&fab_step_<fab_step>)); }

}  // namespace advfeat::cpu
