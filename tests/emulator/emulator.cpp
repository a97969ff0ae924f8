#include "emulator.h"

#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr size_t kMostShared = 256 * 1024;
}

// The array behind `extern __shared__` in csrc/core/values.cuh.
namespace advfeat::cuda {
alignas(16) thread_local unsigned char advfeat_dynamic_shared[kMostShared];
}

namespace emulator {

Device device;
std::recursive_mutex one_at_a_time;

namespace {

constexpr size_t kStack = 128 * 1024, kPage = 4096;
constexpr size_t kPlace = 64 * 5, kPlaces = 200;  // where stacks begin, below their highest address: 62 KiB at most
constexpr size_t kGuard = 4096;                   // bytes behind the shared memory that was asked for
constexpr unsigned char kUnwritten = 0xFF;        // a NaN in every floating dtype

// It may read at once or as late as the wait for it.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool was_read;
  unsigned char read[16];
};

enum class At : unsigned char { work, block_barrier, cluster_barrier, shuffle, phase, end };

// A thread of a kernel, on its own stack.
struct Fiber {
  ucontext_t first;  // how it starts ...
  jmp_buf place;     // ... and how it goes on
  bool started = false;
  void* stack = nullptr;
  bool exchange = false;                   // which of the two arrays its next shuffle goes through
  const unsigned char* barrier = nullptr;  // whose phase it waits for, in the storage
  uint32_t parity = 0;
  std::vector<std::vector<Copy>> copies;  // the committed groups, then the open one

  Fiber() {
    stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, kPage, PROT_NONE)) throw std::bad_alloc();  // its end: no way past it
  }
  ~Fiber() { munmap(stack, kStack); }
  Fiber(const Fiber&) = delete;
};

// Everything of the launch that runs.
std::vector<std::unique_ptr<Fiber>> fibers;  // of a cluster: block by block
// What is looked up of all fibers again and again, side by side rather than in each: thousands of them do not fit into
// a cache.
std::vector<At> at;
std::vector<char> predicates;     // that a barrier asks for
std::vector<double> shuffles[2];  // what a warp exchanges, in one and the other by turns
Fiber* running = nullptr;
unsigned running_index = 0;  // among the fibers
jmp_buf scheduler;
const std::function<void()>* kernel_body = nullptr;
std::string failure;
Launch shape;
std::mt19937 draw;

// Shared memory is the thread-local storage of this library: static arrays and the dynamic one. A block of a cluster
// has its own image of it, which is swapped in while its fibers run.
unsigned char* storage = nullptr;
size_t storage_bytes = 0;
std::vector<std::vector<unsigned char>> images;  // by rank
std::vector<char> has_shared;                    // by rank: it has started and not ended
unsigned swapped_in = 0;                         // rank

int find_storage(dl_phdr_info* info, size_t, void* dynamic) {
  const auto begin = static_cast<unsigned char*>(info->dlpi_tls_data);
  for (int i = 0; begin && i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type != PT_TLS || dynamic < begin || dynamic >= begin + part.p_memsz) continue;
    storage = begin;
    storage_bytes = part.p_memsz;
    return 1;
  }
  return 0;
}

// The dynamic array only as far as it is used.
void copy_image(unsigned char* to, const unsigned char* from) {
  const size_t before = advfeat::cuda::advfeat_dynamic_shared - storage, after = before + kMostShared;
  memcpy(to, from, before + std::min(shape.shared + kGuard, kMostShared));
  memcpy(to + after, from + after, storage_bytes - after);
}

// What shared memory holds before a kernel has written to it.
void fill_image(unsigned char* image) {
  const size_t before = advfeat::cuda::advfeat_dynamic_shared - storage, after = before + kMostShared;
  memset(image, kUnwritten, before + std::min(shape.shared + kGuard, kMostShared));
  memset(image + after, kUnwritten, storage_bytes - after);
}

// The host has thread-local variables of its own, which it gets back however the launch ends.
struct HostStorage {
  std::vector<unsigned char> kept{storage, storage + storage_bytes};
  ~HostStorage() { memcpy(storage, kept.data(), kept.size()); }
};

void swap_in(unsigned rank) {
  if (rank == swapped_in) return;
  copy_image(images[swapped_in].data(), storage);
  copy_image(storage, images[rank].data());
  swapped_in = rank;
}

