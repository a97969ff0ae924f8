#include "check.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace advfeat {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

std::string shape(const Tensor& t) {
  std::ostringstream out;
  out << "(";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << (t.dim() == 1 ? ",)" : ")");
  return out.str();
}

Dtype floating_dtype(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    default:
      fail(name, " should be float32, float64, float16 or bfloat16, got ",
           torch::headeronly::toString(t.scalar_type()));
  }
}

void check_same_shape(const Tensor& t, const char* name, const Tensor& x, const char* x_name) {
  const auto sizes = t.sizes(), expected = x.sizes();
  const bool same = sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin());
  ADVFEAT_CHECK(same, name, " should have the shape of ", x_name, " ", shape(x), ", got ", shape(t));
}

void check_same_device(const Tensor& t, const char* name, const Tensor& x) {
  ADVFEAT_CHECK(t.is_cpu() == x.is_cpu() && t.get_device_index() == x.get_device_index(), name,
                " should be on the device of x, but is on another one");
}

enum class Layout { contiguous, channels_last, other };

// Whether the values of each row lie densely in this order; rows may be apart.
bool rows_lie(const Tensor& t, Layout layout) {
  const auto sizes = t.sizes();
  const auto strides = t.strides();
  const int64_t n = t.dim();
  int64_t expected = 1;
  const auto is = [&](int64_t i) {
    const bool ok = sizes[i] == 1 || strides[i] == expected;
    expected *= sizes[i];
    return ok;
  };
  if (layout == Layout::channels_last) {
    if (n != 4 && n != 5) return false;
    if (!is(1)) return false;
    for (int64_t i = n - 1; i >= 2; --i)
      if (!is(i)) return false;
    return true;
  }
  for (int64_t i = n - 1; i >= 1; --i)
    if (!is(i)) return false;
  return true;
}

Layout layout_of(const Tensor& t) {
  if (rows_lie(t, Layout::contiguous)) return Layout::contiguous;
  if (rows_lie(t, Layout::channels_last)) return Layout::channels_last;
  return Layout::other;
}

Tensor lying(const Tensor& t, Layout layout) {
  if (rows_lie(t, layout)) return t;
  if (layout == Layout::contiguous) return torch::stable::contiguous(t);
  return torch::stable::contiguous(t, t.dim() == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast);
}

struct Shape {
  int64_t rows, dim;
};

Shape rows_and_dim(const Tensor& x, const char* name) {
  ADVFEAT_CHECK(x.dim() >= 1, name, " should be a batch [B, ...], got a tensor without dimensions");
  const auto sizes = x.sizes();
  int64_t dim = 1;
  for (size_t i = 1; i < sizes.size(); ++i) dim *= sizes[i];
  return {sizes[0], dim};
}

int64_t row_stride(const Tensor& t, int64_t dim) { return t.size(0) > 1 ? t.stride(0) : dim; }

// A tensor that is written to must not have two values in one place. Rows that lie densely are written where they are;
// any other layout is written through torch's copy_, which sees other kinds of overlap itself.
void check_no_overlap(const Tensor& t, const char* name, const Shape& shape, Layout layout) {
  if (shape.rows == 0 || shape.dim == 0) return;
  const auto sizes = t.sizes(), strides = t.strides();
  bool apart = layout == Layout::other || shape.rows < 2 || strides[0] >= shape.dim;
  for (size_t i = 0; apart && i < sizes.size(); ++i) apart = sizes[i] < 2 || strides[i] != 0;
  ADVFEAT_CHECK(apart, name, " is written to, so its values should not share memory (it is expanded; clone it first)");
}

struct Rows {
  const char* start;
  int64_t stride, bytes;  // of a row to the next, and of the values of one

  const char* end(int64_t rows) const { return start + (rows - 1) * stride + bytes; }
};

// Whether a row of one shares memory with a row of the other, but for tensors that lie in just the same place: then
// each value is read before it is written. The rows of each lie apart or are all in one place (stride 0).
bool overlap_in_part(const Rows& a, const Rows& b, int64_t rows) {
  if (rows == 0 || a.bytes == 0 || b.bytes == 0) return false;
  if (a.start >= b.end(rows) || b.start >= a.end(rows)) return false;
  if (a.start == b.start && a.bytes == b.bytes && (rows == 1 || a.stride == b.stride)) return false;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = a.start + i * a.stride - b.start;
    const int64_t near = b.stride > 0 ? at / b.stride : 0;
    for (int64_t j = std::max<int64_t>(near - 1, 0); j <= std::min(near + 1, rows - 1); ++j)
      if (at < j * b.stride + b.bytes && j * b.stride < at + a.bytes) return true;
  }
  return false;
}

