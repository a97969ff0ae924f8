// l1_step and project_l1: the operators, and their kernel on the CPU. A row is core/l1_row.inl.h.
#include "l1_step.h"

#include "../core/cpu_step.h"

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def(
      "l1_step(Tensor x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, float share, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels, Tensor? share_rows) -> "
      "Tensor");
  m.def(
      "l1_step_(Tensor(a!) x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, float share, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels, Tensor? share_rows, "
      "Tensor(b!)? grad_status, Tensor(c!)? velocity, float momentum) -> ()");
  m.def(
      "project_l1(Tensor x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "project_l1_(Tensor(a!) x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> ()");
}

namespace advfeat::cpu {
namespace {

void l1_rows(const L1Args& a) {
  const StepArgs& s = a.step;
  const RowKernels& k = row_kernels(s.dtype, s.grad_dtype);
  const RowBox box(s);
  for_each_searched_row(
      s, [&](int64_t row, double* scratch) { return k.l1_row(s, box.box(), row, at(a.share, row), scratch); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) {
  m.impl("l1_step", TORCH_BOX(&l1_step<l1_rows>));
  m.impl("l1_step_", TORCH_BOX(&l1_step_<l1_rows>));
  m.impl("project_l1", TORCH_BOX(&project_l1<l1_rows>));
  m.impl("project_l1_", TORCH_BOX(&project_l1_<l1_rows>));
}

}  // namespace advfeat::cpu
