// Runs CUDA kernels on the CPU, so that wrong indices, missing barriers and unset outputs show, and
// memory traffic can be counted, without a GPU.
//
// To be included ahead of a .cu file that g++ compiles (-x c++ -include cuda_on_cpu.h, with the
// CUDA headers on the path). A thread of the block is a fiber of one CPU thread, run to its next
// synchronisation; blocks follow one another, but for those of a cluster, which run side by side.
// Which fiber, which block and which outstanding copy is next is drawn anew each time, and nothing
// in a warp moves in lockstep, so that a kernel that leans on an order gives itself away. Shared
// memory is filled with NaN at the start of a block, each array a heap block of its exact size, so
// that the address sanitizer knows its ends.
//
// What goes wrong in the use of barriers, copies or launches is the error of the launch, and
// cudaGetErrorString tells it. An Observer is told of every synchronisation.
#pragma once

#define CUDA_ON_CPU

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__ __attribute__((always_inline))  // as nvcc does: an access then has its own place
#define __host__
#define __shared__ shared_memory_is_declared_by_DDF_SHARED
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// Code of the emulation itself, which the thread sanitizer's hooks are not to see.
#define CUDA_ON_CPU_UNSEEN __attribute__((noinline, no_sanitize("thread")))

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
using std::max;
using std::min;

namespace cuda_on_cpu {

// ------------------------------------------------------------------------------------- observer

// Told of what orders memory accesses. A thread is meant by its index in the cluster, whose blocks
// follow one another in it; a launch without clusters has them of one block.
struct Observer {
  virtual ~Observer() = default;
  virtual void launch_begins(const void* /*kernel*/) {}
  virtual void launch_ends() {}
  virtual void cluster_begins(unsigned /*blocks*/, unsigned /*threads of each*/) {}
  virtual void cluster_ends() {}
  virtual void shared_array(unsigned /*block*/, void*, size_t) {}
  virtual void block_barrier(unsigned /*block*/) {}
  virtual void warp_barrier(unsigned /*first thread of the warp*/, unsigned /*mask*/) {}
  virtual void access(const void*, size_t, bool /*write*/, const void* /*from where*/) {}
  virtual void lands(const void*, size_t, const void* /*from where*/) {}  // of a copy: seen before
  virtual void atomic(const void*, size_t, const void* /*from where*/) {}
  virtual void fence() {}
  virtual void arrives(const void* /*arrivals*/) {}
  virtual void waited(const void* /*arrivals*/) {}
};
inline Observer* observer = nullptr;

// --------------------------------------------------------------------------------------- fibers

enum class State { ready, at_block_barrier, at_warp, at_arrivals, at_cluster_barrier, done };
enum class WarpUse { barrier, shuffle, vote };

struct Copy {
  char* to;
  std::vector<char> bytes;
  uint64_t* arrivals;
};

// A thread of the cluster; its stack lives on from cluster to cluster.
struct Fiber {
  std::unique_ptr<ucontext_t> start;
  std::unique_ptr<char[]> stack;
  void* here[5];
  void* fake_stack = nullptr;  // the address sanitizer's
  bool started = false;
  State state = State::done;
  unsigned block;  // of the cluster
  uint3 index;     // in the block
  int line = 0;    // where it waits

  unsigned mask = 0;  // of the warp operation it waits in
  WarpUse use;
  uint64_t given = 0, taken = 0;  // by shuffles and votes
  int source = 0;                 // the lane to take from

  uint64_t* arrivals = nullptr;
  unsigned parity = 0;
  std::vector<std::vector<Copy>> groups;  // of copies that have yet to land, the newest last

