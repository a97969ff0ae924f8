// Asynchronous copies into shared memory.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) emulator::fail("an asynchronous copy not of 4, 8 or 16 bytes");
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    emulator::fail("an asynchronous copy that is not aligned");
  emulator::copy_async(to, from, bytes);
}
inline void __pipeline_commit() { emulator::commit_copies(); }
inline void __pipeline_wait_prior(size_t but_last) { emulator::wait_for_copies(but_last); }
