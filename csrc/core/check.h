// What the preparations of all operators ask of a tensor: shape, dtype, device, layout, memory of its own.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "args.h"

namespace advfeat {

using torch::stable::Tensor;

// Throws what the user reads: the argument, what was expected, what was seen.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A macro, so that the parts of the message cost nothing where the check holds: a shape as text takes longer than a
// small step.
#define ADVFEAT_CHECK(ok, ...)      \
  do {                              \
    if (!(ok)) [[unlikely]]         \
      ::advfeat::fail(__VA_ARGS__); \
  } while (0)

// For messages: "(4, 3)", "Float".
std::string shape(const Tensor& t);
const char* dtype_name(const Tensor& t);

struct Shape {
  int64_t rows, dim;
};
Shape rows_and_dim(const Tensor& x, const char* name);
Dtype floating_dtype(const Tensor& t, const char* name);
void check_same_shape(const Tensor& t, const char* name, const Tensor& x, const char* x_name);
void check_same_dtype(const Tensor& t, const char* name, const Tensor& x, const char* x_name);
void check_same_device(const Tensor& t, const char* name, const Tensor& x, const char* x_name = "x");

// --- layouts

enum class Layout { contiguous, channels_last, other };

// Whether the values of each row lie densely in this order; rows may be apart.
bool rows_lie(const Tensor& t, Layout layout);
Layout layout_of(const Tensor& t);
// The tensor itself where it lies like that, else a copy.
Tensor lying(const Tensor& t, Layout layout);
int64_t row_stride(const Tensor& t, int64_t dim);

// --- memory

// A tensor that is written to must not have two values in one place. Rows that lie densely are written where they are;
// any other layout is written through torch's copy_, which sees other kinds of overlap itself.
void check_no_overlap(const Tensor& t, const char* name, const Shape& shape, Layout layout);

struct Rows {
  const char* start;
  int64_t stride, bytes;  // of a row to the next, and of the values of one

  Rows(const void* start_, int64_t stride_, int64_t bytes_)
      : start(static_cast<const char*>(start_)), stride(stride_), bytes(bytes_) {}
  const char* end(int64_t rows) const { return start + (rows - 1) * stride + bytes; }
};

// Rows that are written may lie just where those that are read do, for then each value is read before it is written;
// sharing a part of their memory is refused. The rows of each lie apart or are all in one place (stride 0).
void check_apart(const Rows& written, const char* written_name, const Rows& read, const char* name, int64_t rows);

}  // namespace advfeat