  unsigned met = 0;      // barriers of the cluster that it has waited for
  bool arrived = false;  // at the next of them
  bool abroad = false;   // has asked for another block's memory since its last arrival
};

struct SharedArray {
  const void* site;
  char* block;
  char* data;
  size_t bytes;
};

// A block of the cluster.
struct Block {
  uint3 index;
  size_t alive = 0;             // threads that have not returned
  size_t at_block_barrier = 0;  // of these
  std::vector<SharedArray> arrays;
  char* dynamic_array = nullptr;
};

constexpr size_t kStack = 64 << 10;
constexpr unsigned kNobody = ~0u;
inline std::vector<Fiber> fibers;
inline std::vector<Block> blocks;
inline void* scheduler[5];
inline void* scheduler_fake_stack = nullptr;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;
inline unsigned running = kNobody;         // index of the thread in the cluster
inline size_t at_cluster_barrier = 0;      // threads of the cluster that have arrived there
inline unsigned cluster_barriers_met = 0;  // by all of them
inline const std::function<void()>* kernel = nullptr;
inline std::string fault;
inline std::mt19937 random_order(1);
inline int capability = 90;
inline int multiprocessors = 2;  // few, so that a grid as large as the GPU walks over its work
inline unsigned grid_parts = 1, most_blocks = ~0u;  // of a grid, the blocks that are run
// Else they do nothing, as if left out.
inline bool block_barriers = true, warp_barriers = true, cluster_barriers = true;
inline std::vector<Copy> bulk_copies;

inline size_t dynamic_bytes = 0;
inline std::map<const void*, int> dynamic_limits;

inline bool coin() { return random_order() & 1; }
inline unsigned threads_of_block() { return blockDim.x * blockDim.y * blockDim.z; }
inline unsigned lane() { return running % threads_of_block() % warpSize; }
inline Block& block_of(unsigned thread) { return blocks[fibers[thread].block]; }

inline std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_order);
  return order;
}

// The compiler's own setjmp: no system call, and no sanitizer that takes a new stack for a wrong
// one.
__attribute__((noinline, no_sanitize("address", "thread"))) inline void jump(void** to) {
  __builtin_longjmp(to, 1);
}

__attribute__((noinline, no_sanitize("address", "thread"))) inline void jump(void** from,
                                                                             void** to) {
  if (__builtin_setjmp(from) == 0) jump(to);
}

__attribute__((noinline, no_sanitize("address", "thread"))) inline void enter(Fiber& fiber) {
  if (__builtin_setjmp(scheduler) == 0) {
    if (fiber.started) jump(fiber.here);
    fiber.started = true;
    setcontext(fiber.start.get());
  }
}

inline void landed(void* fake_stack, bool in_fiber) {
#ifdef __SANITIZE_ADDRESS__
  const void** bottom = in_fiber ? &scheduler_stack : nullptr;
  __sanitizer_finish_switch_fiber(fake_stack, bottom, in_fiber ? &scheduler_stack_size : nullptr);
#endif
}

// Back to the scheduler, until it resumes this thread.
inline void pause(State state) {
  Fiber& me = fibers[running];
  me.state = state;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&me.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
  jump(me.here, scheduler);
  landed(me.fake_stack, true);
}

// Ends the launch; the running thread never goes on.
[[noreturn]] inline void fail(const std::string& why) {
  if (fault.empty()) fault = why;
  if (running == kNobody) std::abort();
  for (;;) pause(State::done);
}

inline std::string name(unsigned thread) {
  const uint3& t = fibers[thread].index;
  const auto text = [](uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  return "thread " + text(t) + " of block " + text(block_of(thread).index);
}

inline void resume(unsigned thread) {
  Fiber& fiber = fibers[thread];
  running = thread;
  threadIdx = fiber.index;
  blockIdx = blocks[fiber.block].index;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStack);
#endif
  enter(fiber);
  landed(scheduler_fake_stack, false);
  running = kNobody;
}

// ------------------------------------------------------------------------------- barriers, warps

// Lets the threads go that wait in the block's barrier, if it is complete; threads that have
// returned count as there.
inline void settle_block(unsigned number) {
  Block& block = blocks[number];
  if (block.at_block_barrier < block.alive || !block.alive) return;
  block.at_block_barrier = 0;
  std::vector<Fiber*> here;
  for (unsigned i = 0; i < threads_of_block(); ++i) {
    Fiber& f = fibers[number * threads_of_block() + i];
    if (f.state != State::done) here.push_back(&f);
  }
  uint64_t any = 0, all = 1, count = 0;
  for (const Fiber* f : here) {
    if (f->line != here[0]->line) {
      fail("__syncthreads is reached at line " + std::to_string(here[0]->line) +
           " by some threads and at " + std::to_string(f->line) + " by others");
    }
    any |= f->given != 0;
    all &= f->given != 0;
    count += f->given != 0;
  }
  for (Fiber* f : here) {
    f->state = State::ready;
    f->taken = any | all << 1 | count << 2;
  }
  if (observer) observer->block_barrier(number);
}

