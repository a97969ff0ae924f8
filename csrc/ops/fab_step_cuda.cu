// fab_step_ on CUDA: a block per row, which passes over the row some thirty times, for the searches of both ways at
// once. After the first pass the row comes out of the caches: the step's memory traffic is that of any other, and the
// model's two passes beside it take far longer.
#include "../core/launch.h"
#include "../core/reduction.cuh"
#include "../core/values.cuh"
#include "fab_step.h"

namespace advfeat::cuda {
namespace {

// A value: the magnitude of its gradient, and the rooms on the two ways.
struct Rooms {
  double s, r, r0;
};

template <typename T, typename G>
class FabRow {
 public:
  using A = ArithmeticOf<T>;

  __device__ FabRow(const FabArgs& a, int64_t row)
      : box_(a.step),
        out_(static_cast<T*>(a.step.out) + row * a.step.out_stride),
        x_(static_cast<const T*>(a.step.x) + row * a.step.x_stride),
        x0_(static_cast<const T*>(a.step.x0) + row * a.step.x0_stride),
        grad_(static_cast<const G*>(a.step.grad) + row * a.step.grad_stride),
        dim_(a.step.dim) {}

  __device__ double x(int64_t i) const { return load(x_[i]); }
  __device__ double x0(int64_t i) const { return load(x0_[i]); }
  __device__ double grad(int64_t i) const { return load(grad_[i]); }
  __device__ A bounded(int64_t i, A v) const {
    A result = v;
    box_.template for_values<1>(i, [&](int, A lo, A hi) { result = clip(v, lo, hi); });
    return result;
  }
  __device__ void write(int64_t i, double v) const { store(out_[i], bounded(i, static_cast<A>(v))); }

  __device__ Rooms rooms(int64_t i, double scale, double gap, double gap0) const {
    const double w = grad(i) * scale;
    Rooms v = {fabs(w), 0, 0};
    if (!(v.s > 0)) return v;
    box_.template for_values<1>(i, [&](int, A lo, A hi) {
      v.r = room(w, gap, x(i), lo, hi);
      v.r0 = room(w, gap0, x0(i), lo, hi);
    });
    return v;
  }

  __device__ int64_t dim() const { return dim_; }

 private:
  __device__ static double room(double w, double gap, double from, double lo, double hi) {
    const double room = (w > 0) == (gap < 0) ? hi - from : from - lo;
    return room > 0 ? room : 0;
  }

