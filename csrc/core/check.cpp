#include "check.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

namespace advfeat {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

std::string shape(const Tensor& t) {
  std::ostringstream out;
  out << "(";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << (t.dim() == 1 ? ",)" : ")");
  return out.str();
}

const char* dtype_name(const Tensor& t) { return torch::headeronly::toString(t.scalar_type()); }

Shape rows_and_dim(const Tensor& x, const char* name) {
  ADVFEAT_CHECK(x.dim() >= 1, name, " should be a batch [B, ...], got a tensor without dimensions");
  const auto sizes = x.sizes();
  int64_t dim = 1;
  for (size_t i = 1; i < sizes.size(); ++i) dim *= sizes[i];
  return {sizes[0], dim};
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
      fail(name, " should be float32, float64, float16 or bfloat16, got ", dtype_name(t));
  }
}

void check_same_shape(const Tensor& t, const char* name, const Tensor& x, const char* x_name) {
  const auto sizes = t.sizes(), expected = x.sizes();
  const bool same = sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin());
  ADVFEAT_CHECK(same, name, " should have the shape of ", x_name, " ", shape(x), ", got ", shape(t));
}

void check_same_dtype(const Tensor& t, const char* name, const Tensor& x, const char* x_name) {
  ADVFEAT_CHECK(t.scalar_type() == x.scalar_type(), name, " should have the dtype of ", x_name, ", ", dtype_name(x),
                ", got ", dtype_name(t));
}

void check_same_device(const Tensor& t, const char* name, const Tensor& x, const char* x_name) {
  ADVFEAT_CHECK(t.is_cpu() == x.is_cpu() && t.get_device_index() == x.get_device_index(), name,
                " should be on the device of ", x_name, ", but is on another one");
}

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

int64_t row_stride(const Tensor& t, int64_t dim) { return t.size(0) > 1 ? t.stride(0) : dim; }

void check_no_overlap(const Tensor& t, const char* name, const Shape& shape, Layout layout) {
  if (shape.rows == 0 || shape.dim == 0) return;
  const auto sizes = t.sizes(), strides = t.strides();
  bool apart = layout == Layout::other || shape.rows < 2 || strides[0] >= shape.dim;
  for (size_t i = 0; apart && i < sizes.size(); ++i) apart = sizes[i] < 2 || strides[i] != 0;
  ADVFEAT_CHECK(apart, name, " is written to, so its values should not share memory (it is expanded; clone it first)");
}

namespace {

// Whether a row of one shares memory with a row of the other, but for tensors that lie in just the same place.
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

}  // namespace

void check_apart(const Rows& written, const char* written_name, const Rows& read, const char* name, int64_t rows) {
  ADVFEAT_CHECK(!overlap_in_part(written, read, rows), name, " should not share a part of its memory with ",
                written_name, ", which is written to (clone one of them first)");
}

}  // namespace advfeat