// Likewise those of `mask` in the warp that begins at thread `first`.
inline void settle_warp(unsigned first, unsigned mask) {
  uint64_t votes = 0;
  const Fiber* one = nullptr;
  const unsigned end = (fibers[first].block + 1) * threads_of_block();
  const auto here = [&](unsigned l) -> Fiber* {
    const bool alive = mask >> l & 1 && first + l < end && fibers[first + l].state != State::done;
    return alive ? &fibers[first + l] : nullptr;
  };
  for (unsigned l = 0; l < 32; ++l) {
    const Fiber* f = here(l);
    if (!f) continue;
    if (f->state != State::at_warp || f->mask != mask) return;
    if (one && f->use != one->use) {
      fail("lanes of one mask meet in different operations, at lines " + std::to_string(one->line) +
           " and " + std::to_string(f->line));
    }
    one = f;
    votes |= uint64_t(f->given != 0) << l;
  }
  if (!one) return;
  if (one->use == WarpUse::barrier && observer) observer->warp_barrier(first, mask);
  uint64_t given[32];
  for (unsigned l = 0; l < 32; ++l) given[l] = here(l) ? here(l)->given : ~uint64_t(0);
  const bool vote = one->use == WarpUse::vote;
  for (unsigned l = 0; l < 32; ++l) {
    Fiber* f = here(l);
    if (!f) continue;
    f->taken = vote ? votes : given[f->source];
    f->state = State::ready;
  }
}

inline uint64_t meet_in_block(uint64_t given, int line) {
  Fiber& me = fibers[running];
  me.given = given;
  me.line = line;
  me.state = State::at_block_barrier;
  ++block_of(running).at_block_barrier;
  settle_block(me.block);
  pause(me.state);
  return me.taken;
}

inline uint64_t meet_in_warp(WarpUse use, unsigned mask, uint64_t given, int source, int line) {
  Fiber& me = fibers[running];
  if (!(mask >> lane() & 1)) {
    fail(name(running) + " is not in the mask that it gives at line " + std::to_string(line));
  }
  me.mask = mask;
  me.use = use;
  me.given = given;
  me.source = source;
  me.line = line;
  me.state = State::at_warp;
  settle_warp(running - lane(), mask);
  pause(me.state);
  return me.taken;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t given = 0;
  std::memcpy(&given, &value, sizeof(T));
  given = meet_in_warp(WarpUse::shuffle, mask, given, source, line);
  std::memcpy(&value, &given, sizeof(T));
  return value;
}

// -------------------------------------------------------------------------------- shared memory

// Aligned to what is asked for and no more.
inline char* new_array(unsigned number, const void* site, size_t bytes, size_t alignment) {
  char* block = static_cast<char*>(::operator new(bytes + alignment, std::align_val_t(256)));
  std::memset(block, 0xff, bytes + alignment);
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(block, alignment);
#endif
  blocks[number].arrays.push_back({site, block, block + alignment, bytes});
  if (observer) observer->shared_array(number, block + alignment, bytes);
  return block + alignment;
}

// The array that the declaration at `site` makes, the same for all threads of the block.
template <typename Array>
CUDA_ON_CPU_UNSEEN Array& shared(const void* site) {
  for (const SharedArray& array : block_of(running).arrays) {
    if (array.site == site) return *reinterpret_cast<Array*>(array.data);
  }
  return *reinterpret_cast<Array*>(
      new_array(fibers[running].block, site, sizeof(Array), std::max<size_t>(16, alignof(Array))));
}

CUDA_ON_CPU_UNSEEN inline void* dynamic_shared() { return block_of(running).dynamic_array; }

inline void free_shared(const Block& block) {
  for (const SharedArray& array : block.arrays) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(array.block, array.data - array.block);
#endif
    ::operator delete(array.block, std::align_val_t(256));
  }
}

// ------------------------------------------------------------------------------------- clusters
//
// A thread may ask for the memory of another block after its first barrier of the cluster, else
// that block may not have begun, and has to arrive at one more, else it may have left. On a GPU
// threads that have returned count as there; here all have to come, since their memory is gone.

// The barrier that threads meet at who have waited for so many before, as the observer knows it: no
// thread arrives at the next but one before all have waited for this one.
inline const void* cluster_barrier(unsigned met) {
  static const char barriers[2] = {};
  return &barriers[met % 2];
}

CUDA_ON_CPU_UNSEEN inline void cluster_arrive() {
  if (!cluster_barriers) return;
  Fiber& me = fibers[running];
  if (me.arrived) fail(name(running) + " arrives twice at one barrier of the cluster");
  me.arrived = true;
  me.abroad = false;
  if (observer) observer->arrives(cluster_barrier(me.met));
  if (++at_cluster_barrier < fibers.size()) return;
  at_cluster_barrier = 0;
  ++cluster_barriers_met;
}

