// l2_step and project_l2: the operators, and their kernel on the CPU. The scalar part of a row is core/l2_math.h.
#include "../core/boxed.h"
#include "../core/cpu_step.h"

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def(
      "l2_step(Tensor x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "l2_step_(Tensor(a!) x, Tensor grad, Tensor x0, float step_size, float eps, float lo, float hi, "
      "Tensor? step_size_rows, Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels, "
      "Tensor(b!)? grad_status, Tensor(c!)? velocity, float momentum) -> ()");
  m.def(
      "project_l2(Tensor x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "project_l2_(Tensor(a!) x, Tensor x0, float eps, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> ()");
}

namespace advfeat::cpu {
namespace {

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
    if (a_.dtype == Dtype::float64 && needs_scales(s, a_.grad)) {
      L2Max m;
      for_each_block(a_, row_, [&](int64_t r, int64_t begin, int64_t end) {
        const L2Max part = k_.l2_max(a_, r, begin, end);
        m.grad = larger(m.grad, part.grad);
        m.d = larger(m.d, part.d);
      });
      scales = scales_for(m.grad, m.d);
      s = sums_of_row(a_, k_, row_, scales);
      zero = m.grad == 0;
      not_finite = !finite(m.grad);
    }
    const double step_size = at(a_.step_size, row_);
    L2Move move = l2_direction(s, scales, step_size, a_.grad && !not_finite, a_.dtype == Dtype::float64);
    double norm = l2_moved_norm(s, scales, step_size, move);
    if (norm < 0) {
      const double scale = moved_scale(s, scales, step_size);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) {
  m.impl("l2_step", TORCH_BOX(&step<l2_step>));
  m.impl("l2_step_", TORCH_BOX(&step_<l2_step>));
  m.impl("project_l2", TORCH_BOX(&project<l2_step>));
  m.impl("project_l2_", TORCH_BOX(&project_<l2_step>));
}

}  // namespace advfeat::cpu
