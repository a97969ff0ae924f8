// Thread-block clusters.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  static void sync() { emulator::cluster_barrier(); }
  static unsigned block_rank() { return blockIdx.x % emulator::cluster_size(); }
  static unsigned num_blocks() { return emulator::cluster_size(); }
  template <typename T>
  static T* map_shared_rank(T* shared, int rank) {
    return static_cast<T*>(emulator::in_block_of_cluster(shared, static_cast<unsigned>(rank)));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
