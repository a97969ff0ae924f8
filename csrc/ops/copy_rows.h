// copy_rows_: its arguments, and the function that the dispatcher calls.
#pragma once

#include "../core/boxed.h"

namespace advfeat {

// For each row with mask: dst = src.
struct CopyRowsArgs {
  void* dst = nullptr;
  const void* src = nullptr;
  const bool* mask = nullptr;  // [B]
  int device = -1;             // CUDA device index
  int64_t rows = 0, row_bytes = 0;
  int64_t dst_stride_bytes = 0, src_stride_bytes = 0;
};

// dst, src [B, ...] of one dtype, whichever it is; mask bool [B].
Prepared<CopyRowsArgs> prepare_copy_rows(const Tensor& dst, const Tensor& src, const Tensor& mask);

template <void (*kernel)(const CopyRowsArgs&)>
void copy_rows_(Tensor dst, Tensor src, Tensor mask) {
  Prepared<CopyRowsArgs> p = prepare_copy_rows(dst, src, mask);
  if (p.args.rows > 0 && p.args.row_bytes > 0) kernel(p.args);
  p.finish();
}

}  // namespace advfeat