void check_apart(const Rows& written, const char* written_name, const Rows& read, const char* name, int64_t rows) {
  ADVFEAT_CHECK(!overlap_in_part(written, read, rows), name, " should not share a part of its memory with ",
                written_name, ", which is written to (clone one of them first)");
}

// A [n] tensor as float64 on x's device. On the CPU its values can be checked too: that costs no synchronisation.
const double* numbers_of(const Tensor& t, const char* name, int64_t n, const char* letter, const Tensor& x,
                         std::vector<Tensor>& alive) {
  ADVFEAT_CHECK(t.dim() == 1 && t.size(0) == n, name, " should be a float or a tensor [", letter, "] = (", n,
                ",), got shape ", shape(t));
  floating_dtype(t, name);
  check_same_device(t, name, x);
  alive.push_back(torch::stable::contiguous(torch::stable::to(t, ScalarType::Double)));
  return alive.back().const_data_ptr<double>();
}

template <typename Good>
void check_values(const double* values, int64_t n, bool on_cpu, const char* name, const char* expected, Good good) {
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

bool is_radius(double v) { return v >= 0; }  // infinity is no ball at all; NaN fails
bool is_finite(double v) { return std::isfinite(v); }
bool is_finite_float(double v) { return std::fabs(v) <= std::numeric_limits<float>::max(); }
constexpr const char* kRadius = "at least 0";

template <typename Args>
void set_eps_and_box(Prepared<Args>& p, const StepNumbers& n, const Tensor& x, Layout layout) {
  Args& a = p.args;
  a.eps = per_row(n.eps, n.eps_rows, "eps", kRadius, is_radius, x, p.alive);
  a.lo.value = n.lo;
  a.hi.value = n.hi;
  if (!n.lo_channels && !n.hi_channels) {
    ADVFEAT_CHECK(n.lo <= n.hi, "lo should be at most hi, got lo=", n.lo, " and hi=", n.hi);
    return;
  }
  ADVFEAT_CHECK(x.dim() >= 2, "lo and hi by channel need a batch [B, C, ...], got shape ", shape(x));
  const int64_t c = x.size(1);
  if (n.lo_channels) a.lo.channels = numbers_of(*n.lo_channels, "lo", c, "C", x, p.alive);
  if (n.hi_channels) a.hi.channels = numbers_of(*n.hi_channels, "hi", c, "C", x, p.alive);
  for (int64_t i = 0; x.is_cpu() && i < c; ++i) {
    const double lo = a.lo.channels ? a.lo.channels[i] : n.lo, hi = a.hi.channels ? a.hi.channels[i] : n.hi;
    ADVFEAT_CHECK(lo <= hi, "lo should be at most hi, got lo=", lo, " and hi=", hi, " for channel ", i);
  }
  a.channels = c > 0 ? c : 1;
  a.inner = layout == Layout::channels_last ? 1 : (a.dim / a.channels > 0 ? a.dim / a.channels : 1);
}

}  // namespace

template <typename Args>
void Prepared<Args>::finish() {
  if (written) torch::stable::copy_(result, *written);
}
template struct Prepared<StepArgs>;
template struct Prepared<RandomStartArgs>;
template struct Prepared<UpdateBestArgs>;

