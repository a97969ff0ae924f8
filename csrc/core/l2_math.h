// The scalar part of the L2 step, for one row and both devices: from the three sums of a row to what each value needs.
//
// With d = x - x0 and u = a g/||g||:  ||d + u||^2 = ||d||^2 + 2 a <d, g>/||g|| + a^2, so one reduction over the row
// gives the norm of the gradient and the norm of the moved point at once (no second pass, no additive epsilon).
#pragma once

#include "host_device.h"

namespace advfeat {

// Sums over a row of (grad_scale g)^2, (grad_scale g)(d_scale d) and (d_scale d)^2, in float64.
struct L2Sums {
  double gg = 0, dg = 0, dd = 0;
};

// Powers of two that bring a row into the range where squares neither overflow nor vanish. Float64 accumulation covers
// all of float32 (1e-45 squared is 1e-90), so these differ from 1 only for extreme float64 rows.
struct L2Scales {
  double grad = 1, d = 1;
};

// What the second half does to each value. Inside the ball:  x + (g * prescale) * factor, and x itself without a
// gradient; outside:  x0 + (d * d_prescale) * shrink + (g * prescale) * factor.  The prescales are powers of two, so
// exact; they keep every factor and product a normal number, whatever the size of the gradient and the ball.
struct L2Move {
  bool has_grad = false;  // false: the gradient is absent, zero or not finite, and is not looked at again
  bool inside = true;
  double prescale = 1;
  double factor = 0;  // step_size / ||g * prescale||, outside also times the shrinkage
  double d_prescale = 1;
  double shrink = 1;  // with d_prescale: eps / ||d + step||
};

ADVFEAT_HOST_DEVICE inline bool in_safe_range(double sum) { return sum == 0 || (sum > 1e-250 && sum < 1e250); }

// Whether the squares of a float64 row may have vanished or overflowed, so that its magnitudes have to be looked at and
// its sums taken again with scales_for(). Float64 accumulation of the smaller dtypes never needs it.
ADVFEAT_HOST_DEVICE inline bool needs_scales(const L2Sums& s, bool has_grad) {
  const bool grad_safe = !has_grad || (s.gg != 0 && in_safe_range(s.gg));
  return !(grad_safe && s.dd != 0 && in_safe_range(s.dd));
}

// The scales for a row whose largest magnitudes are these.
ADVFEAT_HOST_DEVICE inline L2Scales scales_for(double grad, double d) {
  L2Scales scales;
  scales.grad = inverse_power_of_two(exponent_of(grad), 1000);
  scales.d = inverse_power_of_two(exponent_of(d), 1000);
  return scales;
}

// The scale for the values of a moved point, where ||d + u|| is measured on them.
ADVFEAT_HOST_DEVICE inline double moved_scale(const L2Sums& s, const L2Scales& scales, double step_size) {
  const double d = sqrt(s.dd) / scales.d, a = fabs(step_size);
  return inverse_power_of_two(exponent_of(d > a ? d : a), 1000);
}

// The squared cosine form loses digits when d and the step nearly cancel; below this the caller measures the norm
// directly.
constexpr double kCancellation = 1e-3;

// The gradient's part of the move. Its prescale is a normal number of the arithmetic type, float64 or float32.
ADVFEAT_HOST_DEVICE inline L2Move l2_direction(const L2Sums& s, const L2Scales& scales, double step_size, bool grad,
                                               bool in_float64) {
  L2Move m;
  m.has_grad = grad && s.gg > 0 && finite(s.gg);
  const int float_exponent = in_float64 ? 1022 : 126;
  if (m.has_grad) {
    // By exponents, because the norm itself may be beyond the largest number: 1e308 in every value.
    const double norm = sqrt(s.gg);  // of grad * scales.grad
    const int scale_exponent = exponent_of(scales.grad);
    m.prescale = inverse_power_of_two(exponent_of(norm) - scale_exponent, float_exponent);
    m.factor =
        step_size / (scale_exponent == 0 ? norm * m.prescale : ldexp(norm, exponent_of(m.prescale) - scale_exponent));
  }
  return m;
}

// Whether a step is so long, or so short, that its square leaves the range.
ADVFEAT_HOST_DEVICE inline bool square_in_range(double step_size) {
  const double a = fabs(step_size);
  return a == 0 || (a > 1e-120 && a < 1e120);
}

// ||d + u|| from the sums, or a negative number when it has to be measured directly.
ADVFEAT_HOST_DEVICE inline double l2_moved_norm(const L2Sums& s, const L2Scales& scales, double step_size,
                                                const L2Move& m) {
  if (m.has_grad && scales.grad == 1 && scales.d == 1 && in_safe_range(s.gg) && in_safe_range(s.dd) &&
      square_in_range(step_size)) {
    // All but every row. One square root: a row's blocks wait for this, and in float64 each one and each division takes
    // a GPU hundreds of clocks.
    const double along = m.factor * (m.prescale * s.dg);  // <d, u>
    const double aa = step_size * step_size, square = s.dd + 2 * along + aa;
    return square < kCancellation * (s.dd > aa ? s.dd : aa) ? -1 : sqrt(square);
  }
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
  m.factor *= m.shrink;
  if (m.shrink < 1e-30) {
    m.d_prescale = 0x1p-100;
    m.shrink *= 0x1p100;
  }
}

}  // namespace advfeat
