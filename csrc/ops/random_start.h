// The random starts: their arguments, the function that the dispatcher calls, and the random numbers of both devices.
#pragma once

#include "../core/boxed.h"
#include "../core/philox.h"

namespace advfeat {

// out = a random point of the ball around x0, clipped to the box. out and x0 are contiguous.
struct RandomStartArgs {
  void* out = nullptr;
  const void* x0 = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, dim = 0;
  Dtype dtype = Dtype::float32;
  PerRow eps;
  Bound lo, hi;
  int64_t channels = 1, inner = 1;
  uint64_t seed = 0;
  const int64_t* sample_ids = nullptr;  // [B]
};

// x0 [B, ...] floating; sample_ids int64 [B].
Prepared<RandomStartArgs> prepare_random_start(const Tensor& x0, int64_t seed, const Tensor& sample_ids,
                                               const StepNumbers& numbers);

template <void (*kernel)(const RandomStartArgs&)>
Tensor random_start(Tensor x0, double eps, int64_t seed, Tensor sample_ids, double lo, double hi,
                    OptionalTensor eps_rows, OptionalTensor lo_channels, OptionalTensor hi_channels) {
  const OptionalTensor none;
  Prepared<RandomStartArgs> p =
      prepare_random_start(x0, seed, sample_ids, {0, eps, lo, hi, none, eps_rows, lo_channels, hi_channels});
  if (p.args.rows > 0 && p.args.dim > 0) kernel(p.args);
  p.finish();
  return p.result;
}

// A quad is the values 4 * quad ... 4 * quad + 3 of a row: what one call of Philox makes.
ADVFEAT_HOST_DEVICE inline Philox4 quad_words(const RandomStartArgs& a, int64_t row, int64_t quad) {
  return philox(a.seed, a.sample_ids[row], static_cast<uint32_t>(quad), Stream::values);
}

// A uniform number of (-1, 1), exact.
ADVFEAT_HOST_DEVICE inline double signed_unit(uint32_t word) { return 2 * open_unit(word) - 1; }

// Four normal numbers: two words give two (Box-Muller).
ADVFEAT_HOST_DEVICE inline void normal_quad(const RandomStartArgs& a, int64_t row, int64_t quad, double (&normal)[4]) {
  constexpr double kTwoPi = 2 * 3.14159265358979323846;
  const Philox4 words = quad_words(a, row, quad);
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int j = 0; j < 4; j += 2) {
    const double r = sqrt(-2 * log(open_unit(words.v[j]))), angle = kTwoPi * open_unit(words.v[j + 1]);
#ifdef __CUDA_ARCH__
    double sine, cosine;
    sincos(angle, &sine, &cosine);
#else
    const double sine = sin(angle), cosine = cos(angle);
#endif
    normal[j] = r * cosine;
    normal[j + 1] = r * sine;
  }
}

// What a vector of normal numbers is scaled by, given the sum of their squares. It has a uniform direction; the radius
// of a uniform point of the ball is eps U^(1/D).
ADVFEAT_HOST_DEVICE inline double ball_scale(const RandomStartArgs& a, int64_t row, double squares) {
  const double u = open_unit(philox(a.seed, a.sample_ids[row], 0, Stream::radius).v[0]);
  return at(a.eps, row) * pow(u, 1.0 / static_cast<double>(a.dim)) / sqrt(squares);
}

}  // namespace advfeat
