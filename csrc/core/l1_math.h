// The scalar part of an L1 step and of the projection onto an L1 ball and a box, for both devices.
//
// The projection moves a value at distance s from its centre, with room r up to its bound, to min(max(s - l, 0), r)
// (Croce and Hein 2021, Proposition 2.1). The sum of these falls with the multiplier l, piecewise linearly, but it is
// neither convex nor concave: Newton's steps could go round in circles, and are kept in a bracket.
#pragma once

#include "args.h"

namespace advfeat {

// The search for the multiplier at which the sum is eps > 0.
struct L1Search {
  double l = 0;       // the multiplier to look at, and in the end the result
  double low = 0;     // a multiplier with a sum above eps
  double high = 0;    // one with a sum of at most eps: at first the largest s
  int looks = 0;      // so many so far
  bool done = false;  // l is the result; if it is 0, the point is within eps
};

// A few roundings of a sum; no look comes nearer.
constexpr double kL1Tolerance = 0x1p-50;
// Newton's steps alone end after a few looks; after so many every other one halves the bracket.
constexpr int kLooksOfNewton = 16;

// After a look at l: the sum there, and the number of values that move with l, neither at their centres nor bounds.
ADVFEAT_HOST_DEVICE inline void l1_search_step(L1Search& at, double eps, double sum, double moving) {
  const double beyond = sum - eps;
  const bool first = at.looks++ == 0;
  if (first ? !(beyond > 0) : (beyond <= kL1Tolerance * eps && beyond >= -kL1Tolerance * eps)) {
    if (beyond != beyond) at.l = beyond;  // a NaN among the values
    at.done = true;
    return;
  }
  (beyond > 0 ? at.low : at.high) = at.l;
  double next = moving > 0 ? at.l + beyond / moving : at.low;
  const bool halves = at.looks > kLooksOfNewton && at.looks % 2 == 1;
  if (halves || !(next > at.low && next < at.high)) next = at.low + 0.5 * (at.high - at.low);
  at.done = next == at.low || next == at.high;
  at.l = next;
}

// Of a step along the largest gradients: how many of `dim` magnitudes are left out at least, given the share that
// moves.
ADVFEAT_HOST_DEVICE inline int64_t l1_left_out(double share, int64_t dim) {
  const auto below = static_cast<int64_t>((1 - share) * static_cast<double>(dim));
  return below < 0 ? 0 : (below > dim - 1 ? dim - 1 : below);
}

// The search for a threshold that `wanted` magnitudes or, where some are equal, a few more reach: its bits, from the
// highest on. Magnitudes are ordered as their bits are. A count of exactly those wanted ends it: any lower bits
// separate the same values.
template <typename Bits>
struct ThresholdSearch {
  Bits found = 0;  // reached by `reached` magnitudes
  Bits trial = 0;  // the threshold to count at
  Bits bit = 0;    // the last one set in the trial; 0: done
  double reached;  // counts are float64, as every reduction
  double wanted;
  Bits largest;

  ADVFEAT_HOST_DEVICE ThresholdSearch(Bits largest_, double nonzero, double wanted_)
      : reached(nonzero), wanted(wanted_), largest(largest_) {
    bit = Bits{1} << (8 * sizeof(Bits) - 2);
    if (nonzero <= wanted) bit = 0;  // all that have a gradient
    set_trial();
  }
  ADVFEAT_HOST_DEVICE bool done() const { return bit == 0; }
  ADVFEAT_HOST_DEVICE void counted(double count) {
    if (count >= wanted) {
      found = trial;
      reached = count;
    }
    bit = count == wanted ? 0 : bit >> 1;
    set_trial();
  }

 private:
  // Thresholds above the largest magnitude need no count.
  ADVFEAT_HOST_DEVICE void set_trial() {
    while (bit && (found | bit) > largest) bit >>= 1;
    trial = found | bit;
  }
};

}  // namespace advfeat
