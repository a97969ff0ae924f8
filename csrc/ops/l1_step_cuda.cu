// l1_step and project_l1 on CUDA: a block per row, which passes over the row some twenty times, for the threshold on
// the gradient and for the multiplier of the projection. After the first pass the row comes out of the caches.
#include "../core/launch.h"
#include "../core/reduction.cuh"
#include "../core/values.cuh"
#include "l1_step.h"

namespace advfeat::cuda {
namespace {

template <typename T, typename G>
class L1Row {
 public:
  using A = ArithmeticOf<T>;

  __device__ L1Row(const StepArgs& a, int64_t row)
      : box_(a),
        out_(static_cast<T*>(a.out) + row * a.out_stride),
        velocity_(a.velocity ? static_cast<T*>(a.velocity) + row * a.velocity_stride : nullptr),
        x_(static_cast<const T*>(a.x) + row * a.x_stride),
        x0_(static_cast<const T*>(a.x0) + row * a.x0_stride),
        grad_(a.grad ? static_cast<const G*>(a.grad) + row * a.grad_stride : nullptr),
        momentum_(static_cast<A>(a.momentum)),
        dim_(a.dim) {}

  __device__ A magnitude(int64_t i) const { return fabs(static_cast<A>(load(grad_[i]))); }

  // Every value whose gradient reaches the threshold moves by so much.
  __device__ void set_step(A by, A threshold) {
    by_ = by;
    threshold_ = threshold;
    moves_ = true;
  }
  __device__ A point(int64_t i) const {
    A y = load(x_[i]);
    if (velocity_) y = add(y, mul(momentum_, static_cast<A>(load(velocity_[i]))));
    if (!moves_) return y;
    const A g = load(grad_[i]);
    if (fabs(g) < threshold_ || g == 0) return y;
    return add(y, g > 0 ? by_ : -by_);
  }
  __device__ A centre(int64_t i) const { return load(x0_[i]); }

  // The way from the centre, and the room up to the bound on that side.
  struct Way {
    A d, room;
  };
  __device__ Way way(int64_t i) const {
    const A from = centre(i), d = sub(point(i), from);
    A room = 0;
    box_.template for_values<1>(i, [&](int, A lo, A hi) { room = d > 0 ? sub(hi, from) : sub(from, lo); });
    return {d, room > 0 ? room : 0};
  }

  __device__ void write(int64_t i, A v) const {
    const A before = load(x_[i]);  // x may be out
    box_.template for_values<1>(i, [&](int, A lo, A hi) { v = clip(v, lo, hi); });
    store(out_[i], v);
    if (velocity_) store(velocity_[i], sub(static_cast<A>(load(out_[i])), before));
  }

  __device__ int64_t dim() const { return dim_; }

 private:
  Box<A, StepArgs> box_;
  T *out_, *velocity_;
  const T *x_, *x0_;
  const G* grad_;
  A momentum_;
  int64_t dim_;
  A by_ = 0, threshold_ = 0;
  bool moves_ = false;
};

// The step of a row, if its gradient is usable; counts it if it is not.
template <typename T, typename G>
__device__ void set_step(L1Row<T, G>& row, const L1Args& a, int64_t index) {
  using A = ArithmeticOf<T>;
  using Bits = decltype(bits_of(A{}));
  double most[1] = {0}, nonzero[1] = {0};
  max_row(row.dim(), most, [&](int64_t i) { most[0] = larger(most[0], row.magnitude(i)); });
  const bool is_zero = most[0] == 0, not_finite = !finite(most[0]);
  if (threadIdx.x == 0) count_bad(a.step, index, is_zero, not_finite);
  if (is_zero || not_finite) return;  // the same for all threads
  sum_row(row.dim(), nonzero, [&](int64_t i) { nonzero[0] += row.magnitude(i) > 0 ? 1 : 0; });
  const int64_t wanted = a.step.dim - l1_left_out(at(a.share, index), a.step.dim);
  ThresholdSearch<Bits> search(bits_of(static_cast<A>(most[0])), nonzero[0], static_cast<double>(wanted));
  while (!search.done()) {
    const A threshold = magnitude_of(search.trial);
    double count[1] = {0};
    sum_row(row.dim(), count, [&](int64_t i) { count[0] += row.magnitude(i) >= threshold ? 1 : 0; });
    search.counted(count[0]);
  }
  const A step_size = static_cast<A>(at(a.step.step_size, index));
  row.set_step(mul(step_size, static_cast<A>(A{1} / static_cast<A>(search.reached))), magnitude_of(search.found));
}

template <typename T, typename G>
__global__ void __launch_bounds__(kTileThreads, kSearchBlocks) l1_rows(const __grid_constant__ L1Args a) {
  using A = ArithmeticOf<T>;
  for (int64_t index = blockIdx.x; index < a.step.rows; index += gridDim.x) {
    L1Row<T, G> row(a.step, index);
    if (a.step.grad) set_step(row, a, index);
    const double eps = at(a.step.eps, index);
    const bool is_point = !(eps > 0);  // a ball of its centre alone
    L1Search search;
    search.done = is_point || !finite(eps);
    if (!search.done) {
      double sum[1] = {0}, most[1] = {0};
      sum_row(row.dim(), sum, [&](int64_t i) {
        const auto way = row.way(i);
        const double size = fabs(way.d), room = way.room;
        sum[0] += size > room ? room : size;  // a NaN stays
      });
      max_row(row.dim(), most, [&](int64_t i) { most[0] = larger(most[0], fabs(row.way(i).d)); });
      search.high = most[0];
      l1_search_step(search, eps, sum[0], 0);
    }
    while (!search.done) {  // the same for all threads
      double v[2] = {0, 0};
      sum_row(row.dim(), v, [&](int64_t i) {
        const auto way = row.way(i);
        const double left = fabs(way.d) - search.l, room = way.room, part = left < 0 ? 0 : left;
        v[0] += part > room ? room : part;
        v[1] += left > 0 && left < room ? 1 : 0;
      });
      l1_search_step(search, eps, v[0], v[1]);
    }
    const bool keeps = !is_point && search.l == 0;  // within eps but for the box
    for (int64_t i = threadIdx.x; i < a.step.dim; i += blockDim.x) {
      const A centre = row.centre(i);
      A v = row.point(i);
      if (is_point) {
        v = centre;
      } else if (!keeps) {
        const auto way = row.way(i);
        const double left = fabs(way.d) - search.l, room = way.room;
        double part = left < 0 ? 0 : left;
        part = part > room ? room : part;
        const A by = static_cast<A>(part);
        v = add(centre, way.d > 0 ? by : (way.d < 0 ? -by : way.d));
      }
      row.write(i, v);
    }
  }
}

void move_rows(const L1Args& a) {
  const Launcher run(a.step.device);
  const int threads = threads_for(a.step.dim, kSearchValuesPerThread, kTileThreads);
  for_dtypes(a.step.dtype, a.step.grad_dtype, [&](auto value, auto grad) {
    run("l1_rows", l1_rows<decltype(value), decltype(grad)>, a.step.rows, threads, 0, a);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  m.impl("l1_step", TORCH_BOX(&l1_step<move_rows>));
  m.impl("l1_step_", TORCH_BOX(&l1_step_<move_rows>));
  m.impl("project_l1", TORCH_BOX(&project_l1<move_rows>));
  m.impl("project_l1_", TORCH_BOX(&project_l1_<move_rows>));
}

}  // namespace advfeat::cuda
