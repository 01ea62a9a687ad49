// SPDX-License-Identifier: Apache-2.0
//
// Threads of a block as fibers of one host thread, and their meeting points.

#ifndef NQ_EMULATOR_MACHINE_H
#define NQ_EMULATOR_MACHINE_H

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3;

namespace nq_emulator {

constexpr int kWords = 8;  // most words of one exchange

int lane();  // of the thread that runs now

// All threads of the block, or of the warp, arrive before any goes on.
void sync_block();
void sync_warp();

// Each lane gives up to kWords words and sees those of all 32 lanes until its next exchange.
const uint32_t (*exchange(const uint32_t* words, int count))[kWords];

// Asynchronous copies of 16 bytes: issued, grouped, and done once fewer than `pending` younger
// groups are left.
void copy_later(uint32_t shared, const void* global);
void commit_copies();
void wait_copies(int pending);

// Shared memory by 32-bit addresses, relative to the dynamic part.
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address);

// Runs the body once for each thread of each block. False when the launch is not possible on this
// device. Ends the process when threads wait for each other forever.
bool run(const dim3& grid, const dim3& block, size_t shared_bytes,
         const std::function<void()>& body);

int compute_capability();
size_t shared_limit();

}  // namespace nq_emulator

#endif  // NQ_EMULATOR_MACHINE_H