CUDA_ON_CPU_UNSEEN inline void cluster_wait() {
  if (!cluster_barriers) return;
  Fiber& me = fibers[running];
  if (!me.arrived) fail(name(running) + " waits for the cluster before it has arrived");
  if (coin() || cluster_barriers_met == me.met) pause(State::at_cluster_barrier);
  if (observer) observer->waited(cluster_barrier(me.met));
  me.arrived = false;
  ++me.met;
}

// Where block `rank` of the cluster has what this one has at `address`.
template <typename T>
CUDA_ON_CPU_UNSEEN T* in_block(T* address, unsigned rank) {
  Fiber& me = fibers[running];
  if (rank >= blocks.size()) fail(name(running) + " asks for a block beyond its cluster");
  if (rank == me.block) return address;
  if (cluster_barriers && me.met == 0) {
    fail(name(running) + " asks for the memory of a block that may not have begun");
  }
  me.abroad = true;
  for (const SharedArray& mine : blocks[me.block].arrays) {
    const ptrdiff_t offset = reinterpret_cast<const char*>(address) - mine.data;
    if (offset < 0 || size_t(offset) > mine.bytes) continue;
    for (const SharedArray& other : blocks[rank].arrays) {
      if (other.site == mine.site) return reinterpret_cast<T*>(other.data + offset);
    }
    char* const made = new_array(rank, mine.site, mine.bytes, mine.data - mine.block);
    return reinterpret_cast<T*>(made + offset);
  }
  fail(name(running) + " asks for memory of another block that is not shared memory");
}

// ----------------------------------------------------------------- vector accesses, async copies

// A register that moves so many bytes in one access, which the compiler does not split.
template <size_t kBytes>
struct RawOf {
  typedef unsigned type __attribute__((vector_size(kBytes), may_alias));
};
template <>
struct RawOf<1> {
  typedef uint8_t type __attribute__((may_alias));
};
template <>
struct RawOf<2> {
  typedef uint16_t type __attribute__((may_alias));
};
template <>
struct RawOf<4> {
  typedef uint32_t type __attribute__((may_alias));
};
template <>
struct RawOf<8> {
  typedef uint64_t type __attribute__((may_alias));
};
template <size_t kBytes>
using Raw = typename RawOf<kBytes>::type;

template <typename T>
__attribute__((always_inline)) inline T load(const T* from) {
  const Raw<sizeof(T)> raw = *reinterpret_cast<const Raw<sizeof(T)>*>(from);
  T value;
  std::memcpy(&value, &raw, sizeof(T));
  return value;
}

template <typename T>
__attribute__((always_inline)) inline void store(T* to, T value) {
  Raw<sizeof(T)> raw;
  std::memcpy(&raw, &value, sizeof(T));
  *reinterpret_cast<Raw<sizeof(T)>*>(to) = raw;
}

CUDA_ON_CPU_UNSEEN inline void need_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) {
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes is not aligned to them");
  }
}

// Reads the source at once; what is at the destination is lost at once.
inline Copy begin_copy(void* to, const void* from, size_t valid, size_t bytes, const void* site) {
  Copy copy{static_cast<char*>(to), std::vector<char>(bytes), nullptr};
  std::memcpy(copy.bytes.data(), from, valid);
  std::memset(to, 0xff, bytes);
  if (observer && valid) observer->access(from, valid, false, site);
  if (observer) observer->access(to, bytes, true, site);
  return copy;
}

inline void land(const Copy& copy) { std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size()); }

// Lands at once or when it is waited for.
template <size_t kBytes>
CUDA_ON_CPU_UNSEEN void copy_async(void* to, const void* from, size_t valid) {
  need_aligned(to, kBytes, "the destination of an asynchronous copy");
  if (valid) need_aligned(from, kBytes, "the source of an asynchronous copy");
  if (valid > kBytes) fail("an asynchronous copy has more valid bytes than bytes");
  Fiber& me = fibers[running];
  if (me.groups.empty()) me.groups.emplace_back();
  Copy copy = begin_copy(to, from, valid, kBytes, __builtin_return_address(0));
  if (coin()) {
    land(copy);
  } else {
    me.groups.back().push_back(std::move(copy));
  }
}

CUDA_ON_CPU_UNSEEN inline void copies_commit() {
  Fiber& me = fibers[running];
  if (me.groups.empty()) me.groups.emplace_back();
  me.groups.emplace_back();
}

