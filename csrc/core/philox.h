// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random numbers as a pure
// function of (seed, sample id, position), so that a result does not depend on the batch size, the sharding or the
// device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace advfeat {

// Which of a sample's independent streams: the values of its random start, or the radius of that start.
enum class Stream : uint32_t { values = 0, radius = 1 };

struct Philox4 {
  uint32_t v[4];
};

// Four random words for values 4 * quad ... 4 * quad + 3 of a sample. A sample has fewer than 2^32 quads.
ADVFEAT_HOST_DEVICE inline Philox4 philox(uint64_t seed, int64_t sample_id, uint32_t quad, Stream stream) {
  const uint64_t id = static_cast<uint64_t>(sample_id);
  uint32_t c0 = quad, c1 = static_cast<uint32_t>(stream);
  uint32_t c2 = static_cast<uint32_t>(id), c3 = static_cast<uint32_t>(id >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A word as a number in the open interval (0, 1), so that its logarithm is finite.
ADVFEAT_HOST_DEVICE inline double open_unit(uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

}  // namespace advfeat
