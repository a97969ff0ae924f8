// The CPU kernels, over torch's own thread pool.
#pragma once

#include "../args.h"

namespace advfeat::cpu {

void linf_step(const StepArgs& args);
void l2_step(const StepArgs& args);
void random_start_linf(const RandomStartArgs& args);
void random_start_l2(const RandomStartArgs& args);
void update_best(const UpdateBestArgs& args);

inline double at(const PerRow& p, int64_t row) { return p.rows ? p.rows[row] : p.value; }
inline double at(const Bound& b, int64_t channel) { return b.channels ? b.channels[channel] : b.value; }

}  // namespace advfeat::cpu
