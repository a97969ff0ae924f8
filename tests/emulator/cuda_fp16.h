// CUDA's half, as PyTorch has it on the CPU.
#pragma once

#include <torch/headeronly/util/Half.h>

using __half = c10::Half;
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return c10::Half(value); }