Prepared<StepArgs> prepare_step(const Tensor& x, const Tensor* grad, const Tensor& x0, const StepNumbers& numbers,
                                const OptionalTensor& grad_status, bool in_place) {
  Prepared<StepArgs> p;
  StepArgs& a = p.args;
  const Shape s = rows_and_dim(x, "x");
  a.rows = s.rows;
  a.dim = s.dim;
  a.dtype = a.grad_dtype = floating_dtype(x, "x");
  a.device = x.get_device_index();
  check_same_shape(x0, "x0", x, "x");
  ADVFEAT_CHECK(x0.scalar_type() == x.scalar_type(), "x0 should have the dtype of x, ",
                torch::headeronly::toString(x.scalar_type()), ", got ", torch::headeronly::toString(x0.scalar_type()));
  check_same_device(x0, "x0", x);
  if (grad) {
    check_same_shape(*grad, "grad", x, "x");
    check_same_device(*grad, "grad", x);
    a.grad_dtype = floating_dtype(*grad, "grad");
    const bool half = a.grad_dtype == Dtype::float16 || a.grad_dtype == Dtype::bfloat16;
    ADVFEAT_CHECK(a.grad_dtype == a.dtype || (a.dtype == Dtype::float32 && half),
                  "grad should have the dtype of x, or be float16 or bfloat16 when x is float32; x is ",
                  torch::headeronly::toString(x.scalar_type()), " and grad ",
                  torch::headeronly::toString(grad->scalar_type()));
  }

  // The layout in which all go: x's own where that is dense, so that most calls copy nothing.
  Layout layout = layout_of(x);
  if (layout == Layout::contiguous && grad && !rows_lie(*grad, layout) && rows_lie(x, Layout::channels_last))
    layout = Layout::channels_last;  // one channel or one pixel: both at once
  const Layout kernel_layout = layout == Layout::other ? Layout::contiguous : layout;
  const Tensor xk = lying(x, kernel_layout), x0k = lying(x0, kernel_layout);
  p.alive.reserve(8);
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
    p.written = out;
  } else if (!in_place && !rows_lie(out, kernel_layout)) {
    out = lying(torch::stable::empty_like(xk), kernel_layout);
    p.written = out;
  }
  p.alive.push_back(out);
  a.out = out.mutable_data_ptr();
  a.out_stride = row_stride(out, s.dim);

  if (grad)
    a.step_size = per_row(numbers.step_size, numbers.step_size_rows, "step_size", "finite in the arithmetic type",
                          a.dtype == Dtype::float64 ? is_finite : is_finite_float, x, p.alive);
  set_eps_and_box(p, numbers, x, kernel_layout);
  if (grad_status) {
    const Tensor& t = *grad_status;
    ADVFEAT_CHECK(t.dim() == 2 && t.size(0) == s.rows && t.size(1) == 2 && t.scalar_type() == ScalarType::Int &&
                      t.is_contiguous(),
                  "grad_status should be a contiguous int32 tensor [B, 2] = (", s.rows, ", 2), got ",
                  torch::headeronly::toString(t.scalar_type()), " of shape ", shape(t));
    check_same_device(t, "grad_status", x);
    a.grad_status = t.mutable_data_ptr<int32_t>();
  }
  if (in_place && s.rows > 0) {
    const int64_t bytes = s.dim * static_cast<int64_t>(x.element_size());
    const auto rows_at = [](const void* start, int64_t stride, int64_t bytes) {
      return Rows{static_cast<const char*>(start), stride, bytes};
    };
    const int64_t size = static_cast<int64_t>(x.element_size());
    const Rows written = rows_at(a.out, a.out_stride * size, bytes);
    check_apart(written, "x", rows_at(a.x0, a.x0_stride * size, bytes), "x0", s.rows);
    if (grad) {
      const int64_t grad_size = static_cast<int64_t>(grad->element_size());
      check_apart(written, "x", rows_at(a.grad, a.grad_stride * grad_size, s.dim * grad_size), "grad", s.rows);
    }
    if (a.grad_status) check_apart(written, "x", rows_at(a.grad_status, 8, 8), "grad_status", s.rows);
    if (a.step_size.rows) check_apart(written, "x", rows_at(a.step_size.rows, 8, 8), "step_size", s.rows);
    if (a.eps.rows) check_apart(written, "x", rows_at(a.eps.rows, 8, 8), "eps", s.rows);
    const int64_t channels = 8 * (x.dim() > 1 ? x.size(1) : 0);
    if (a.lo.channels) check_apart(written, "x", rows_at(a.lo.channels, 0, channels), "lo", s.rows);
    if (a.hi.channels) check_apart(written, "x", rows_at(a.hi.channels, 0, channels), "hi", s.rows);
  }
  return p;
}

