// Keeps the better iterate of each sample.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace advfeat::cpu {
namespace {

template <typename V>
void update(const UpdateBestArgs& a) {
  V* best = static_cast<V*>(a.best_value);
  const V* value = static_cast<const V*>(a.value);
  torch::stable::parallel_for(
      0, a.rows, std::max<int64_t>(1, 65536 / (a.row_bytes + 1)), [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
          // A NaN value is never better; anything that is a number is better than NaN.
          const bool better = value[row] > best[row] || (best[row] != best[row] && value[row] == value[row]);
          if (!better) continue;
          best[row] = value[row];
          if (a.row_bytes > 0)
            std::memmove(static_cast<char*>(a.best_x) + row * a.best_x_stride_bytes,
                         static_cast<const char*>(a.x) + row * a.x_stride_bytes, static_cast<size_t>(a.row_bytes));
        }
      });
}

}  // namespace

void update_best(const UpdateBestArgs& a) { a.value_is_double ? update<double>(a) : update<float>(a); }

}  // namespace advfeat::cpu
