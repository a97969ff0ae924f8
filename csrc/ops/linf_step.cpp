// linf_step and project_linf: the operators, and their kernel on the CPU.
#include "../core/boxed.h"
#include "../core/cpu_step.h"

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def(
      "linf_step(Tensor x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "linf_step_(Tensor(a!) x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels, "
      "Tensor(b!)? grad_status, Tensor(c!)? velocity, float momentum) -> ()");
  m.def(
      "project_linf(Tensor x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "project_linf_(Tensor(a!) x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> ()");
}

namespace advfeat::cpu {
namespace {

void linf_step(const StepArgs& a) {
  const RowKernels& k = row_kernels(a.dtype, a.grad_dtype);
  const RowBox box(a);
  const Blocks blocks(a);
  std::vector<uint8_t> flags(a.grad && a.grad_status ? blocks.count : 0);
  parallel_for(0, blocks.count, blocks.grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / blocks.per_row, begin = (i % blocks.per_row) * kBlock;
      const int64_t end = std::min(begin + kBlock, a.dim);
      if (!flags.empty()) flags[i] = k.grad_flags(a, row, begin, end);
      k.linf(a, box.box(), row, begin, end, at(a.step_size, row), at(a.eps, row));
    }
  });
  if (flags.empty()) return;
  for (int64_t row = 0; row < a.rows; ++row) {
    uint8_t all = 0;
    for (int64_t i = 0; i < blocks.per_row; ++i) all |= flags[row * blocks.per_row + i];
    count_bad(a, row, !(all & kGradNonzero), all & kGradNotFinite);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) {
  m.impl("linf_step", TORCH_BOX(&step<linf_step>));
  m.impl("linf_step_", TORCH_BOX(&step_<linf_step>));
  m.impl("project_linf", TORCH_BOX(&project<linf_step>));
  m.impl("project_linf_", TORCH_BOX(&project_<linf_step>));
}

}  // namespace advfeat::cpu
