// The scalar part of the L2 step, for one row and both devices: from the three sums of a row to what each value needs.
//
// With d = x - x0 and u = a g/||g||:  ||d + u||^2 = ||d||^2 + 2 a <d, g>/||g|| + a^2, so one reduction over the row gives the norm
// of the gradient and the norm of the moved point at once (no second pass, no additive epsilon).
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define ADVFEAT_HOST_DEVICE __host__ __device__
#else
#define ADVFEAT_HOST_DEVICE
#endif

namespace advfeat {

// Sums over a row of (grad_scale g)^2, (grad_scale g)(d_scale d) and (d_scale d)^2, in float64.
struct L2Sums {
  double gg = 0, dg = 0, dd = 0;
};

// Powers of two that bring a row into the range where squares neither overflow nor vanish. Float64 accumulation covers all
// of float32 (1e-45 squared is 1e-90), so these differ from 1 only for extreme float64 rows.
struct L2Scales {
  double grad = 1, d = 1;
};

// What the second half does to each value: y = d + (g * prescale) * factor, then out = x0 + shrink * y, or x + ... inside.
struct L2Move {
  bool has_grad = false;  // false: the gradient is absent, zero or not finite, and is not looked at again
  bool inside = true;     // the moved point is in the ball: nothing is rounded that need not be
  double prescale = 1;    // a power of two, exact; keeps g * prescale * factor normal for any finite gradient
  double factor = 0;
  double shrink = 1;
};

ADVFEAT_HOST_DEVICE inline bool finite(double v) { return v - v == 0; }

ADVFEAT_HOST_DEVICE inline bool in_safe_range(double sum) { return sum == 0 || (sum > 1e-250 && sum < 1e250); }

// The power of two 2^-e with |v| in [2^e, 2^(e+1)), limited so that it is a normal number of the arithmetic type.
ADVFEAT_HOST_DEVICE inline double inverse_power_of_two(double v, int limit) {
  if (!(v > 0) || !finite(v)) return 1;
  int e = ilogb(v);
  e = e > limit ? limit : (e < -limit ? -limit : e);
  return ldexp(1.0, -e);
}

// The squared cosine form loses digits when d and the step nearly cancel; below this the caller measures the norm directly.
constexpr double kCancellation = 1e-3;

// The gradient's part of the move. float_exponent: 126 for float32 arithmetic, 1022 for float64.
ADVFEAT_HOST_DEVICE inline L2Move l2_direction(const L2Sums& s, const L2Scales& scales, double step_size, bool grad,
                                               int float_exponent) {
  L2Move m;
  m.has_grad = grad && s.gg > 0 && finite(s.gg);
  if (m.has_grad) {
    const double norm = sqrt(s.gg);  // of grad * scales.grad
    const double inverse = inverse_power_of_two(norm / scales.grad, float_exponent);
    m.prescale = inverse;
    // factor = step_size / (true norm * prescale), in an order that never leaves the range
    m.factor = step_size / (norm * (inverse / scales.grad));
  }
  return m;
}

// ||d + u|| from the sums, or a negative number when it has to be measured directly.
ADVFEAT_HOST_DEVICE inline double l2_moved_norm(const L2Sums& s, const L2Scales& scales, double step_size,
                                                const L2Move& m) {
  const double d = sqrt(s.dd) / scales.d;
  if (!m.has_grad) return d;
  const double a = fabs(step_size);
  const double r = d > a ? d : a;
  if (!(r > 0) || !finite(r)) return d + a;
  double cosine = s.dd > 0 ? s.dg / (sqrt(s.dd) * sqrt(s.gg)) : 0;
  if (step_size < 0) cosine = -cosine;
  const double u = d / r, v = a / r;
  const double t = u * u + 2 * u * v * cosine + v * v;
  if (t < kCancellation) return -1;
  return r * sqrt(t);
}

ADVFEAT_HOST_DEVICE inline void l2_set_shrink(L2Move& m, double moved_norm, double eps) {
  m.inside = eps > 0 ? moved_norm <= eps : false;
  if (m.inside) return;
  m.shrink = eps > 0 ? eps / moved_norm : 0;  // NaN stays NaN; eps = 0 gives x0 itself
}

}  // namespace advfeat