// What an mbarrier holds.
struct Arrivals {
  int32_t bytes;  // expected and not arrived; below zero where they came first
  uint8_t missing, count, phase, mark;
};
static_assert(sizeof(Arrivals) == sizeof(uint64_t));
constexpr uint8_t kMark = 0xB5;  // of one that was initialised

// Bytes on their way to the shared memory of a block.
struct Message {
  unsigned rank;
  size_t to, barrier;  // places in it
  uint64_t bits;
};
std::vector<Message> messages;

// Where a place in a block's shared memory is now.
unsigned char* in_block(unsigned rank, size_t place) {
  return (rank == swapped_in ? storage : images[rank].data()) + place;
}

void change(unsigned char* barrier, int arrived, int64_t expected) {
  Arrivals state;
  memcpy(&state, barrier, sizeof state);
  if (state.mark != kMark) fail("a barrier for messages that was not initialised");
  if (arrived > state.missing) fail("more arrivals than the barrier counts");
  state.missing = static_cast<uint8_t>(state.missing - arrived);
  state.bytes += static_cast<int32_t>(expected);
  if (state.missing == 0 && state.bytes == 0) {
    state.phase ^= 1;
    state.missing = state.count;
  }
  memcpy(barrier, &state, sizeof state);
}

// Lets one of the messages, or all of them, arrive.
void deliver(bool all) {
  std::shuffle(messages.begin(), messages.end(), draw);
  while (!messages.empty()) {
    const Message message = messages.back();
    messages.pop_back();
    if (!has_shared[message.rank]) fail("a message to a block that has ended");
    memcpy(in_block(message.rank, message.to), &message.bits, sizeof message.bits);
    change(in_block(message.rank, message.barrier), 0, -static_cast<int64_t>(sizeof message.bits));
    if (!all) return;
  }
}

void leave() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

void wait_at(At place) {
  at[running_index] = place;
  leave();
}

// A fiber lives on from kernel to kernel.
void run_kernels() {
  for (;;) {
    (*kernel_body)();
    for (const auto& group : running->copies)
      if (!group.empty()) fail("a thread ended before its asynchronous copies had arrived");
    wait_at(At::end);
  }
}

void go_on(unsigned index) {
  Fiber& fiber = *fibers[index];
  running = &fiber;
  running_index = index;
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    // Stacks that all began at the same place of a page would drive each other out of the cache.
    fiber.first.uc_stack = {fiber.stack, 0, kStack - index % kPlaces * kPlace};
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, run_kernels, 0);
    setcontext(&fiber.first);
  }
  running = nullptr;
}

// Ends a launch in the middle of its kernel: what is on the fibers' stacks is given up.
[[noreturn]] void give_up() {
  fibers.clear();
  messages.clear();
  throw std::runtime_error(std::exchange(failure, {}));
}

void start_fibers(unsigned count) {
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  at.assign(count, At::work);
  predicates.resize(count);
  for (auto& values : shuffles) values.resize(count);
  for (unsigned i = 0; i < count; ++i) {
    fibers[i]->copies.clear();
    fibers[i]->exchange = false;
  }
}

std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), draw);
  return order;
}

// Which warps of a block, or blocks of a cluster, do nothing until no other can, up to the next barrier: half of them.
std::vector<char> laggards(unsigned count) {
  std::vector<char> lags(count);
  for (char& lag : lags) lag = draw() % 2;
  return lags;
}

// The fibers of one block of the cluster.
class Block {
 public:
  Block(unsigned cluster, unsigned rank)
      : index_(cluster * shape.cluster + rank), rank_(rank), first_(rank * shape.threads), at_(&at[first_]) {
    draw_laggards();
  }

  bool all(At at) const { return count(at) == shape.threads; }

  // Lets every thread that can work do so until it waits.
  void work() {
    swap_in(rank_);
    has_shared[rank_] = 1;
    blockIdx.x = index_;
    if (!work_on(false)) work_on(true);
    if (all(At::end)) has_shared[rank_] = 0;
  }

  bool can_work() const { return count(At::work) > 0; }

