// hash_rows: its arguments, the function that the dispatcher calls, and the formula of both devices.
#pragma once

#include "../core/boxed.h"

namespace advfeat {

// out = the hash of each row of x. A row lies as pixels of so many channels each; a contiguous row is one pixel.
struct HashRowsArgs {
  uint64_t* out = nullptr;  // [B], zeros
  const void* x = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, dim = 0;
  int64_t value_bytes = 0;
  int64_t stride = 0;  // values from one row to the next
  int64_t channels = 1, pixels = 1;
};

// x [B, ...] floating.
Prepared<HashRowsArgs> prepare_hash_rows(const Tensor& x);

template <void (*kernel)(const HashRowsArgs&)>
Tensor hash_rows(Tensor x) {
  Prepared<HashRowsArgs> p = prepare_hash_rows(x);
  if (p.args.rows > 0 && p.args.dim > 0) kernel(p.args);
  return p.result;
}

// From one position of a row to the next: 2^64 over the golden ratio, whose multiples keep apart. The patterns of
// values of 32 bits or fewer never meet those of another position in rows of fewer than 2^30 values.
constexpr uint64_t kPosition = 0x9E3779B97F4A7C15ull;

// A bit pattern at a position, mixed one to one: the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014, in Stafford's variant 13). A row's hash is the sum over its values,
// modulo 2^64: the same in every order.
ADVFEAT_HOST_DEVICE inline uint64_t mixed(uint64_t pattern, uint64_t position) {
  uint64_t z = pattern + position;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace advfeat
