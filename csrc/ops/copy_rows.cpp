// copy_rows_: the operator, and its kernel on the CPU.
#include "copy_rows.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) { m.def("copy_rows_(Tensor(a!) dst, Tensor src, Tensor mask) -> ()"); }

namespace advfeat {

Prepared<CopyRowsArgs> prepare_copy_rows(const Tensor& dst, const Tensor& src, const Tensor& mask) {
  Prepared<CopyRowsArgs> p;
  CopyRowsArgs& a = p.args;
  const Shape s = rows_and_dim(dst, "dst");
  check_same_shape(src, "src", dst, "dst");
  check_same_dtype(src, "src", dst, "dst");
  check_same_device(src, "src", dst, "dst");
  check_no_overlap(dst, "dst", s, layout_of(dst));
  ADVFEAT_CHECK(mask.defined(), "mask should be a bool tensor [B] = (", s.rows, ",), got None");
  ADVFEAT_CHECK(mask.dim() == 1 && mask.size(0) == s.rows && mask.scalar_type() == torch::headeronly::ScalarType::Bool,
                "mask should be a bool tensor [B] = (", s.rows, ",), got ", dtype_name(mask), " of shape ",
                shape(mask));
  check_same_device(mask, "mask", dst, "dst");

  const Layout layout = layout_of(dst) == Layout::other ? Layout::contiguous : layout_of(dst);
  const Tensor to = lying(dst, layout), from = lying(src, layout), which = torch::stable::contiguous(mask);
  p.alive = {to, from, which};
  p.result = dst;
  if (!rows_lie(dst, layout)) p.copies.push_back({dst, to});
  const int64_t bytes = static_cast<int64_t>(dst.element_size());
  a.dst = to.mutable_data_ptr();
  a.src = from.const_data_ptr();
  a.mask = which.const_data_ptr<bool>();
  a.device = dst.get_device_index();
  a.rows = s.rows;
  a.row_bytes = s.dim * bytes;
  a.dst_stride_bytes = row_stride(to, s.dim) * bytes;
  a.src_stride_bytes = row_stride(from, s.dim) * bytes;
  const Rows written(a.dst, a.dst_stride_bytes, a.row_bytes);
  check_apart(written, "dst", Rows(a.src, a.src_stride_bytes, a.row_bytes), "src", s.rows);
  check_apart(written, "dst", Rows(a.mask, 1, 1), "mask", s.rows);
  return p;
}

}  // namespace advfeat

namespace advfeat::cpu {
namespace {

void copy_rows(const CopyRowsArgs& a) {
  // A thread copies 64 KiB at least.
  const int64_t grain = std::max<int64_t>(1, 65536 / a.row_bytes);
  torch::stable::parallel_for(0, a.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      if (a.mask[row])  // memmove, because dst may be src
        std::memmove(static_cast<char*>(a.dst) + row * a.dst_stride_bytes,
                     static_cast<const char*>(a.src) + row * a.src_stride_bytes, static_cast<size_t>(a.row_bytes));
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) { m.impl("copy_rows_", TORCH_BOX(&copy_rows_<copy_rows>)); }

}  // namespace advfeat::cpu
