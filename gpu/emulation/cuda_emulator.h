/* Runs a CUDA C++ kernel on one processor core, so that its source can be tested where there is no GPU.
 *
 * Each CUDA thread of a block is a fiber with a stack of its own. The fibers of a block run one after another, each
 * until it reaches __syncthreads() or returns; when all have arrived, the next interval between barriers begins.
 * Blocks run one after another. What goes wrong on a GPU now and then goes wrong here every time:
 *   - shared memory is filled with 0xff (NaN) before each block, so that a value read before it is written shows;
 *   - within an interval one fiber runs to the barrier before the next begins, in an order drawn from a seed, so that
 *     a missing barrier changes the result;
 *   - a barrier that some threads of a block never reach, or that they reach at different lines, is an error.
 * What it does not show: time, and races between blocks.
 *
 * A kernel's source is compiled by g++ with this header before it. It may use threadIdx, blockIdx, blockDim, gridDim,
 * __shared__, __syncthreads and the intrinsics below; warp and grid operations are not emulated.
 */
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("emulated_shared")))

/* The linker's names for both ends of the section; null in a library whose kernel has no shared memory. */
extern "C" {
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(16) int4 {
  int x, y, z, w;
};

namespace emulator {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr unsigned MAX_THREADS = 1024;

struct Fiber {
  dim3 thread;
  bool started = false;
  bool finished = false;
  int barrier_line = 0;
  jmp_buf position;
  ucontext_t entry;
  std::unique_ptr<char[]> stack;
};

inline std::vector<Fiber> fibers;
inline Fiber* current = nullptr;
inline jmp_buf scheduler;
inline dim3 block, grid, block_size;
inline void (*body)(void*) = nullptr;
inline void* body_arguments = nullptr;
inline char message[256];

#ifdef __SANITIZE_ADDRESS__
/* AddressSanitizer has to be told which stack is in use. */
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline void before_switch(const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(nullptr, stack, bytes); }
inline void after_switch_to_fiber() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
}
inline void after_switch_to_scheduler() { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }
#else
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline void before_switch(const void*, size_t) {}
inline void after_switch_to_fiber() {}
inline void after_switch_to_scheduler() {}
#endif

/* Gives the processor back to the scheduler until it resumes this fiber. */
__attribute__((noinline)) inline void suspend() {
  before_switch(scheduler_stack, scheduler_stack_bytes);
  if (_setjmp(current->position) == 0) _longjmp(scheduler, 1);
  after_switch_to_fiber();
}

/* A fiber lives on from block to block: it runs the kernel's body once each time it is resumed anew. */
inline void fiber_main() {
  after_switch_to_fiber();
  for (;;) {
    body(body_arguments);
    current->finished = true;
    suspend();
  }
}

__attribute__((noinline)) inline void resume(Fiber& fiber) {
  current = &fiber;
  before_switch(fiber.stack.get(), STACK_BYTES);
  if (_setjmp(scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.position, 1);
    fiber.started = true;
    setcontext(&fiber.entry);
  }
  after_switch_to_scheduler();
}

inline void ensure_fibers(unsigned count) {
  if (fibers.empty()) fibers.reserve(MAX_THREADS); /* a context must not move */
  while (fibers.size() < count) {
    Fiber& fiber = fibers.emplace_back();
    fiber.stack.reset(new char[STACK_BYTES]);
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.get();
    fiber.entry.uc_stack.ss_size = STACK_BYTES;
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, fiber_main, 0);
  }
}

inline void barrier(int line) {
  current->barrier_line = line;
  asm volatile("" ::: "memory");
  suspend();
  asm volatile("" ::: "memory");
}

