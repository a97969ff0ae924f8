// hash_rows: the operator, and its kernel on the CPU.
#include "hash_rows.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

STABLE_TORCH_LIBRARY_FRAGMENT(advfeat, m) { m.def("hash_rows(Tensor x) -> Tensor"); }

namespace advfeat {

Prepared<HashRowsArgs> prepare_hash_rows(const Tensor& x) {
  Prepared<HashRowsArgs> p;
  HashRowsArgs& a = p.args;
  const Shape s = rows_and_dim(x, "x");
  floating_dtype(x, "x");
  const Layout layout = layout_of(x) == Layout::other ? Layout::contiguous : layout_of(x);
  const Tensor xk = lying(x, layout);
  // Zeros, to which the blocks of a device add; and the hash of a row without values.
  p.result = torch::stable::new_zeros(x, {s.rows}, torch::headeronly::ScalarType::Long);
  p.alive = {xk};
  a.out = reinterpret_cast<uint64_t*>(p.result.mutable_data_ptr<int64_t>());
  a.x = xk.const_data_ptr();
  a.device = x.get_device_index();
  a.rows = s.rows;
  a.dim = s.dim;
  a.value_bytes = static_cast<int64_t>(x.element_size());
  a.stride = row_stride(xk, s.dim);
  a.channels = layout == Layout::channels_last ? x.size(1) : s.dim;
  a.pixels = a.channels > 0 ? s.dim / a.channels : 0;
  return p;
}

}  // namespace advfeat

namespace advfeat::cpu {
namespace {

template <typename Word>
uint64_t hash_row(const HashRowsArgs& a, int64_t row) {
  const Word* values = static_cast<const Word*>(a.x) + row * a.stride;
  const uint64_t to_next_channel = kPosition * static_cast<uint64_t>(a.pixels);
  uint64_t sum = 0, first = kPosition;
  for (int64_t pixel = 0; pixel < a.pixels; ++pixel, values += a.channels, first += kPosition)
    for (int64_t channel = 0; channel < a.channels; ++channel)
      sum += mixed(values[channel], first + static_cast<uint64_t>(channel) * to_next_channel);
  return sum;
}

template <typename Word>
void hash_rows_of(const HashRowsArgs& a) {
  // A thread mixes 32,768 values at least.
  const int64_t grain = std::max<int64_t>(1, 32768 / a.dim);
  torch::stable::parallel_for(0, a.rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) a.out[row] = hash_row<Word>(a, row);
  });
}

void hash_rows(const HashRowsArgs& a) {
  if (a.value_bytes == 8) return hash_rows_of<uint64_t>(a);
  if (a.value_bytes == 4) return hash_rows_of<uint32_t>(a);
  return hash_rows_of<uint16_t>(a);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) { m.impl("hash_rows", TORCH_BOX(&advfeat::hash_rows<hash_rows>)); }

}  // namespace advfeat::cpu
