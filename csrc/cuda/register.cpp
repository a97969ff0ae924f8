#include "../register.h"

#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(advfeat, CUDA, m) {
  using namespace advfeat;
  Operators<cuda::linf_step, cuda::l2_step, cuda::random_start_linf, cuda::random_start_l2, cuda::update_best>::add_to(
      m);
}
