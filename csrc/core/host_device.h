// What both compilers read: the mark for functions of host and device, and the arithmetic that both need.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define ADVFEAT_HOST_DEVICE __host__ __device__
#else
#define ADVFEAT_HOST_DEVICE
#endif

namespace advfeat {

ADVFEAT_HOST_DEVICE inline bool finite(double v) { return v - v == 0; }

// The exponent e with |v| in [2^e, 2^(e+1)); 0 for zero and what is not finite.
ADVFEAT_HOST_DEVICE inline int exponent_of(double v) { return v > 0 && finite(v) ? ilogb(v) : 0; }

// The power of two 2^-e, with e limited so that it is a normal number of the arithmetic type.
ADVFEAT_HOST_DEVICE inline double inverse_power_of_two(int e, int limit) {
  e = e > limit ? limit : (e < -limit ? -limit : e);
  return ldexp(1.0, -e);
}

// The larger of two magnitudes; a NaN wins over every number.
ADVFEAT_HOST_DEVICE inline double larger(double a, double b) { return b > a || b != b ? b : a; }

// Comparisons with NaN are false, so a NaN value stays NaN and stays where it is.
template <typename A>
ADVFEAT_HOST_DEVICE inline A clip(A v, A lo, A hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

}  // namespace advfeat
