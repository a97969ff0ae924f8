#include "../register.h"

#include "kernels.h"

STABLE_TORCH_LIBRARY_IMPL(advfeat, CPU, m) {
  using namespace advfeat;
  Operators<cpu::linf_step, cpu::l2_step, cpu::random_start_linf, cpu::random_start_l2, cpu::update_best>::add_to(m);
}
