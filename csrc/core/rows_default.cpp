// The inner loops for the baseline of the platform (SSE2 on x86-64, NEON on 64-bit Arm).
#include <cstdint>
#include <type_traits>

#include "rows.h"

#define ADVFEAT_LEVEL level_default
#define ADVFEAT_BYTES 16
#include "rows.inl.h"
