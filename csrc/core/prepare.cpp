#include "prepare.h"

#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <limits>

namespace advfeat {

using torch::headeronly::ScalarType;

namespace {
bool is_finite_float(double v) { return std::fabs(v) <= std::numeric_limits<float>::max(); }
}  // namespace

bool is_radius(double v) { return v >= 0; }  // NaN fails
bool is_finite(double v) { return std::isfinite(v); }

const double* numbers_of(const Tensor& t, const char* name, int64_t n, const char* letter, const Tensor& x,
                         std::vector<Tensor>& alive) {
  ADVFEAT_CHECK(t.dim() == 1 && t.size(0) == n, name, " should be a float or a tensor [", letter, "] = (", n,
                ",), got shape ", shape(t));
  floating_dtype(t, name);
  check_same_device(t, name, x);
  alive.push_back(torch::stable::contiguous(torch::stable::to(t, ScalarType::Double)));
  return alive.back().const_data_ptr<double>();
}

void check_values(const double* values, int64_t n, bool on_cpu, const char* name, const char* expected,
                  bool (*good)(double)) {
  for (int64_t i = 0; on_cpu && i < n; ++i)
    ADVFEAT_CHECK(good(values[i]), name, " should be ", expected, ", got ", values[i], " at index ", i);
}

PerRow per_row(double value, const OptionalTensor& rows, const char* name, const char* expected, bool (*good)(double),
               const Tensor& x, std::vector<Tensor>& alive) {
  if (!rows) {
    ADVFEAT_CHECK(good(value), name, " should be ", expected, ", got ", value);
    return {value, nullptr};
  }
  const double* p = numbers_of(*rows, name, x.size(0), "B", x, alive);
  check_values(p, x.size(0), x.is_cpu(), name, expected, good);
  return {0, p};
}

Dtype gradient_dtype(const Tensor& grad, const Tensor& x, const char* x_name) {
  check_same_shape(grad, "grad", x, x_name);
  check_same_device(grad, "grad", x, x_name);
  const Dtype dtype = floating_dtype(x, x_name), own = floating_dtype(grad, "grad");
  const bool half = own == Dtype::float16 || own == Dtype::bfloat16;
  ADVFEAT_CHECK(own == dtype || (dtype == Dtype::float32 && half), "grad should have the dtype of ", x_name,
                ", or be float16 or bfloat16 when ", x_name, " is float32; ", x_name, " is ", dtype_name(x),
                " and grad ", dtype_name(grad));
  return own;
}

Layout common_layout(const Tensor& x, const Tensor* grad) {
  const Layout layout = layout_of(x);
  if (layout == Layout::contiguous && grad && !rows_lie(*grad, layout) && rows_lie(x, Layout::channels_last))
    return Layout::channels_last;  // one channel or one pixel: both at once
  return layout;
}

int32_t* counters_of(const OptionalTensor& grad_status, int64_t rows, const Tensor& x, const char* x_name) {
  if (!grad_status) return nullptr;
  const Tensor& t = *grad_status;
  ADVFEAT_CHECK(
      t.dim() == 2 && t.size(0) == rows && t.size(1) == 2 && t.scalar_type() == ScalarType::Int && t.is_contiguous(),
      "grad_status should be a contiguous int32 tensor [B, 2] = (", rows, ", 2), got ", dtype_name(t), " of shape ",
      shape(t));
  check_same_device(t, "grad_status", x, x_name);
  return t.mutable_data_ptr<int32_t>();
}

Prepared<StepArgs> prepare_step(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers,
                                const StepState& state, bool in_place) {
  Prepared<StepArgs> p;
  StepArgs& a = p.args;
  const Shape s = rows_and_dim(x, "x");
  a.rows = s.rows;
  a.dim = s.dim;
  a.dtype = a.grad_dtype = floating_dtype(x, "x");
  a.device = x.get_device_index();
  check_same_shape(x0, "x0", x, "x");
  check_same_dtype(x0, "x0", x, "x");
  check_same_device(x0, "x0", x);
  if (grad) a.grad_dtype = gradient_dtype(*grad, x, "x");
  if (state.velocity) {
    check_same_shape(*state.velocity, "velocity", x, "x");
    check_same_dtype(*state.velocity, "velocity", x, "x");
    check_same_device(*state.velocity, "velocity", x);
    ADVFEAT_CHECK(state.momentum >= 0 && state.momentum < 1, "momentum should be at least 0 and below 1, got ",
                  state.momentum);
    a.momentum = state.momentum;
  }

  const Layout layout = common_layout(x, grad);
  const Layout kernel_layout = layout == Layout::other ? Layout::contiguous : layout;
  const Tensor xk = lying(x, kernel_layout), x0k = lying(x0, kernel_layout);
  p.alive.reserve(10);
  p.alive.push_back(xk);
  p.alive.push_back(x0k);
  a.x = xk.const_data_ptr();
  a.x0 = x0k.const_data_ptr();
  a.x_stride = row_stride(xk, s.dim);
  a.x0_stride = row_stride(x0k, s.dim);
  if (grad) {
    const Tensor gk = lying(*grad, kernel_layout);
    p.alive.push_back(gk);
    a.grad = gk.const_data_ptr();
    a.grad_stride = row_stride(gk, s.dim);
  }
  p.result = in_place ? x : torch::stable::empty_like(x);
  if (in_place) check_no_overlap(x, "x", s, layout);
  Tensor out = p.result;
  if (in_place && layout == Layout::other) {
    out = xk;  // a contiguous copy of x, written in place
    p.copies.push_back({p.result, out});
  } else if (!in_place && !rows_lie(out, kernel_layout)) {
    out = lying(torch::stable::empty_like(xk), kernel_layout);
    p.copies.push_back({p.result, out});
  }
  p.alive.push_back(out);
  a.out = out.mutable_data_ptr();
  a.out_stride = row_stride(out, s.dim);
  if (state.velocity) {
    const Tensor& velocity = *state.velocity;
    check_no_overlap(velocity, "velocity", s, rows_lie(velocity, kernel_layout) ? kernel_layout : Layout::other);
    const Tensor vk = lying(velocity, kernel_layout);
    if (!rows_lie(velocity, kernel_layout)) p.copies.push_back({velocity, vk});
    p.alive.push_back(vk);
    a.velocity = vk.mutable_data_ptr();
    a.velocity_stride = row_stride(vk, s.dim);
  }

  if (grad)
    a.step_size = per_row(numbers.step_size, numbers.step_size_rows, "step_size", "finite in the arithmetic type",
                          a.dtype == Dtype::float64 ? is_finite : is_finite_float, x, p.alive);
  set_eps_and_box(p, numbers, x, kernel_layout);
  a.grad_status = counters_of(state.grad_status, s.rows, x, "x");
  if (in_place && s.rows > 0) {
    const int64_t bytes = s.dim * static_cast<int64_t>(x.element_size());
    const int64_t size = static_cast<int64_t>(x.element_size());
    const Rows iterate(a.out, a.out_stride * size, bytes), centre(a.x0, a.x0_stride * size, bytes);
    const int64_t grad_size = grad ? static_cast<int64_t>(grad->element_size()) : 0;
    const Rows gradient(a.grad, a.grad_stride * grad_size, s.dim * grad_size);
    const int64_t channels = 8 * (x.dim() > 1 ? x.size(1) : 0);
    const auto check_reads = [&](const Rows& written, const char* name) {
      check_apart(written, name, centre, "x0", s.rows);
      if (grad) check_apart(written, name, gradient, "grad", s.rows);
      if (a.grad_status) check_apart(written, name, Rows(a.grad_status, 8, 8), "grad_status", s.rows);
      if (a.step_size.rows) check_apart(written, name, Rows(a.step_size.rows, 8, 8), "step_size", s.rows);
      if (a.eps.rows) check_apart(written, name, Rows(a.eps.rows, 8, 8), "eps", s.rows);
      if (a.lo.channels) check_apart(written, name, Rows(a.lo.channels, 0, channels), "lo", s.rows);
      if (a.hi.channels) check_apart(written, name, Rows(a.hi.channels, 0, channels), "hi", s.rows);
    };
    check_reads(iterate, "x");
    if (a.velocity) {
      const Rows velocity(a.velocity, a.velocity_stride * size, bytes);
      check_reads(velocity, "velocity");
      // Both are written, so that even the same place is refused.
      ADVFEAT_CHECK(a.velocity != a.out || s.dim == 0, "velocity should not be x itself, got the same memory");
      check_apart(velocity, "velocity", iterate, "x", s.rows);
    }
  }
  return p;
}

}  // namespace advfeat
