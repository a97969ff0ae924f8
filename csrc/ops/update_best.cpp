// Keeps the better iterate of each sample: the operator, and its kernel on the CPU.
#include "update_best.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def("update_best_(Tensor(a!) best_x, Tensor(b!) best_value, Tensor x, Tensor value) -> ()");
}

namespace advfeat {

using torch::headeronly::ScalarType;

Prepared<UpdateBestArgs> prepare_update_best(const Tensor& best_x, const Tensor& best_value, const Tensor& x,
                                             const Tensor& value) {
  Prepared<UpdateBestArgs> p;
  UpdateBestArgs& a = p.args;
  const Shape s = rows_and_dim(x, "x");
  check_same_shape(best_x, "best_x", x, "x");
  check_same_device(best_x, "best_x", x);
  check_no_overlap(best_x, "best_x", s, layout_of(best_x));
  ADVFEAT_CHECK(best_x.scalar_type() == x.scalar_type(), "best_x should have the dtype of x, ", dtype_name(x), ", got ",
                dtype_name(best_x));
  const auto check_value = [&](const Tensor& t, const char* name) {
    ADVFEAT_CHECK(t.dim() == 1 && t.size(0) == s.rows, name, " should be a tensor [B] = (", s.rows, ",), got shape ",
                  shape(t));
    ADVFEAT_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  " should be float32 or float64, got ", dtype_name(t));
    check_same_device(t, name, x);
  };
  check_value(best_value, "best_value");
  check_value(value, "value");
  ADVFEAT_CHECK(best_value.scalar_type() == value.scalar_type(), "best_value should have the dtype of value, ",
                dtype_name(value), ", got ", dtype_name(best_value));
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
  const Rows kept(a.best_x, a.best_x_stride_bytes, a.row_bytes);
  const Rows offered(a.x, a.x_stride_bytes, a.row_bytes);
  const int64_t size = static_cast<int64_t>(value.element_size());
  const Rows kept_value(a.best_value, size, size);
  const Rows offered_value(a.value, size, size);
  check_apart(kept, "best_x", offered, "x", s.rows);
  check_apart(kept, "best_x", offered_value, "value", s.rows);
  check_apart(kept_value, "best_value", offered_value, "value", s.rows);
  check_apart(kept_value, "best_value", offered, "x", s.rows);
  check_apart(kept_value, "best_value", kept, "best_x", s.rows);
  a.device = x.get_device_index();
  return p;
}

}  // namespace advfeat

namespace advfeat::cpu {
namespace {

template <typename V>
void update(const UpdateBestArgs& a) {
  V* best = static_cast<V*>(a.best_value);
  const V* value = static_cast<const V*>(a.value);
  torch::stable::parallel_for(
      0, a.rows, std::max<int64_t>(1, 65536 / (a.row_bytes + 1)), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
          if (!is_better(value[row], best[row])) continue;
          best[row] = value[row];
          if (a.row_bytes > 0)
            std::memmove(static_cast<char*>(a.best_x) + row * a.best_x_stride_bytes,
                         static_cast<const char*>(a.x) + row * a.x_stride_bytes, static_cast<size_t>(a.row_bytes));
        }
      });
}

void update_best(const UpdateBestArgs& a) { a.value_is_double ? update<double>(a) : update<float>(a); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) { m.impl("update_best_", TORCH_BOX(&update_best_<update_best>)); }

}  // namespace advfeat::cpu
