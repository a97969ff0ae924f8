// random_start_linf and random_start_l2: the operators, and their kernels on the CPU. They run once per attack, so they
// are written for clarity, in float64.
#include "random_start.h"

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) {
  m.def(
      "random_start_linf(Tensor x0, float eps, int seed, Tensor sample_ids, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
  m.def(
      "random_start_l2(Tensor x0, float eps, int seed, Tensor sample_ids, float lo, float hi, "
      "Tensor? eps_rows, Tensor? lo_channels, Tensor? hi_channels) -> Tensor");
}

namespace advfeat {

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
  ADVFEAT_CHECK(sample_ids.dim() == 1 && sample_ids.size(0) == s.rows &&
                    sample_ids.scalar_type() == torch::headeronly::ScalarType::Long,
                "sample_ids should be an int64 tensor [B] = (", s.rows, ",), got ", dtype_name(sample_ids),
                " of shape ", shape(sample_ids));
  check_same_device(sample_ids, "sample_ids", x0);
  const bool has_ball = numbers.eps_rows || is_finite(numbers.eps);
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
    p.copies.push_back({p.result, out});
  }
  p.alive.push_back(out);
  a.out = out.mutable_data_ptr();
  set_eps_and_box(p, numbers, x0, Layout::contiguous);
  check_values(a.eps.rows, s.rows, a.eps.rows && x0.is_cpu(), "eps", "finite for a random start", is_finite);
  return p;
}

}  // namespace advfeat

namespace advfeat::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Writes x0 + offset(i), clipped. Arithmetic in float, or double for float64: the bound x0 + eps is the kernels' own.
template <typename T, typename A, typename Offset>
void write_row(const RandomStartArgs& a, int64_t row, Offset offset) {
  const T* x0 = static_cast<const T*>(a.x0) + row * a.dim;
  T* out = static_cast<T*>(a.out) + row * a.dim;
  for (int64_t i = 0; i < a.dim; ++i) {
    const int64_t channel = (i / a.inner) % a.channels;
    const A lo = static_cast<A>(at(a.lo, channel)), hi = static_cast<A>(at(a.hi, channel));
    out[i] = static_cast<T>(clip(static_cast<A>(x0[i]) + static_cast<A>(offset(i)), lo, hi));
  }
}

template <typename Offset>
void write_row(const RandomStartArgs& a, int64_t row, Offset offset) {
  switch (a.dtype) {
    case Dtype::float32:
      return write_row<float, float>(a, row, offset);
    case Dtype::float64:
      return write_row<double, double>(a, row, offset);
    case Dtype::float16:
      return write_row<Half, float>(a, row, offset);
    case Dtype::bfloat16:
      return write_row<BFloat16, float>(a, row, offset);
  }
}

template <typename Body>
void for_each_row(const RandomStartArgs& a, Body body) {
  torch::stable::parallel_for(0, a.rows, std::max<int64_t>(1, 4096 / a.dim), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) body(row);
  });
}

void random_start_linf(const RandomStartArgs& a) {
  for_each_row(a, [&](int64_t row) {
    const double eps = at(a.eps, row);
    Philox4 words{};
    write_row(a, row, [&](int64_t i) {
      if (i % 4 == 0) words = quad_words(a, row, i / 4);
      return signed_unit(words.v[i % 4]) * eps;
    });
  });
}

void random_start_l2(const RandomStartArgs& a) {
  for_each_row(a, [&](int64_t row) {
    std::vector<double> normal(static_cast<size_t>(a.dim));
    double squares = 0;
    for (int64_t i = 0; i < a.dim; i += 4) {
      double quad[4];
      normal_quad(a, row, i / 4, quad);
      for (int64_t j = i; j < std::min(i + 4, a.dim); ++j) {
        normal[j] = quad[j - i];
        squares += normal[j] * normal[j];
      }
    }
    const double scale = ball_scale(a, row, squares);
    write_row(a, row, [&](int64_t i) { return normal[i] * scale; });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) {
  m.impl("random_start_linf", TORCH_BOX(&random_start<random_start_linf>));
  m.impl("random_start_l2", TORCH_BOX(&random_start<random_start_l2>));
}

}  // namespace advfeat::cpu
