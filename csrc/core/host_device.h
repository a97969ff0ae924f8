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

// The larger of two magnitudes; a NaN wins over every number.
ADVFEAT_HOST_DEVICE inline double larger(double a, double b) { return b > a || b != b ? b : a; }

// Comparisons with NaN are false, so a NaN value stays NaN and stays where it is.
template <typename A>
ADVFEAT_HOST_DEVICE inline A clip(A v, A lo, A hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

}  // namespace advfeat