inline uint64_t next_random(uint64_t& state) { /* xorshift64, Marsaglia 2003 */
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

/* Runs one block to its end. False, with ``message`` written, when its threads disagree about a barrier. */
inline bool run_block(unsigned threads, uint64_t& random) {
  if (__start_emulated_shared) memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  std::vector<unsigned> order(threads);
  for (unsigned t = 0; t < threads; t++) {
    order[t] = t;
    Fiber& fiber = fibers[t];
    fiber.finished = false;
    fiber.thread = {t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y)};
  }
  for (;;) {
    if (random != 0)
      for (unsigned t = threads - 1; t > 0; t--) std::swap(order[t], order[next_random(random) % (t + 1)]);
    for (unsigned t : order) resume(fibers[t]);
    unsigned finished = 0;
    for (unsigned t = 0; t < threads; t++) finished += fibers[t].finished;
    if (finished == threads) return true;
    const Fiber* waiting = nullptr;
    for (unsigned t = 0; t < threads; t++)
      if (!fibers[t].finished) {
        if (finished > 0) {
          snprintf(message, sizeof message,
                   "%u of %u threads of block (%u, %u, %u) left the kernel while others wait at __syncthreads() on line %d",
                   finished, threads, block.x, block.y, block.z, fibers[t].barrier_line);
          return false;
        }
        if (waiting && waiting->barrier_line != fibers[t].barrier_line) {
          snprintf(message, sizeof message,
                   "threads of block (%u, %u, %u) wait at different barriers, on lines %d and %d", block.x, block.y,
                   block.z, waiting->barrier_line, fibers[t].barrier_line);
          return false;
        }
        waiting = &fibers[t];
      }
  }
}

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  void** arguments;

  template <size_t... I>
  void invoke(std::index_sequence<I...>) const {
    kernel(*static_cast<std::remove_const_t<Parameters>*>(arguments[I])...);
  }
  static void run(void* call) { static_cast<Call*>(call)->invoke(std::index_sequence_for<Parameters...>()); }
};

/* Launches a kernel as cuLaunchKernel does: ``arguments`` points to each argument's value, ``sizes`` holds their bytes.
 * ``extents`` is grid x, y, z and block x, y, z. Seed 0 keeps the threads in order. Null, or what went wrong. */
template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const unsigned* extents, uint64_t seed, void** arguments,
                   const size_t* sizes, size_t count) {
  const size_t expected[] = {sizeof(Parameters)...};
  if (count != sizeof...(Parameters)) {
    snprintf(message, sizeof message, "the kernel takes %zu arguments, %zu are given", sizeof...(Parameters), count);
    return message;
  }
  for (size_t i = 0; i < count; i++)
    if (sizes[i] != expected[i]) {
      snprintf(message, sizeof message, "argument %zu is %zu bytes, the kernel takes %zu", i, sizes[i], expected[i]);
      return message;
    }
  const unsigned threads = extents[3] * extents[4] * extents[5];
  if (threads == 0 || threads > MAX_THREADS || extents[4] > 1024 || extents[5] > 64 || extents[0] == 0 ||
      extents[0] > 0x7fffffff || extents[1] == 0 || extents[1] > 65535 || extents[2] == 0 || extents[2] > 65535) {
    snprintf(message, sizeof message, "a grid of (%u, %u, %u) blocks of (%u, %u, %u) threads cannot be launched",
             extents[0], extents[1], extents[2], extents[3], extents[4], extents[5]);
    return message;
  }
  grid = {extents[0], extents[1], extents[2]};
  block_size = {extents[3], extents[4], extents[5]};
  Call<Parameters...> call{kernel, arguments};
  body = Call<Parameters...>::run;
  body_arguments = &call;
  ensure_fibers(threads);
  uint64_t random = seed;
  for (block.z = 0; block.z < grid.z; block.z++)
    for (block.y = 0; block.y < grid.y; block.y++)
      for (block.x = 0; block.x < grid.x; block.x++)
        if (!run_block(threads, random)) {
          fibers.clear(); /* their half-run bodies are given up */
          return message;
        }
  return nullptr;
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid)
#define __syncthreads() emulator::barrier(__LINE__)

#define EMULATED_KERNEL(name)                                                                          \
  extern "C" const char* emulated_launch(const unsigned* extents, uint64_t seed, void** arguments,     \
                                         const size_t* sizes, size_t count) {                          \
    return emulator::launch(name, extents, seed, arguments, sizes, count);                             \
  }

using std::max;
using std::min;

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __int2float_rn(int value) { return static_cast<float>(value); }

/* The sum of four products of signed bytes, added to a 32-bit sum that wraps. */
inline int __dp4a(int a, int b, int sum) {
  unsigned result = static_cast<unsigned>(sum);
  for (int shift = 0; shift < 32; shift += 8)
    result += static_cast<unsigned>(static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift));
  return static_cast<int>(result);
}