// All but the newest groups that are complete; the last one is still open.
CUDA_ON_CPU_UNSEEN inline void copies_wait(size_t newest) {
  Fiber& me = fibers[running];
  while (me.groups.size() > newest + 1) {
    for (const Copy& copy : me.groups.front()) {
      land(copy);
      if (observer) observer->lands(copy.to, copy.bytes.size(), __builtin_return_address(0));
    }
    me.groups.erase(me.groups.begin());
  }
}

// An mbarrier: how many arrivals make a phase, how many it lacks, bytes it lacks, phases done.
struct Mbarrier {
  uint16_t threads, left;
  int32_t bytes : 24, phase : 8;
};

CUDA_ON_CPU_UNSEEN inline Mbarrier mbarrier(const uint64_t* state) {
  need_aligned(state, 8, "an mbarrier");
  Mbarrier b;
  std::memcpy(&b, state, sizeof b);
  if (b.threads == 0xffff) fail("an mbarrier is used before it is set up");
  return b;
}

CUDA_ON_CPU_UNSEEN inline void settle_mbarrier(uint64_t* state, Mbarrier b) {
  if (b.left == 0 && b.bytes == 0) {
    b.left = b.threads;
    ++b.phase;
  }
  std::memcpy(state, &b, sizeof b);
}

CUDA_ON_CPU_UNSEEN inline void arrivals_init(uint64_t* state, unsigned threads) {
  const Mbarrier b = {uint16_t(threads), uint16_t(threads), 0, 0};
  std::memcpy(state, &b, sizeof b);
}

CUDA_ON_CPU_UNSEEN inline void arrivals_arrive(uint64_t* state, unsigned bytes) {
  Mbarrier b = mbarrier(state);
  if (b.left == 0) fail("more threads arrive at an mbarrier than it was set up for");
  if (observer) observer->arrives(state);
  --b.left;
  b.bytes += bytes;
  settle_mbarrier(state, b);
}

CUDA_ON_CPU_UNSEEN inline bool phase_over(const uint64_t* state, unsigned parity) {
  Mbarrier b;
  std::memcpy(&b, state, sizeof b);
  return (b.phase & 1) != int(parity & 1);
}

CUDA_ON_CPU_UNSEEN inline void arrivals_wait(uint64_t* state, unsigned parity) {
  mbarrier(state);
  Fiber& me = fibers[running];
  me.arrivals = state;
  me.parity = parity;
  if (coin() || !phase_over(state, parity)) pause(State::at_arrivals);
  if (observer) observer->waited(state);
}

CUDA_ON_CPU_UNSEEN inline void copy_bulk(void* to, const void* from, unsigned bytes,
                                         uint64_t* state) {
  mbarrier(state);
  need_aligned(to, 16, "the destination of a bulk copy");
  need_aligned(from, 16, "the source of a bulk copy");
  if (bytes % 16) fail("a bulk copy is not of whole 16 bytes");
  bulk_copies.push_back(begin_copy(to, from, bytes, bytes, __builtin_return_address(0)));
  bulk_copies.back().arrivals = state;
  if (observer) observer->arrives(state);
}

inline void land_a_bulk_copy() {
  std::swap(bulk_copies[random_order() % bulk_copies.size()], bulk_copies.back());
  const Copy copy = std::move(bulk_copies.back());
  bulk_copies.pop_back();
  land(copy);
  Mbarrier b;
  std::memcpy(&b, copy.arrivals, sizeof b);
  b.bytes -= int(copy.bytes.size());
  settle_mbarrier(copy.arrivals, b);
}

// -------------------------------------------------------------------------------------- atomics

template <typename T, typename Change>
CUDA_ON_CPU_UNSEEN T atomic(T* address, Change change) {
  if (observer) observer->atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = change(old);
  return old;
}

// --------------------------------------------------------------------------------------- blocks

inline void live() {
  landed(nullptr, true);
  for (;;) {
    (*kernel)();
    Fiber& me = fibers[running];
    if (me.arrived) fail(name(running) + " returns before it has waited for the cluster");
    if (me.abroad && cluster_barriers) {
      fail(name(running) + " returns, and the memory of another block that it used may be gone");
    }
    me.state = State::done;
    --block_of(running).alive;
    settle_block(me.block);
    const unsigned first = running - lane(), end = (me.block + 1) * threads_of_block();
    for (unsigned i = first; i < end && i < first + 32; ++i) {
      if (fibers[i].state == State::at_warp) settle_warp(first, fibers[i].mask);
    }
    pause(State::done);
  }
}

