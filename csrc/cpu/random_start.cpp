// A random point of the ball around each sample, clipped to the box; once an attack, so written for clarity, in
// float64.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../philox.h"
#include "kernels.h"

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
    A v = static_cast<A>(x0[i]) + static_cast<A>(offset(i));
    v = v < lo ? lo : v;
    out[i] = static_cast<T>(v > hi ? hi : v);
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

}  // namespace

void random_start_linf(const RandomStartArgs& a) {
  for_each_row(a, [&](int64_t row) {
    const double eps = at(a.eps, row);
    Philox4 words{};
    write_row(a, row, [&](int64_t i) {
      if (i % 4 == 0) words = philox(a.seed, a.sample_ids[row], static_cast<uint32_t>(i / 4), Stream::values);
      return (2 * open_unit(words.v[i % 4]) - 1) * eps;
    });
  });
}

void random_start_l2(const RandomStartArgs& a) {
  for_each_row(a, [&](int64_t row) {
    // A Gaussian vector has a uniform direction (Box-Muller: two words give two normals); the radius of a uniform point
    // of the ball is eps U^(1/D).
    std::vector<double> normal(static_cast<size_t>((a.dim + 3) / 4 * 4));
    double sum = 0;
    for (int64_t i = 0; i < a.dim; i += 4) {
      const Philox4 w = philox(a.seed, a.sample_ids[row], static_cast<uint32_t>(i / 4), Stream::values);
      for (int j = 0; j < 4; j += 2) {
        const double r = std::sqrt(-2 * std::log(open_unit(w.v[j]))), angle = 2 * M_PI * open_unit(w.v[j + 1]);
        normal[i + j] = r * std::cos(angle);
        normal[i + j + 1] = r * std::sin(angle);
      }
      for (int64_t j = i; j < std::min(i + 4, a.dim); ++j) sum += normal[j] * normal[j];
    }
    const double u = open_unit(philox(a.seed, a.sample_ids[row], 0, Stream::radius).v[0]);
    const double scale = at(a.eps, row) * std::pow(u, 1.0 / static_cast<double>(a.dim)) / std::sqrt(sum);
    write_row(a, row, [&](int64_t i) { return normal[i] * scale; });
  });
}

}  // namespace advfeat::cpu