  // Opens the barriers that all have reached, and lets go on who waited for a phase that has ended. Whether there was
  // one.
  bool open() {
    bool opened = false;
    for (unsigned i = 0; i < shape.threads; ++i) {
      if (at_[i] != At::phase || !has_ended(*fibers[first_ + i])) continue;
      at_[i] = At::work;
      opened = true;
    }
    if (all(At::block_barrier)) {
      bool any = false;
      for (unsigned i = 0; i < shape.threads; ++i) any |= predicates[first_ + i] != 0;
      std::fill_n(&predicates[first_], shape.threads, any);
      std::fill_n(at_, shape.threads, At::work);
      draw_laggards();
      opened = true;
    }
    for (unsigned warp = 0; warp < shape.threads; warp += kWarpSize) {
      unsigned here = 0;
      for (unsigned i = warp; i < warp + kWarpSize; ++i) here += at_[i] == At::shuffle;
      if (here < kWarpSize) continue;
      std::fill_n(at_ + warp, kWarpSize, At::work);
      opened = true;
    }
    return opened;
  }

  void pass_cluster_barrier() {
    std::fill_n(at_, shape.threads, At::work);
    draw_laggards();
  }

 private:
  bool work_on(bool laggard) {
    std::vector<unsigned> can;
    for (unsigned thread = 0; thread < shape.threads; ++thread)
      if (at_[thread] == At::work && static_cast<bool>(laggards_[thread / kWarpSize]) == laggard) can.push_back(thread);
    std::shuffle(can.begin(), can.end(), draw);
    for (unsigned thread : can) {
      threadIdx.x = thread;
      go_on(first_ + thread);
      if (!failure.empty()) give_up();
    }
    return !can.empty();
  }

  bool has_ended(const Fiber& waiting) const {
    Arrivals state;
    memcpy(&state, in_block(rank_, static_cast<size_t>(waiting.barrier - storage)), sizeof state);
    return state.phase != waiting.parity;
  }

  void draw_laggards() { laggards_ = laggards((shape.threads + kWarpSize - 1) / kWarpSize); }

  unsigned count(At place) const { return static_cast<unsigned>(std::count(at_, at_ + shape.threads, place)); }

  unsigned index_, rank_;
  unsigned first_;              // of its fibers among all
  At* at_;                      // of the first of them
  std::vector<char> laggards_;  // by warp
};

void run_cluster(unsigned cluster) {
  unsigned char* dynamic = advfeat::cuda::advfeat_dynamic_shared;
  const size_t guarded = std::min(shape.shared + kGuard, kMostShared);
  fill_image(storage);
  for (auto& image : images) fill_image(image.data());
  swapped_in = 0;
  has_shared.assign(shape.cluster, 0);
  start_fibers(shape.cluster * shape.threads);
  std::vector<Block> blocks;
  for (unsigned rank = 0; rank < shape.cluster; ++rank) blocks.emplace_back(cluster, rank);

  std::vector<char> laggard = laggards(shape.cluster);
  bool went_on = true;
  for (;;) {
    const bool others_stuck = !went_on;
    went_on = false;
    unsigned ended = 0, waiting = 0;
    for (unsigned rank : shuffled(shape.cluster)) {
      Block& block = blocks[rank];
      if (block.can_work() && (!laggard[rank] || others_stuck)) {
        block.work();
        went_on = true;
      }
      went_on |= block.open();
      if (draw() % 4 == 0) deliver(false);
      ended += block.all(At::end);
      waiting += block.all(At::cluster_barrier);
    }
    if (ended == shape.cluster) break;
    if (waiting == shape.cluster) {
      for (Block& block : blocks) block.pass_cluster_barrier();
      laggard = laggards(shape.cluster);
      went_on = true;
    } else if (others_stuck && !went_on && !messages.empty()) {
      deliver(true);
      went_on = true;
    } else if (others_stuck && !went_on) {
      failure = "emulated CUDA: threads wait at a barrier that others never reach (block " +
                std::to_string(blockIdx.x) + " or its cluster)";
      give_up();
    }
  }
  if (!messages.empty()) fail("a block that ended before its messages had arrived");
  for (unsigned rank = 0; rank < shape.cluster; ++rank) {
    swap_in(rank);
    for (size_t i = shape.shared; i < guarded; ++i)
      if (dynamic[i] != kUnwritten) fail("a write beyond the shared memory that was asked for");
  }
}

}  // namespace