inline void make_fibers() {
  const unsigned threads = threads_of_block(), count = threads * unsigned(blocks.size());
  if (fibers.size() != count) {
    fibers = std::vector<Fiber>(count);
    for (Fiber& fiber : fibers) {
      fiber.stack.reset(new char[kStack]);
      fiber.start.reset(new ucontext_t);
      getcontext(fiber.start.get());
      fiber.start->uc_stack.ss_sp = fiber.stack.get();
      fiber.start->uc_stack.ss_size = kStack;
      makecontext(fiber.start.get(), live, 0);
    }
  }
  at_cluster_barrier = cluster_barriers_met = 0;
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    const unsigned t = i % threads;
    fiber.state = State::ready;
    fiber.block = i / threads;
    fiber.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    fiber.groups.clear();
    fiber.met = 0;
    fiber.arrived = fiber.abroad = false;
  }
}

inline bool can_go_on(const Fiber& fiber) {
  return fiber.state == State::ready ||
         (fiber.state == State::at_arrivals && phase_over(fiber.arrivals, fiber.parity)) ||
         (fiber.state == State::at_cluster_barrier && cluster_barriers_met > fiber.met);
}

// Names a thread of each kind that waits.
inline std::string stuck() {
  std::string text = "the block is stuck:";
  for (const State state :
       {State::at_block_barrier, State::at_warp, State::at_arrivals, State::at_cluster_barrier}) {
    for (unsigned i = 0; i < fibers.size(); ++i) {
      if (fibers[i].state != state) continue;
      const char* where = state == State::at_block_barrier ? "__syncthreads"
                          : state == State::at_warp        ? "a warp operation"
                          : state == State::at_arrivals    ? "an mbarrier"
                                                           : "the cluster's barrier";
      text += " " + name(i) + " waits in " + where;
      if (state == State::at_block_barrier || state == State::at_warp) {
        text += " at line " + std::to_string(fibers[i].line);
      }
      text += ";";
      break;
    }
  }
  return text;
}

// Runs the blocks of these places in the grid side by side.
inline void run_cluster(const std::vector<uint3>& places) {
  blocks.assign(places.size(), Block());
  if (observer) observer->cluster_begins(unsigned(blocks.size()), threads_of_block());
  for (unsigned i = 0; i < blocks.size(); ++i) {
    blocks[i].index = places[i];
    blocks[i].alive = threads_of_block();
    if (dynamic_bytes) blocks[i].dynamic_array = new_array(i, &dynamic_bytes, dynamic_bytes, 128);
  }
  make_fibers();
  const auto alive = [](const Block& block) { return block.alive > 0; };
  while (std::any_of(blocks.begin(), blocks.end(), alive) && fault.empty()) {
    bool moved = false;
    for (const unsigned i : shuffled(unsigned(fibers.size()))) {
      if (!can_go_on(fibers[i])) continue;
      resume(i);
      moved = true;
      if (!fault.empty()) break;
    }
    if (!bulk_copies.empty() && (coin() || !moved)) {
      land_a_bulk_copy();
    } else if (!moved && std::any_of(blocks.begin(), blocks.end(), alive)) {
      fault = stuck();
    }
  }
  if (!bulk_copies.empty() && fault.empty()) fault = "a block ends before its bulk copies";
  if (observer) observer->cluster_ends();
  for (const Block& block : blocks) free_shared(block);
  bulk_copies.clear();
  if (!fault.empty()) fibers.clear();
}

// ------------------------------------------------------------------------------------- launches

// Blocks of a cluster, along x.
inline unsigned cluster_of(const cudaLaunchConfig_t& c) {
  for (unsigned i = 0; i < c.numAttrs; ++i) {
    if (c.attrs[i].id == cudaLaunchAttributeClusterDimension) return c.attrs[i].val.clusterDim.x;
  }
  return 1;
}