  Box<A, StepArgs> box_;
  T* out_;
  const T *x_, *x0_;
  const G* grad_;
  int64_t dim_;
};

// The two ways of a row and the lengths of both.
struct Ways {
  Way way, way0;
  double length = 0, length0 = 0;
};

template <Norm norm, typename T, typename G>
__device__ void newton_ways(const FabRow<T, G>& row, double scale, double gap, double gap0, Ways& ways) {
  while (!ways.way.done || !ways.way0.done) {
    double v[4] = {0, 0, 0, 0};
    sum_row(row.dim(), v, [&](int64_t i) {
      const Rooms rooms = row.rooms(i, scale, gap, gap0);
      const double slope = norm == Norm::l2 ? rooms.s * rooms.s : rooms.s;
      const bool at = (norm == Norm::l2 ? ways.way.l * rooms.s : ways.way.l) >= rooms.r;
      const bool at0 = (norm == Norm::l2 ? ways.way0.l * rooms.s : ways.way0.l) >= rooms.r0;
      // Fixed places in v, so that it stays in registers.
      v[0] += at ? rooms.s * rooms.r : 0;
      v[1] += at ? 0 : slope;
      v[2] += at0 ? rooms.s * rooms.r0 : 0;
      v[3] += at0 ? 0 : slope;
    });
    // Every thread has the same sums, and so takes the same steps.
    newton_step(ways.way, fabs(gap), v[0], v[1]);
    newton_step(ways.way0, fabs(gap0), v[2], v[3]);
  }
}

// As threshold_way of hyperplane.inl.h, for both ways at once.
template <typename T, typename G>
__device__ void threshold_ways(const FabRow<T, G>& row, double scale, double gap, double gap0, Ways& ways) {
  constexpr int kLowest = std::is_same_v<G, double> ? 0 : 29;
  const double far = fabs(gap), far0 = fabs(gap0);
  const auto closed = [&](double l, double l0, double (&v)[2]) {
    v[0] = v[1] = 0;
    sum_row(row.dim(), v, [&](int64_t i) {
      const Rooms rooms = row.rooms(i, scale, gap, gap0);
      if (rooms.s >= l) v[0] += rooms.s * rooms.r;
      if (rooms.s >= l0) v[1] += rooms.s * rooms.r0;
    });
  };
  double v[2];
  closed(0, 0, v);
  const bool short_of = !(v[0] >= far), short_of0 = !(v[1] >= far0);
  uint64_t bits = 0, bits0 = 0;
  for (int bit = 62; bit >= kLowest; --bit) {
    const uint64_t one = uint64_t{1} << bit, more = bits | one, more0 = bits0 | one;
    if (more >= kInfinityBits && more0 >= kInfinityBits) continue;
    closed(magnitude_of(more), magnitude_of(more0), v);
    if (more < kInfinityBits && v[0] >= far) bits = more;
    if (more0 < kInfinityBits && v[1] >= far0) bits0 = more0;
  }
  const auto set = [](Way& way, bool is_short, uint64_t of) {
    way.l = is_short ? -1 : magnitude_of(of);
    if (way.l == 0) way.l = kAllTheWay;  // nothing to close
  };
  set(ways.way, short_of, bits);
  set(ways.way0, short_of0, bits0);
  double w[6] = {0, 0, 0, 0, 0, 0};
  sum_row(row.dim(), w, [&](int64_t i) {
    const Rooms rooms = row.rooms(i, scale, gap, gap0);
    const auto add_to = [&](int first, double l, double r) {
      if (rooms.s > l) w[first] += rooms.s * r;
      if (rooms.s == l) finite(r) ? w[first + 1] += rooms.s * r : w[first + 2] += 1;
    };
    add_to(0, ways.way.l, rooms.r);
    add_to(3, ways.way0.l, rooms.r0);
  });
  if (!short_of) set_shares(ways.way, far, w[0], w[1], w[2]);
  if (!short_of0) set_shares(ways.way0, far0, w[3], w[4], w[5]);
}

template <Norm norm, typename T, typename G>
__device__ void measure(const FabRow<T, G>& row, double scale, double gap, double gap0, Ways& ways) {
  double v[2] = {0, 0};
  const auto body = [&](int64_t i) {
    const Rooms rooms = row.rooms(i, scale, gap, gap0);
    const double by = moved_by<norm>(ways.way, rooms.s, rooms.r), by0 = moved_by<norm>(ways.way0, rooms.s, rooms.r0);
    if constexpr (norm == Norm::linf) {
      v[0] = by > v[0] ? by : v[0];
      v[1] = by0 > v[1] ? by0 : v[1];
    } else {
      v[0] += norm == Norm::l2 ? by * by : by;
      v[1] += norm == Norm::l2 ? by0 * by0 : by0;
    }
  };
  if constexpr (norm == Norm::linf)
    max_row(row.dim(), v, body);
  else
    sum_row(row.dim(), v, body);
  ways.length = norm == Norm::l2 ? sqrt(v[0]) : v[0];
  ways.length0 = norm == Norm::l2 ? sqrt(v[1]) : v[1];
}

template <Norm norm, typename T, typename G>
__global__ void __launch_bounds__(kTileThreads) fab_rows(const __grid_constant__ FabArgs a) {
  for (int64_t index = blockIdx.x; index < a.step.rows; index += gridDim.x) {
    const FabRow<T, G> row(a, index);
    const FabNumbers n = numbers_of_row(a, index);
    double most[1] = {0};
    max_row(row.dim(), most, [&](int64_t i) { most[0] = larger(most[0], fabs(row.grad(i))); });
    const bool is_zero = most[0] == 0, not_finite = !finite(most[0]);
    const bool usable = !is_zero && !not_finite && finite(n.gap);
    const double scale = inverse_power_of_two(exponent_of(most[0]), 1000);
    double gap = n.gap * scale, gap0 = gap;
    Ways ways;
    if (usable) {  // the same for all threads
      double along[1] = {0};
      sum_row(row.dim(), along, [&](int64_t i) { along[0] += (row.grad(i) * scale) * (row.x0(i) - row.x(i)); });
      gap0 = gap + along[0];
      if constexpr (norm == Norm::l1)
        threshold_ways(row, scale, gap, gap0, ways);
      else
        newton_ways<norm>(row, scale, gap, gap0, ways);
      measure<norm>(row, scale, gap, gap0, ways);
    }
    const double weight0 = fab_weight(ways.length, ways.length0, n.alpha_max), weight = 1 - weight0;
    for (int64_t i = threadIdx.x; i < a.step.dim; i += blockDim.x) {
      double d = 0, d0 = 0;
      if (usable) {
        const Rooms rooms = row.rooms(i, scale, gap, gap0);
        const double w = row.grad(i), eta = w > 0 ? n.eta : (w < 0 ? -n.eta : 0);
        d = (gap < 0 ? eta : -eta) * moved_by<norm>(ways.way, rooms.s, rooms.r);
        d0 = (gap0 < 0 ? eta : -eta) * moved_by<norm>(ways.way0, rooms.s, rooms.r0);
      }
      row.write(i, add(mul(weight, add(row.x(i), d)), mul(weight0, add(row.x0(i), d0))));
    }
    if (threadIdx.x == 0) count_bad(a.step, index, is_zero, not_finite);
  }
}

template <typename T, typename G>
void launch(const FabArgs& a) {
  const Launcher run(a.step.device);
  const int threads = threads_for(a.step.dim, kSearchValuesPerThread, kTileThreads);
  const auto with = [&](auto kernel) { run("fab_rows", kernel, a.step.rows, threads, 0, a); };
  if (a.norm == Norm::linf) return with(fab_rows<Norm::linf, T, G>);
  if (a.norm == Norm::l2) return with(fab_rows<Norm::l2, T, G>);
  with(fab_rows<Norm::l1, T, G>);
}

void fab_step(const FabArgs& args) {
  for_dtypes(args.step.dtype, args.step.grad_dtype,
             [&](auto value, auto grad) { launch<decltype(value), decltype(grad)>(args); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) { m.impl("fab_step_", TORCH_BOX(&fab_step_<fab_step>)); }

}  // namespace advfeat::cuda
