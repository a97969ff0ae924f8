// accumulate_gradient_: the operator, and its kernel on the CPU.
#include "accumulate_gradient.h"

#include "../core/cpu_step.h"

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def("accumulate_gradient_(Tensor(a!) total, Tensor grad, float decay, Tensor(b!)? grad_status) -> ()");
}

namespace advfeat {

Prepared<AccumulateArgs> prepare_accumulate(const Tensor& total, const Tensor& grad, double decay,
                                            const OptionalTensor& grad_status) {
  Prepared<AccumulateArgs> p;
  AccumulateArgs& a = p.args;
  const Shape s = rows_and_dim(total, "total");
  a.rows = s.rows;
  a.dim = s.dim;
  a.dtype = floating_dtype(total, "total");
  a.grad_dtype = gradient_dtype(grad, total, "total");
  a.device = total.get_device_index();
  ADVFEAT_CHECK(decay >= 0 && decay <= 1, "decay should be at least 0 and at most 1, got ", decay);
  a.decay = decay;
  a.grad_status = counters_of(grad_status, s.rows, total, "total");

  const Layout layout = common_layout(total, &grad);
  check_no_overlap(total, "total", s, layout);
  const Layout kernel_layout = layout == Layout::other ? Layout::contiguous : layout;
  const Tensor to = lying(total, kernel_layout), from = lying(grad, kernel_layout);
  p.alive = {to, from};
  p.result = total;
  if (layout == Layout::other) p.copies.push_back({total, to});
  a.total = to.mutable_data_ptr();
  a.grad = from.const_data_ptr();
  a.total_stride = row_stride(to, s.dim);
  a.grad_stride = row_stride(from, s.dim);
  if (s.rows == 0) return p;
  const int64_t bytes = static_cast<int64_t>(total.element_size()),
                grad_bytes = static_cast<int64_t>(grad.element_size());
  const Rows written(a.total, a.total_stride * bytes, s.dim * bytes);
  check_apart(written, "total", Rows(a.grad, a.grad_stride * grad_bytes, s.dim * grad_bytes), "grad", s.rows);
  if (a.grad_status) check_apart(written, "total", Rows(a.grad_status, 8, 8), "grad_status", s.rows);
  return p;
}

}  // namespace advfeat

namespace advfeat::cpu {
namespace {

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : (dtype == Dtype::float32 ? 4 : 2); }

class AccumulatedRow {
 public:
  AccumulatedRow(const AccumulateArgs& a, const RowKernels& k, int64_t row)
      : a_(a),
        k_(k),
        row_(row),
        total_(static_cast<char*>(a.total) + row * a.total_stride * bytes_of(a.dtype)),
        grad_(static_cast<const char*>(a.grad) + row * a.grad_stride * bytes_of(a.grad_dtype)) {}

  double sum(int64_t begin, int64_t end, double scale = 1) const { return k_.l1_sum(grad_, begin, end, scale); }

  double sum_of_row(double scale = 1) const {
    double all = 0;
    for_each_block(a_, row_, [&](int64_t, int64_t begin, int64_t end) { all += sum(begin, end, scale); });
    return all;
  }

  // From the sum of the row; counts its gradient.
  L1Direction direction(double all) const {
    const bool smaller = a_.dtype == Dtype::float64 && !finite(all);
    if (smaller) all = sum_of_row(kSmaller);
    count_bad(a_, row_, all == 0, !finite(all));
    return l1_direction(all, smaller, a_.dtype == Dtype::float64);
  }

  void accumulate(int64_t begin, int64_t end, const L1Direction& d) const {
    k_.accumulate(total_, d.usable ? grad_ : nullptr, begin, end, a_.decay, d.prescale, d.factor);
  }

 private:
  const AccumulateArgs& a_;
  const RowKernels& k_;
  int64_t row_;
  char* total_;
  const char* grad_;
};

void accumulate_gradient(const AccumulateArgs& a) {
  const RowKernels& k = row_kernels(a.dtype, a.grad_dtype);
  const Blocks blocks(a);
  if (a.rows >= torch::stable::get_num_threads() || blocks.per_row == 1) {
    // Enough rows for all threads: a thread finishes a row while it is still in its cache.
    parallel_for(0, a.rows, std::max<int64_t>(1, kGrain / a.dim), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const AccumulatedRow row(a, k, i);
        const L1Direction direction = row.direction(row.sum_of_row());
        for_each_block(a, i, [&](int64_t, int64_t begin, int64_t end) { row.accumulate(begin, end, direction); });
      }
    });
    return;
  }
  // Few long rows: all threads work on blocks, first for the sums, then for the values.
  std::vector<double> sums(blocks.count);
  parallel_for(0, blocks.count, blocks.grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = (i % blocks.per_row) * kBlock;
      sums[i] = AccumulatedRow(a, k, i / blocks.per_row).sum(begin, std::min(begin + kBlock, a.dim));
    }
  });
  std::vector<L1Direction> directions(a.rows);
  for (int64_t row = 0; row < a.rows; ++row) {
    double all = 0;
    for (int64_t i = 0; i < blocks.per_row; ++i) all += sums[row * blocks.per_row + i];
    directions[row] = AccumulatedRow(a, k, row).direction(all);
  }
  parallel_for(0, blocks.count, blocks.grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / blocks.per_row, begin = (i % blocks.per_row) * kBlock;
      AccumulatedRow(a, k, row).accumulate(begin, std::min(begin + kBlock, a.dim), directions[row]);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) {
  m.impl("accumulate_gradient_", TORCH_BOX(&accumulate_gradient_<accumulate_gradient>));
}

}  // namespace advfeat::cpu