inline cudaError_t checked(const cudaLaunchConfig_t& c, const void* function) {
  const dim3 g = c.gridDim, b = c.blockDim;
  const bool grid = g.x && g.y && g.z && g.x <= 0x7fffffff && g.y <= 65535 && g.z <= 65535;
  const bool block = b.x && b.y && b.z && b.z <= 64 && uint64_t(b.x) * b.y * b.z <= 1024;
  if (!grid || !block) return cudaErrorInvalidConfiguration;
  const unsigned cluster = cluster_of(c);
  if (cluster == 0 || cluster > 8 || g.x % cluster) return cudaErrorInvalidClusterSize;
  if (cluster > 1 && capability < 90) return cudaErrorNotSupported;
  const auto limit = dynamic_limits.find(function);
  const size_t most = limit == dynamic_limits.end() ? 48 << 10 : limit->second;
  return c.dynamicSmemBytes <= most ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename... P, typename... A>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*function)(P...), A&&... arguments) {
  const void* const address = reinterpret_cast<const void*>(function);
  const cudaError_t refused = checked(*config, address);
  if (refused != cudaSuccess) return refused;
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  dynamic_bytes = config->dynamicSmemBytes;
  fault.clear();
  const std::function<void()> call = [&] { function(P(arguments)...); };
  kernel = &call;
  if (observer) observer->launch_begins(address);
  const unsigned side = cluster_of(*config);
  const unsigned clusters = gridDim.x * gridDim.y * gridDim.z / side / grid_parts;
  const unsigned count = std::min(clusters, std::max(1u, most_blocks / side));
  for (const unsigned drawn : shuffled(count)) {
    const unsigned first = side * unsigned((2 * uint64_t(drawn) + 1) * clusters / (2 * count));
    std::vector<uint3> places;
    for (unsigned i = first; i < first + side; ++i) {
      places.push_back({i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y});
    }
    run_cluster(places);
    if (!fault.empty()) break;
  }
  if (observer) observer->launch_ends();
  return fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// Bytes of shared memory that a block can have.
inline int most_shared() {
  return (capability >= 120  ? 99
          : capability >= 90 ? 227
          : capability == 80 ? 163
          : capability >= 80 ? 99
                             : 64)
         << 10;
}

inline cudaError_t set_attribute(const void* function, cudaFuncAttribute what, int value) {
  if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > most_shared()) return cudaErrorInvalidValue;
  dynamic_limits[function] = value;
  return cudaSuccess;
}

