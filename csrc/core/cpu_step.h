// How a step, or another pass over rows, is cut into work for threads on the CPU.
//
// Blocks have a fixed size inside a row, whatever the number of threads and rows: a result depends on neither.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "rows.h"

namespace advfeat::cpu {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 4096;   // values: three float32 operands of a block are 48 KiB, within a second-level cache
constexpr int64_t kGrain = 32768;  // values per thread, at least; fewer cost more to hand out than to compute

// Bounds by channel, spread out to the values of a row, so that the inner loops only ever read lo[i] and hi[i].
class RowBox {
 public:
  explicit RowBox(const StepArgs& a) : box_{a.lo.value, a.hi.value} {
    if (!a.lo.channels && !a.hi.channels) return;
    a.dtype == Dtype::float64 ? spread(a, doubles_) : spread(a, floats_);
  }
  const Box& box() const { return box_; }

 private:
  template <typename A>
  void spread(const StepArgs& a, std::vector<A>& row) {
    row.resize(2 * a.dim);
    for (int64_t i = 0; i < a.dim; ++i) {
      const int64_t channel = (i / a.inner) % a.channels;
      row[i] = static_cast<A>(at(a.lo, channel));
      row[a.dim + i] = static_cast<A>(at(a.hi, channel));
    }
    box_.lo_row = row.data();
    box_.hi_row = row.data() + a.dim;
  }
  Box box_;
  std::vector<float> floats_;
  std::vector<double> doubles_;
};

struct Blocks {
  int64_t per_row, count, grain;
  template <typename Args>
  explicit Blocks(const Args& a)
      : per_row((a.dim + kBlock - 1) / kBlock),
        count(per_row * a.rows),
        grain(std::max<int64_t>(1, kGrain / std::min(a.dim, kBlock))) {}
};

// Calls body(row, scratch), which returns the GradFlags of the row, for rows that are passed over some thirty times,
// and counts bad gradients. A few such rows are worth a thread.
template <typename Body>
void for_each_searched_row(const StepArgs& a, Body body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / 16 / a.dim);
  parallel_for(0, a.rows, grain, [&](int64_t first, int64_t last) {
    std::vector<double> scratch(row_scratch(a.dim));
    for (int64_t row = first; row < last; ++row) {
      const uint8_t flags = body(row, scratch.data());
      if (a.grad) count_bad(a, row, !(flags & kGradNonzero), flags & kGradNotFinite);
    }
  });
}

template <typename Args, typename Body>
void for_each_block(const Args& a, int64_t row, Body body) {
  for (int64_t begin = 0; begin < a.dim; begin += kBlock) body(row, begin, std::min(begin + kBlock, a.dim));
}

}  // namespace advfeat::cpu
