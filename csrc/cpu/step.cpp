// linf_step, l2_step and the projections: the split of the work over threads, and what is decided once a row.
//
// Work is cut into blocks of fixed size inside a row, whatever the number of threads and rows: a result depends on
// neither.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../l2_math.h"
#include "kernels.h"
#include "rows.h"

namespace advfeat::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 4096;   // values: three float32 operands of a block are 48 KiB, within a second-level cache
constexpr int64_t kGrain = 32768;  // values a thread should have at least; fewer cost more to hand out than to do

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
  explicit Blocks(const StepArgs& a)
      : per_row((a.dim + kBlock - 1) / kBlock),
        count(per_row * a.rows),
        grain(std::max<int64_t>(1, kGrain / std::min(a.dim, kBlock))) {}
};

template <typename Body>
void for_each_block(const StepArgs& a, int64_t row, Body body) {
  for (int64_t begin = 0; begin < a.dim; begin += kBlock) body(row, begin, std::min(begin + kBlock, a.dim));
}

void count_bad(const StepArgs& a, int64_t row, bool zero, bool not_finite) {
  if (!a.grad_status) return;
  a.grad_status[2 * row] += zero;
  a.grad_status[2 * row + 1] += not_finite;
}

// One row of the L2 step: the three norms, then what each value needs.
class L2Row {
 public:
  L2Row(const StepArgs& a, const RowKernels& k, int64_t row) : a_(a), k_(k), row_(row) {}

  static L2Sums sums_of_row(const StepArgs& a, const RowKernels& k, int64_t row, const L2Scales& scales) {
    L2Sums s;
    for_each_block(a, row, [&](int64_t r, int64_t begin, int64_t end) { add(s, k.l2_sums(a, r, begin, end, scales)); });
    return s;
  }
  static void add(L2Sums& s, const L2Sums& part) {
    s.gg += part.gg;
    s.dg += part.dg;
    s.dd += part.dd;
  }

  L2Move move(L2Sums s) const {
    L2Scales scales;
    bool zero = s.gg == 0, not_finite = !finite(s.gg);
    const bool grad_safe = !a_.grad || (s.gg != 0 && in_safe_range(s.gg));
    if (a_.dtype == Dtype::float64 && !(grad_safe && s.dd != 0 && in_safe_range(s.dd))) {
      // Squares may have vanished or overflowed: look at the magnitudes, and sum again in a safe range.
      L2Max m;
      for_each_block(a_, row_, [&](int64_t r, int64_t begin, int64_t end) {
        const L2Max part = k_.l2_max(a_, r, begin, end);
        if (part.grad > m.grad || part.grad != part.grad) m.grad = part.grad;
        if (part.d > m.d || part.d != part.d) m.d = part.d;
      });
      scales = {inverse_power_of_two(exponent_of(m.grad), 1000), inverse_power_of_two(exponent_of(m.d), 1000)};
      s = sums_of_row(a_, k_, row_, scales);
      zero = m.grad == 0;
      not_finite = !finite(m.grad);
    }
    const double step_size = at(a_.step_size, row_);
    L2Move move = l2_direction(s, scales, step_size, a_.grad && !not_finite, a_.dtype == Dtype::float64 ? 1022 : 126);
    double norm = l2_moved_norm(s, scales, step_size, move);
    if (norm < 0) {
      const double longest = std::max(std::sqrt(s.dd) / scales.d, std::fabs(step_size));
      const double scale = inverse_power_of_two(exponent_of(longest), 1000);
      double sum = 0;
      for_each_block(a_, row_, [&](int64_t r, int64_t begin, int64_t end) {
        sum += k_.l2_moved_sum(a_, r, begin, end, move, scale);
      });
      norm = std::sqrt(sum) / scale;
    }
    l2_set_shrink(move, norm, at(a_.eps, row_));
    if (a_.grad) count_bad(a_, row_, zero, not_finite);
    return move;
  }

 private:
  const StepArgs& a_;
  const RowKernels& k_;
  int64_t row_;
};

}  // namespace

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

void l2_step(const StepArgs& a) {
  const RowKernels& k = row_kernels(a.dtype, a.grad_dtype);
  const RowBox box(a);
  const Blocks blocks(a);
  const int64_t threads = torch::stable::get_num_threads();
  if (a.rows >= threads || blocks.per_row == 1) {
    // Enough rows for all threads: a thread finishes a row while it is still in its cache.
    parallel_for(0, a.rows, std::max<int64_t>(1, kGrain / a.dim), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const L2Move move = L2Row(a, k, row).move(L2Row::sums_of_row(a, k, row, {}));
        for_each_block(a, row,
                       [&](int64_t r, int64_t begin, int64_t end) { k.l2_apply(a, box.box(), r, begin, end, move); });
      }
    });
    return;
  }
  // Few long rows: all threads work on blocks, first for the sums, then for the values.
  std::vector<L2Sums> sums(blocks.count);
  parallel_for(0, blocks.count, blocks.grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = (i % blocks.per_row) * kBlock;
      sums[i] = k.l2_sums(a, i / blocks.per_row, begin, std::min(begin + kBlock, a.dim), {});
    }
  });
  std::vector<L2Move> moves(a.rows);
  for (int64_t row = 0; row < a.rows; ++row) {
    L2Sums s;
    for (int64_t i = 0; i < blocks.per_row; ++i) L2Row::add(s, sums[row * blocks.per_row + i]);
    moves[row] = L2Row(a, k, row).move(s);
  }
  parallel_for(0, blocks.count, blocks.grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / blocks.per_row, begin = (i % blocks.per_row) * kBlock;
      k.l2_apply(a, box.box(), row, begin, std::min(begin + kBlock, a.dim), moves[row]);
    }
  });
}

}  // namespace advfeat::cpu
