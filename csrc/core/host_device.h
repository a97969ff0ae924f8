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

// Magnitudes are ordered as their bits are.
ADVFEAT_HOST_DEVICE inline uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
ADVFEAT_HOST_DEVICE inline uint64_t bits_of(double v) {
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
ADVFEAT_HOST_DEVICE inline float magnitude_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
ADVFEAT_HOST_DEVICE inline double magnitude_of(uint64_t bits) {
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// The exponent e with |v| in [2^e, 2^(e+1)); 0 for zero and what is not finite. Off the bits, since the library's
// functions of exponents are long subroutines on a GPU.
ADVFEAT_HOST_DEVICE inline int exponent_of(double v) {
  if (!(v > 0) || !finite(v)) return 0;
  if (v < 0x1p-1022) return ilogb(v);  // fewer digits than its exponent says
  return static_cast<int>(bits_of(v) >> 52) - 1023;
}

// The power of two 2^-e, with e limited so that it is a normal number of the arithmetic type: limit is at most 1022.
ADVFEAT_HOST_DEVICE inline double inverse_power_of_two(int e, int limit) {
  e = e > limit ? limit : (e < -limit ? -limit : e);
  return magnitude_of(static_cast<uint64_t>(1023 - e) << 52);
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
