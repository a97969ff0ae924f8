// The CUDA kernels, on torch's current stream. Every pointer in the arguments is a device pointer; nothing
// synchronises.
#pragma once

#include "../args.h"

namespace advfeat::cuda {

void linf_step(const StepArgs& args);
void l2_step(const StepArgs& args);
void random_start_linf(const RandomStartArgs& args);
void random_start_l2(const RandomStartArgs& args);
void update_best(const UpdateBestArgs& args);

}  // namespace advfeat::cuda
