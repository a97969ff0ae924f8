// Runs CUDA kernels on the CPU, so that their logic is tested where there is no GPU.
//
// A CUDA thread is a fiber, a block is its fibers, and a cluster's blocks run side by side, all on one thread of the
// CPU. Barriers, shuffles, asynchronous copies and shared memory do what CUDA's programming guide promises and no more:
// an order that it leaves open (blocks, the threads of a block, how far the blocks of a cluster are apart) is drawn at
// random, memory that was not written holds NaNs, a copy arrives when it is waited for and not before. What it leaves
// undefined ends the launch with an exception that says what was done, by which thread of which block.
//
// It knows only what the .cu files of csrc use: one dimension, whole warps, clusters of a power of two. It says nothing
// about speed, about what the compiler makes of a kernel (test_cuda_build.py reads that), or about races on global
// memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>

namespace emulator {

constexpr unsigned kWarpSize = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// What is different on another GPU; to begin with, an H100 or H200.
struct Device {
  int shared_per_block = 227 * 1024;  // bytes that a launch may ask for
  int shared_per_multiprocessor = 228 * 1024;
  int largest_cluster = 16;  // that it can place; 0: it knows no clusters
  int clusters_at_once = 3;
  int ptx_version = 90;              // of the code in the library
  unsigned max_blocks = 0x7FFFFFFF;  // of a launch: kernels have to stride over what is beyond
  unsigned seed = 1;                 // of the orders that are drawn
};
extern Device device;
extern std::recursive_mutex one_at_a_time;  // there is one launch at a time, and one of all settings

struct Launch {
  unsigned blocks, cluster, threads;
  size_t shared;  // bytes that each block asked for
};

// Runs a kernel, `body` once a thread. Throws std::runtime_error.
void launch(const Launch& shape, const std::function<void()>& body);

// Ends the launch, or the call that is about to launch.
[[noreturn]] void fail(const char* what);

// What the threads of a kernel call.
void block_barrier();
bool block_barrier_or(bool predicate);  // whether it holds for any thread of the block
void cluster_barrier();
unsigned cluster_size();
void* in_block_of_cluster(void* shared, unsigned rank);  // the same place in the shared memory of another block
double shuffle_xor(double value, int lanes);             // of a whole warp
void copy_async(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_for_copies(size_t but_last);  // for all committed groups but the last so many

// An mbarrier in shared memory, whose phase ends once so many have arrived, and all bytes that they expect.
void init_barrier(uint64_t* barrier, uint32_t count);
void arrive_expecting(uint64_t* barrier, uint32_t bytes);
void wait_for_phase(uint64_t* barrier, uint32_t parity);  // until the phase of this parity has ended
// Eight bytes for the shared memory of a block of the cluster; they arrive at any later time, and count there.
void send(void* to, uint64_t bits, uint64_t* barrier);

}  // namespace emulator

extern emulator::Index threadIdx, blockIdx, blockDim, gridDim;
