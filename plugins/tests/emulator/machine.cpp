// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

namespace nq_cuda {
// The dynamic shared memory, under the names that the kernels give it.
constexpr size_t kSharedBytes = 228 * 1024;
alignas(128) thread_local uint4 shared[kSharedBytes / 16];
namespace mma {
alignas(128) thread_local unsigned char ring[kSharedBytes];
}
}  // namespace nq_cuda

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace nq_emulator {

namespace {

constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Copy {
  uint32_t to;
  const void* from;
};

struct Fiber {
  int thread;
  State state;
  bool started;
  ucontext_t start;
  jmp_buf left;
  std::unique_ptr<char[]> stack;
  int exchanges;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

std::vector<std::unique_ptr<Fiber>> g_fibers;
Fiber* g_current;
jmp_buf g_scheduler;
const std::function<void()>* g_body;
uint32_t g_slots[32][2][32][kWords];  // warp, parity, lane

// A context is only there to begin on a stack of its own: between fibers one jumps, since swapping
// contexts sets the signal mask, a system call, each time.
void wait_as(State state) {
  g_current->state = state;
  if (_setjmp(g_current->left) == 0) _longjmp(g_scheduler, 1);
}

// A fiber runs one thread of every block.
void enter() {
  for (;;) {
    (*g_body)();
    wait_as(State::kDone);
  }
}

void resume(Fiber* fiber) {
  g_current = fiber;
  threadIdx = dim3(static_cast<unsigned>(fiber->thread), 0, 0);
  if (_setjmp(g_scheduler) != 0) return;
  if (fiber->started) _longjmp(fiber->left, 1);
  fiber->started = true;
  setcontext(&fiber->start);
}

[[noreturn]] void stuck(int threads) {
  fprintf(stderr, "emulator: block (%u, %u, %u) is stuck:", blockIdx.x, blockIdx.y, blockIdx.z);
  for (int i = 0; i < threads; ++i) {
    const char names[] = {'r', 'w', 'b', '.'};
    fputc(names[static_cast<int>(g_fibers[i]->state)], stderr);
  }
  fputc('\n', stderr);
  abort();
}

// Lets waiting threads go on where all that must arrive have arrived. True if any may.
bool release(int begin, int end, State at) {
  int waiting = 0, done = 0;
  for (int i = begin; i < end; ++i) {
    waiting += g_fibers[i]->state == at;
    done += g_fibers[i]->state == State::kDone;
  }
  if (waiting == 0 || waiting + done < end - begin) return false;
  for (int i = begin; i < end; ++i) {
    if (g_fibers[i]->state == at) g_fibers[i]->state = State::kReady;
  }
  return true;
}

void add_fiber() {
  g_fibers.push_back(std::make_unique<Fiber>());
  Fiber* fiber = g_fibers.back().get();
  fiber->stack.reset(new char[kStackBytes]);
  fiber->started = false;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = fiber->stack.get();
  fiber->start.uc_stack.ss_size = kStackBytes;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, enter, 0);
}

void run_block(int threads) {
  memset(nq_cuda::shared, 0xff, sizeof nq_cuda::shared);
  memset(nq_cuda::mma::ring, 0xff, sizeof nq_cuda::mma::ring);
  for (int i = 0; i < threads; ++i) {
    Fiber* fiber = g_fibers[i].get();
    fiber->thread = i;
    fiber->state = State::kReady;
    fiber->exchanges = 0;
    fiber->open.clear();
    fiber->groups.clear();
  }
  for (int done = 0; done < threads;) {
    bool progress = false;
    for (int first = 0; first < threads; first += 32) {
      const int last = first + 32 < threads ? first + 32 : threads;
      do {
        for (int i = first; i < last; ++i) {
          if (g_fibers[i]->state == State::kReady) {
            resume(g_fibers[i].get());
            progress = true;
          }
        }
      } while (release(first, last, State::kAtWarp));
    }
    progress = release(0, threads, State::kAtBlock) || progress;
    done = 0;
    for (int i = 0; i < threads; ++i) done += g_fibers[i]->state == State::kDone;
    if (!progress && done < threads) stuck(threads);
  }
}

}  // namespace

int lane() { return g_current->thread % 32; }

void sync_block() { wait_as(State::kAtBlock); }
void sync_warp() { wait_as(State::kAtWarp); }

const uint32_t (*exchange(const uint32_t* words, int count)) [kWords] {
  // A lane can be one exchange ahead of another, never two: two sets of slots are enough.
  auto& slots = g_slots[g_current->thread / 32][g_current->exchanges++ % 2];
  memcpy(slots[lane()], words, count * sizeof(uint32_t));
  wait_as(State::kAtWarp);
  return slots;
}

void copy_later(uint32_t shared, const void* global) {
  g_current->open.push_back({shared, global});
}

void commit_copies() {
  g_current->groups.push_back(std::move(g_current->open));
  g_current->open.clear();
}

void wait_copies(int pending) {
  while (g_current->groups.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : g_current->groups.front())
      memcpy(shared_pointer(copy.to), copy.from, 16);
    g_current->groups.pop_front();
  }
}

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) -
                               reinterpret_cast<const char*>(nq_cuda::shared));
}

void* shared_pointer(uint32_t address) {
  return reinterpret_cast<char*>(nq_cuda::shared) + static_cast<int32_t>(address);
}

bool run(const dim3& grid, const dim3& block, size_t shared_bytes,
         const std::function<void()>& body) {
  const int threads = static_cast<int>(block.x);
  if (threads < 1 || threads > 1024 || block.y != 1 || block.z != 1 ||
      shared_bytes > shared_limit() || grid.x < 1 || grid.y < 1 || grid.z < 1) {
    return false;
  }
  while (g_fibers.size() < static_cast<size_t>(threads)) add_fiber();
  g_body = &body;
  gridDim = grid;
  blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(threads);
    }
  }
  return true;
}

int compute_capability() {
  static const int known = []() {
    const char* given = getenv("NQ_EMULATED_SM");
    return given == nullptr ? 89 : atoi(given);
  }();
  return known;
}

size_t shared_limit() {
  // CUDA C++ Programming Guide, technical specifications per compute capability.
  switch (compute_capability()) {
    case 75:
      return 64 * 1024;
    case 80:
    case 87:
      return 163 * 1024;
    case 90:
      return 227 * 1024;
    default:
      return 99 * 1024;
  }
}

}  // namespace nq_emulator

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = nq_emulator::compute_capability() / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = nq_emulator::compute_capability() % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 3;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(nq_emulator::shared_limit());
      break;
    case cudaDevAttrL2CacheSize:
      *value = 4 << 20;
      break;
  }
  return cudaSuccess;
}
