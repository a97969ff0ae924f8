// What both compilers read: the mark for functions of host and device, and the arithmetic that both need.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define ADVFEAT_HOST_DEVICE __host__ __device__
#else
#define ADVFEAT_HOST_DEVICE
#endif

namespace advfeat {

ADVFEAT_HOST_DEVICE inline bool finite(double v) { return v - v == 0; }

// The exponent e with |v| in [2^e, 2^(e+1)); 0 for zero and what is not finite. Off the bits, since the library's
// functions of exponents are long subroutines on a GPU.
ADVFEAT_HOST_DEVICE inline int exponent_of(double v) {
  if (!(v > 0) || !finite(v)) return 0;
  if (v < 0x1p-1022) return ilogb(v);  // fewer digits than its exponent says
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return static_cast<int>(bits >> 52) - 1023;
}

// The power of two 2^-e, with e limited so that it is a normal number of the arithmetic type: limit is at most 1022.
ADVFEAT_HOST_DEVICE inline double inverse_power_of_two(int e, int limit) {
  e = e > limit ? limit : (e < -limit ? -limit : e);
  const uint64_t bits = static_cast<uint64_t>(1023 - e) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
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