Prepared<RandomStartArgs> prepare_random_start(const Tensor& x0, int64_t seed, const Tensor& sample_ids,
                                               const StepNumbers& numbers) {
  Prepared<RandomStartArgs> p;
  RandomStartArgs& a = p.args;
  const Shape s = rows_and_dim(x0, "x0");
  a.rows = s.rows;
  a.dim = s.dim;
  a.dtype = floating_dtype(x0, "x0");
  a.device = x0.get_device_index();
  a.seed = static_cast<uint64_t>(seed);
  ADVFEAT_CHECK(s.dim < (int64_t{1} << 34), "x0 should have fewer than 2^34 values a sample, got ", s.dim);
  ADVFEAT_CHECK(sample_ids.dim() == 1 && sample_ids.size(0) == s.rows && sample_ids.scalar_type() == ScalarType::Long,
                "sample_ids should be an int64 tensor [B] = (", s.rows, ",), got ",
                torch::headeronly::toString(sample_ids.scalar_type()), " of shape ", shape(sample_ids));
  check_same_device(sample_ids, "sample_ids", x0);
  const bool has_ball = numbers.eps_rows || std::isfinite(numbers.eps);
  ADVFEAT_CHECK(has_ball, "eps should be finite for a random start in the ball, got ", numbers.eps);

  // The stream belongs to the logical position of a value, so that the memory layout does not change the start.
  const Tensor x0k = torch::stable::contiguous(x0), ids = torch::stable::contiguous(sample_ids);
  p.alive = {x0k, ids};
  a.x0 = x0k.const_data_ptr();
  a.sample_ids = ids.const_data_ptr<int64_t>();
  p.result = torch::stable::empty_like(x0);
  Tensor out = p.result;
  if (!p.result.is_contiguous()) {
    out = torch::stable::empty_like(x0k);
    p.written = out;
  }
  p.alive.push_back(out);
  a.out = out.mutable_data_ptr();
  set_eps_and_box(p, numbers, x0, Layout::contiguous);
  check_values(a.eps.rows, s.rows, a.eps.rows && x0.is_cpu(), "eps", "finite for a random start", is_finite);
  return p;
}

Prepared<UpdateBestArgs> prepare_update_best(const Tensor& best_x, const Tensor& best_value, const Tensor& x,
                                             const Tensor& value) {
  Prepared<UpdateBestArgs> p;
  UpdateBestArgs& a = p.args;
  const Shape s = rows_and_dim(x, "x");
  check_same_shape(best_x, "best_x", x, "x");
  check_same_device(best_x, "best_x", x);
  check_no_overlap(best_x, "best_x", s, layout_of(best_x));
  ADVFEAT_CHECK(best_x.scalar_type() == x.scalar_type(), "best_x should have the dtype of x, ",
                torch::headeronly::toString(x.scalar_type()), ", got ",
                torch::headeronly::toString(best_x.scalar_type()));
  const auto check_value = [&](const Tensor& t, const char* name) {
    ADVFEAT_CHECK(t.dim() == 1 && t.size(0) == s.rows, name, " should be a tensor [B] = (", s.rows, ",), got shape ",
                  shape(t));
    ADVFEAT_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  " should be float32 or float64, got ", torch::headeronly::toString(t.scalar_type()));
    check_same_device(t, name, x);
  };
  check_value(best_value, "best_value");
  check_value(value, "value");
  ADVFEAT_CHECK(best_value.scalar_type() == value.scalar_type(), "best_value should have the dtype of value, ",
                torch::headeronly::toString(value.scalar_type()), ", got ",
                torch::headeronly::toString(best_value.scalar_type()));
  ADVFEAT_CHECK(best_value.is_contiguous(), "best_value should be contiguous, got stride ", best_value.stride(0));

  const Layout layout = layout_of(best_x) == Layout::other ? Layout::contiguous : layout_of(best_x);
  const Tensor best = lying(best_x, layout), xk = lying(x, layout), v = torch::stable::contiguous(value);
  p.alive = {best, xk, v, best_value};
  p.result = best_x;
  if (!rows_lie(best_x, layout)) p.written = best;
  const int64_t bytes = static_cast<int64_t>(x.element_size());
  a.best_x = best.mutable_data_ptr();
  a.x = xk.const_data_ptr();
  a.best_value = best_value.mutable_data_ptr();
  a.value = v.const_data_ptr();
  a.rows = s.rows;
  a.row_bytes = s.dim * bytes;
  a.best_x_stride_bytes = row_stride(best, s.dim) * bytes;
  a.x_stride_bytes = row_stride(xk, s.dim) * bytes;
  a.value_is_double = value.scalar_type() == ScalarType::Double;
  const Rows kept{static_cast<const char*>(a.best_x), a.best_x_stride_bytes, a.row_bytes};
  const Rows offered{static_cast<const char*>(a.x), a.x_stride_bytes, a.row_bytes};
  const int64_t size = static_cast<int64_t>(value.element_size());
  const Rows kept_value{static_cast<const char*>(a.best_value), size, size};
  const Rows offered_value{static_cast<const char*>(a.value), size, size};
  check_apart(kept, "best_x", offered, "x", s.rows);
  check_apart(kept, "best_x", offered_value, "value", s.rows);
  check_apart(kept_value, "best_value", offered_value, "value", s.rows);
  check_apart(kept_value, "best_value", offered, "x", s.rows);
  check_apart(kept_value, "best_value", kept, "best_x", s.rows);
  a.device = x.get_device_index();
  return p;
}

}  // namespace advfeat
