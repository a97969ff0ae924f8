// The shortest ways from two points of a box to one hyperplane, for one row and both devices: the numbers of a FAB
// step, and the search for the multiplier that says how far every value goes.
//
// Along a way every value moves towards the hyperplane, up to its bound. With s the magnitude of a value's gradient and
// r the room up to its bound, it moves by
//   L-inf: min(l, r)      L2: min(l s, r)      L1: r where s > l, a share of it where s = l
// and the gap that is closed, the sum of s times that, is piecewise linear in l. So no sort is needed: for L-inf and L2
// it is concave in l, and Newton's steps from l = 0 reach the root exactly, each fixing more values at their bounds;
// for L1 the threshold l is one of the magnitudes, found bit by bit.
#pragma once

#include "args.h"

namespace advfeat {

enum class Norm : int { linf, l2, l1 };

// The numbers of a FAB step of one row.
struct FabNumbers {
  double gap;  // how far <grad, x> has to fall, or rise where it is negative
  double eta, alpha_max;
};

// Lengths below it weigh as much as it does (the authors' code, Croce and Hein 2020).
constexpr double kShortestWay = 1e-8;

// The weight of the way from x0, by the lengths of the ways from x and from x0.
ADVFEAT_HOST_DEVICE inline double fab_weight(double length, double length0, double alpha_max) {
  length = length > kShortestWay ? length : kShortestWay;
  length0 = length0 > kShortestWay ? length0 : kShortestWay;
  // Infinite lengths are those of a box without bounds, far from the hyperplane.
  const double weight = length == length0 ? 0.5 : length / (length + length0);
  return weight < alpha_max ? weight : alpha_max;
}

// What a value has to do with one way: the multiplier, or for L1 the threshold and what values there move.
struct Way {
  double l = 0;
  double share = 0;      // L1, of the room of values at the threshold
  double unbounded = 0;  // L1, of values at the threshold without a bound
  bool done = false;
};

// The highest bits of a magnitude that is finite are below this.
constexpr uint64_t kInfinityBits = 0x7FF0000000000000u;

constexpr double kAllTheWay = 0x1p1000;  // a multiplier with which every value goes to its bound

// A Newton step from the sums over values at their bounds, of s r, and over the others, of s (L2: of s^2).
ADVFEAT_HOST_DEVICE inline void newton_step(Way& way, double gap, double at_bounds, double slope) {
  if (way.done) return;
  const double next = slope > 0 ? (gap - at_bounds) / slope : kAllTheWay;
  // Up to the root every step goes up. The first that does not ends the search: no further value is at its bound.
  if (next > way.l)
    way.l = next < kAllTheWay ? next : kAllTheWay;
  else
    way.done = true;
  if (way.l == kAllTheWay) way.done = true;
}

// How far a value moves.
template <Norm norm, typename A>
ADVFEAT_HOST_DEVICE inline A moved_by(const Way& way, A s, A r) {
  if constexpr (norm == Norm::l1) {
    if (s > way.l) return r;
    if (s < way.l) return 0;
    return r - r == 0 ? way.share * r : way.unbounded;
  }
  const A far = norm == Norm::l2 ? way.l * s : way.l;
  return far < r ? far : r;
}

// The L1 threshold is known: what is left for the values at it. Sums over values above it, and at it with a bound, of
// s r; and the number of values at it without one.
ADVFEAT_HOST_DEVICE inline void set_shares(Way& way, double gap, double above, double at, double unbounded) {
  const double left = gap > above ? gap - above : 0;
  if (unbounded > 0) {
    way.unbounded = left / (way.l * unbounded);
  } else {
    way.share = at > 0 ? left / at : 0;
    way.share = way.share < 1 ? way.share : 1;
  }
}

}  // namespace advfeat