void fail(const char* what) {
  if (!running) throw std::runtime_error(std::string("emulated CUDA: ") + what);
  failure = std::string("emulated CUDA: ") + what + " (block " + std::to_string(blockIdx.x) + ", thread " +
            std::to_string(threadIdx.x) + ")";
  leave();
  abort();  // a fiber that failed is not gone on with
}

void launch(const Launch& asked, const std::function<void()>& body) {
  const std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
  shape = asked;
  shape.blocks = std::min(shape.blocks, std::max(device.max_blocks / shape.cluster, 1u) * shape.cluster);
  kernel_body = &body;
  blockDim.x = shape.threads;
  gridDim.x = shape.blocks;
  if (!dl_iterate_phdr(find_storage, advfeat::cuda::advfeat_dynamic_shared)) fail("no thread-local storage");
  images.resize(std::max<size_t>(images.size(), shape.cluster));
  for (auto& image : images) image.resize(storage_bytes);
  draw.seed(device.seed++);
  const HostStorage host;
  for (unsigned cluster : shuffled(shape.blocks / shape.cluster)) run_cluster(cluster);
}

void block_barrier() { block_barrier_or(false); }

bool block_barrier_or(bool predicate) {
  predicates[running_index] = predicate;
  wait_at(At::block_barrier);
  return predicates[running_index] != 0;
}

void cluster_barrier() { wait_at(At::cluster_barrier); }

unsigned cluster_size() { return shape.cluster; }

void* in_block_of_cluster(void* shared, unsigned rank) {
  const size_t place = static_cast<unsigned char*>(shared) - storage;
  if (rank >= shape.cluster || place >= storage_bytes) fail("no place in the shared memory of the cluster");
  if (!has_shared[rank]) fail("the shared memory of a block that has not started or has ended");
  return rank == swapped_in ? shared : images[rank].data() + place;
}

double shuffle_xor(double value, int lanes) {
  if (lanes < 0 || lanes >= static_cast<int>(kWarpSize)) fail("a shuffle beyond the warp");
  // Nobody writes to these again before all have come to the next shuffle, which goes through the others.
  std::vector<double>& values = shuffles[running->exchange];
  running->exchange = !running->exchange;
  values[running_index] = value;
  wait_at(At::shuffle);
  const unsigned first = (blockIdx.x % shape.cluster) * shape.threads;
  return values[first + (threadIdx.x ^ static_cast<unsigned>(lanes))];
}

void copy_async(void* to, const void* from, size_t bytes) {
  if (running->copies.empty()) running->copies.emplace_back();
  Copy copy{to, from, bytes, draw() % 2 == 0, {}};
  if (copy.was_read) memcpy(copy.read, from, bytes);
  running->copies.back().push_back(copy);
  memset(to, kUnwritten, bytes);
}

void commit_copies() {
  if (running->copies.empty()) running->copies.emplace_back();
  running->copies.emplace_back();
}

void wait_for_copies(size_t but_last) {
  auto& groups = running->copies;
  const size_t committed = groups.empty() ? 0 : groups.size() - 1;
  const size_t arrived = committed > but_last ? committed - but_last : 0;
  for (size_t i = 0; i < arrived; ++i)
    for (const Copy& copy : groups[i]) memcpy(copy.to, copy.was_read ? copy.read : copy.from, copy.bytes);
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(arrived));
}

void init_barrier(uint64_t* barrier, uint32_t count) {
  const Arrivals state{0, static_cast<uint8_t>(count), static_cast<uint8_t>(count), 0, kMark};
  memcpy(barrier, &state, sizeof state);
}

void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  change(reinterpret_cast<unsigned char*>(barrier), 1, bytes);
}

void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  running->barrier = reinterpret_cast<unsigned char*>(barrier);
  running->parity = parity;
  wait_at(At::phase);
}

void send(void* to, uint64_t bits, uint64_t* barrier) {
  const auto place = static_cast<unsigned char*>(to);
  for (unsigned rank = 0; rank < shape.cluster; ++rank) {
    unsigned char* const block = in_block(rank, 0);
    if (place < block || place >= block + storage_bytes) continue;
    const auto distance = [&](const void* p) {
      return static_cast<size_t>(static_cast<const unsigned char*>(p) - block);
    };
    messages.push_back({rank, distance(to), distance(barrier), bits});
    return;
  }
  fail("a message to no place in the shared memory of the cluster");
}

}  // namespace emulator
