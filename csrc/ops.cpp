// The schemas of the operators. Kernels register themselves in cpu/ and cuda/; the folder is the dispatch key.
// A number that may differ by sample (or by channel) comes twice: as a float and as an optional tensor that replaces
// it. Only in-place steps count bad gradients: torch.compile's inductor cannot take an operator that both returns a new
// tensor and changes an optional one.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(advfeat, m) {
  m.def(
      "linf_step_(Tensor(a!) x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels, "
      "Tensor(b!)? grad_status) -> ()");
  m.def(
      "l2_step_(Tensor(a!) x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels, "
      "Tensor(b!)? grad_status) -> ()");
  m.def(
      "linf_step(Tensor x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "l2_step(Tensor x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "project_linf_(Tensor(a!) x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> ()");
  m.def(
      "project_l2_(Tensor(a!) x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> ()");
  m.def(
      "project_linf(Tensor x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "project_l2(Tensor x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "random_start_linf(Tensor x0, float eps, int seed, Tensor sample_ids, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "random_start_l2(Tensor x0, float eps, int seed, Tensor sample_ids, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def("update_best_(Tensor(a!) best_x, Tensor(b!) best_value, Tensor x, Tensor value) -> ()");
}