inline cudaError_t device_attribute(int* value, cudaDeviceAttr what, int /*device*/) {
  switch (what) {
    case cudaDevAttrMultiProcessorCount:
      return *value = multiprocessors, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = capability % 10, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = most_shared(), cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename Function>
cudaError_t occupancy(int* blocks, Function, int /*threads*/, size_t /*shared*/) {
  return *blocks = 2, cudaSuccess;
}

}  // namespace cuda_on_cpu

// ------------------------------------------------------------------------------ CUDA's own names

inline void __syncthreads(int line = __builtin_LINE()) {
  if (cuda_on_cpu::block_barriers) cuda_on_cpu::meet_in_block(0, line);
}
inline int __syncthreads_or(int value, int line = __builtin_LINE()) {
  return cuda_on_cpu::meet_in_block(value != 0, line) & 1;
}
inline int __syncthreads_and(int value, int line = __builtin_LINE()) {
  return cuda_on_cpu::meet_in_block(value != 0, line) >> 1 & 1;
}
inline int __syncthreads_count(int value, int line = __builtin_LINE()) {
  return int(cuda_on_cpu::meet_in_block(value != 0, line) >> 2);
}

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  if (!cuda_on_cpu::warp_barriers) return;
  cuda_on_cpu::meet_in_warp(cuda_on_cpu::WarpUse::barrier, mask, 0, 0, line);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int lane = int(cuda_on_cpu::lane());
  return cuda_on_cpu::shuffle(mask, value, lane / width * width + (source & (width - 1)), line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 int line = __builtin_LINE()) {
  const int lane = int(cuda_on_cpu::lane()), from = lane - int(delta);
  return cuda_on_cpu::shuffle(mask, value, from < lane / width * width ? lane : from, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   int line = __builtin_LINE()) {
  const int lane = int(cuda_on_cpu::lane()), from = lane + int(delta);
  return cuda_on_cpu::shuffle(mask, value, from >= lane / width * width + width ? lane : from,
                              line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32, int line = __builtin_LINE()) {
  const int lane = int(cuda_on_cpu::lane()), from = lane ^ other;
  return cuda_on_cpu::shuffle(mask, value, from >= lane / width * width + width ? lane : from,
                              line);
}

inline unsigned __ballot_sync(unsigned mask, int value, int line = __builtin_LINE()) {
  return unsigned(cuda_on_cpu::meet_in_warp(cuda_on_cpu::WarpUse::vote, mask, value != 0, 0, line));
}
inline int __any_sync(unsigned mask, int value, int line = __builtin_LINE()) {
  return __ballot_sync(mask, value, line) != 0;
}
inline int __all_sync(unsigned mask, int value, int line = __builtin_LINE()) {
  return __ballot_sync(mask, !value, line) == 0;
}
// Any set of converged lanes is a right answer; the smallest is the hardest.
inline unsigned __activemask() { return 1u << cuda_on_cpu::lane(); }

inline void __threadfence_block() {}
inline void __threadfence() {
  if (cuda_on_cpu::observer) cuda_on_cpu::observer->fence();
}

#define CUDA_ON_CPU_LOAD(name)                                  \
  template <typename T>                                         \
  __attribute__((always_inline)) inline T name(const T* from) { \
    return cuda_on_cpu::load(from);                             \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
#undef CUDA_ON_CPU_LOAD

#define CUDA_ON_CPU_STORE(name)                                     \
  template <typename T>                                             \
  __attribute__((always_inline)) inline void name(T* to, T value) { \
    cuda_on_cpu::store(to, value);                                  \
  }
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_STORE

#define CUDA_ON_CPU_ATOMIC(name, result)                                            \
  template <typename T>                                                             \
  __attribute__((always_inline)) inline T name(T* to, std::common_type_t<T> with) { \
    return cuda_on_cpu::atomic(to, [with](T old) -> T { return result; });          \
  }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + with)
CUDA_ON_CPU_ATOMIC(atomicSub, old - with)
CUDA_ON_CPU_ATOMIC(atomicExch, with)
CUDA_ON_CPU_ATOMIC(atomicMin, std::min(old, with))
CUDA_ON_CPU_ATOMIC(atomicMax, std::max(old, with))
CUDA_ON_CPU_ATOMIC(atomicAnd, old& with)
CUDA_ON_CPU_ATOMIC(atomicOr, old | with)
CUDA_ON_CPU_ATOMIC(atomicXor, old ^ with)
CUDA_ON_CPU_ATOMIC(atomicInc, old >= with ? 0 : old + 1)
#undef CUDA_ON_CPU_ATOMIC
template <typename T>
T atomicCAS(T* to, std::common_type_t<T> expected, std::common_type_t<T> with) {
  return cuda_on_cpu::atomic(to, [=](T old) -> T { return old == expected ? with : old; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
[[noreturn]] inline void __trap() { cuda_on_cpu::fail("__trap"); }

#define cudaLaunchKernelEx cuda_on_cpu::launch
#define cudaFuncSetAttribute(function, what, value) \
  cuda_on_cpu::set_attribute(reinterpret_cast<const void*>(function), what, value)
#define cudaDeviceGetAttribute cuda_on_cpu::device_attribute
#define cudaOccupancyMaxActiveBlocksPerMultiprocessor cuda_on_cpu::occupancy
#define cudaSetDevice(device) ((void)(device), cudaSuccess)
#define cudaGetDevice(device) (*(device) = 0, cudaSuccess)
#define cudaGetLastError() cudaSuccess
#define cudaGetErrorString(error)                                 \
  ((error) == cudaErrorLaunchFailure ? cuda_on_cpu::fault.c_str() \
   : (error) == cudaSuccess          ? "no error"                 \
                                     : "the launch was refused")

// The library's own doors, for the program that loads it.
#define CUDA_ON_CPU_DOOR extern "C" __attribute__((visibility("default"), used)) inline
CUDA_ON_CPU_DOOR void cuda_on_cpu_seed(unsigned seed) { cuda_on_cpu::random_order.seed(seed); }
// Whether the barriers of blocks, warps and clusters do anything: without them, kernels that need
// them must fail.
CUDA_ON_CPU_DOOR void cuda_on_cpu_barriers(int block, int warp, int cluster) {
  cuda_on_cpu::block_barriers = block;
  cuda_on_cpu::warp_barriers = warp;
  cuda_on_cpu::cluster_barriers = cluster;
}
CUDA_ON_CPU_DOOR void cuda_on_cpu_gpu(int capability, int multiprocessors) {
  cuda_on_cpu::capability = capability;
  cuda_on_cpu::multiprocessors = multiprocessors;
}
// Of each grid, runs only the first of so many equal parts, and of that no more than so many
// blocks, spread evenly, or whole clusters.
CUDA_ON_CPU_DOOR void cuda_on_cpu_blocks(unsigned parts, unsigned most) {
  cuda_on_cpu::grid_parts = parts;
  cuda_on_cpu::most_blocks = most;
}
