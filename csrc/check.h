// From tensors to the plain arguments of args.h: every check, and the layouts that the kernels do not take as they are.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "args.h"

namespace advfeat {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Throws what the user reads: the argument, what was expected, what was seen.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A macro, so that the parts of the message cost nothing where the check holds: a shape as text takes longer than a
// small step.
#define ADVFEAT_CHECK(ok, ...)      \
  do {                              \
    if (!(ok)) [[unlikely]]         \
      ::advfeat::fail(__VA_ARGS__); \
  } while (0)

// The numbers of a step as they come from the schema: a float, or the tensor that replaces it.
struct StepNumbers {
  double step_size, eps, lo, hi;
  const OptionalTensor &step_size_rows, &eps_rows, &lo_channels, &hi_channels;
};

// The arguments of a kernel, the tensors that their pointers need alive, and the copy that ends the call, if any.
template <typename Args>
struct Prepared {
  Args args;
  std::vector<Tensor> alive;
  Tensor result;                  // what the caller gets: x itself, or the new tensor
  std::optional<Tensor> written;  // where the kernel writes, when that is not `result`

  void finish();  // copies `written` into `result`
};

// x, x0 [B, ...] of one floating dtype; grad (optional) like x, or of a half type when x is float32.
Prepared<StepArgs> prepare_step(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers,
                                const OptionalTensor& grad_status, bool in_place);

// x0 [B, ...] floating; sample_ids int64 [B].
Prepared<RandomStartArgs> prepare_random_start(const Tensor& x0, int64_t seed, const Tensor& sample_ids,
                                               const StepNumbers& numbers);

// best_x, x [B, ...] of one dtype; best_value, value [B] float32 or float64.
Prepared<UpdateBestArgs> prepare_update_best(const Tensor& best_x, const Tensor& best_value, const Tensor& x,
                                             const Tensor& value);

}  // namespace advfeat
