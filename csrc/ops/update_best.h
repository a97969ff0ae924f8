// update_best_: its arguments, and the function that the dispatcher calls.
#pragma once

#include "../core/boxed.h"

namespace advfeat {

// For each row with value > best_value (or best_value NaN): best_x = x, best_value = value.
struct UpdateBestArgs {
  void* best_x = nullptr;
  const void* x = nullptr;
  void* best_value = nullptr;  // [B]
  const void* value = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, row_bytes = 0;
  int64_t best_x_stride_bytes = 0, x_stride_bytes = 0;
  bool value_is_double = false;
};

// best_x, x [B, ...] of one dtype; best_value, value [B] float32 or float64.
Prepared<UpdateBestArgs> prepare_update_best(const Tensor& best_x, const Tensor& best_value, const Tensor& x,
                                             const Tensor& value);

template <void (*kernel)(const UpdateBestArgs&)>
void update_best_(Tensor best_x, Tensor best_value, Tensor x, Tensor value) {
  Prepared<UpdateBestArgs> p = prepare_update_best(best_x, best_value, x, value);
  if (p.args.rows > 0) kernel(p.args);
  p.finish();
}

// A NaN value is never better; anything that is a number is better than NaN.
template <typename V>
ADVFEAT_HOST_DEVICE inline bool is_better(V value, V best) {
  return value > best || (best != best && value == value);
}

}  // namespace advfeat
