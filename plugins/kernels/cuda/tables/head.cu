// SPDX-License-Identifier: Apache-2.0
//
// The output head: which kernel runs, and its launches.

#include <cmath>

#include "cuda/launch.h"
#include "cuda/tables/check.h"
#include "cuda/tables/many.cuh"

namespace nq_cuda {
namespace tables {

namespace {

constexpr int kFewestWarps = 2;

bool grouped(const nq_cuda_table& table) {
  // A single scale a row is applied once, which only the kernels of 8 bits can do.
  return table.bits == 4 || (table.bits == 8 && table.group < table.columns);
}

// Calls run.operator()<BITS, OPERAND, GROUPED>() for the table.
template <typename Run>
nq_status by_table(const nq_cuda_table& table, Run run) {
  if (table.bits == 4) return run.template operator()<4, NQ_FLOAT16, true>();
  if (table.bits == 8) {
    return grouped(table) ? run.template operator()<8, NQ_FLOAT16, true>()
                          : run.template operator()<8, NQ_FLOAT16, false>();
  }
  return table.type == NQ_BFLOAT16 ? run.template operator()<16, NQ_BFLOAT16, false>()
                                   : run.template operator()<16, NQ_FLOAT16, false>();
}

// What a launch may use of the device.
struct Room {
  int shared;  // bytes of shared memory of a block
  int multiprocessors;
  bool overlap;
  cudaStream_t stream;
};

nq_status find_room(cudaStream_t stream, Room* room) {
  nq_cuda_device device;
  nq_status status = describe(&device);
  if (status != NQ_OK) return status;
  static PerDevice<int> most;
  status = most.get(&room->shared, [](int index, int* bytes) {
    return check(cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
                 "attribute");
  });
  room->multiprocessors = device.multiprocessors;
  room->overlap = may_overlap(device);
  room->stream = stream;
  return status;
}

// Blocks of 32 columns, padded to a multiple.
int blocks_of(const nq_cuda_table& table, int64_t multiple) {
  return static_cast<int>(round_up(ceil_div(table.columns, kBlockColumns), multiple));
}

// See TableReader.
bool whole(const nq_cuda_table& table) {
  return row_bytes(table) % 16 == 0 && (table.bits == 16 || table.scale_type != NQ_FLOAT32);
}

int few_x_bytes(int blocks, int rows) {
  return static_cast<int>(round_up(static_cast<int64_t>(blocks) * rows * kRowBytes, 128));
}

struct RunFew {
  const Few& p;
  const Room& room;
  Launch how;

  template <int BITS, nq_type OPERAND, bool GROUPED>
  nq_status operator()() const {
    if (!whole(p.output.table)) return run<few<BITS, OPERAND, GROUPED, 1, false>>();
    return p.rows <= 8 ? run<few<BITS, OPERAND, GROUPED, 1, true>>()
                       : run<few<BITS, OPERAND, GROUPED, 2, true>>();
  }

  template <auto KERNEL>
  nq_status run() const {
    return launch_with_shared<KERNEL>(how, room.shared, room.stream, p);
  }
};

// Warps of a block: not more than `most` or less than three quarters of it, so that as few as
// possible have nothing to do in the last round.
int choose_warps(int most, int64_t tiles, const Room& room) {
  int best = most;
  double least = 2.0;
  for (int warps = most; warps >= 1 && warps * 4 >= most * 3; --warps) {
    const double rounds = static_cast<double>(tiles) / (warps * room.multiprocessors);
    const double waste = std::ceil(rounds) / rounds;
    if (waste < least) best = warps, least = waste;
  }
  return best;
}

// All rows in pieces of up to 16, or of as many as fit the shared memory.
nq_status run_few(const nq_cuda_output& o, const Room& room) {
  const int64_t tiles = ceil_div(o.table.rows, kStretchRows);
  for (int64_t first = 0; first < o.rows;) {
    Few p = {o, first, whole(o.table) ? NQ_CUDA_HEAD_ROWS : 8,
             blocks_of(o.table, 32 / o.table.bits), 0};
    if (o.rows - first < p.rows) p.rows = static_cast<int>(o.rows - first);
    const auto warps_for = [&](int rows) {
      return (room.shared - few_x_bytes(p.blocks, rows) - kFewFactorBytes) / kFewRingBytes;
    };
    while (p.rows > 1 && warps_for(p.rows) < kFewestWarps) --p.rows;
    if (warps_for(p.rows) < 1) return NQ_TOO_LARGE;
    const int warps = choose_warps(min(warps_for(p.rows), kFewMostWarps), tiles, room);
    p.x_bytes = few_x_bytes(p.blocks, p.rows);
    const int64_t blocks = min(ceil_div(tiles, warps), static_cast<int64_t>(room.multiprocessors));
    const size_t shared = static_cast<size_t>(p.x_bytes + kFewFactorBytes + warps * kFewRingBytes);
    const Launch how = {"output head", dim3(static_cast<unsigned>(blocks)), warps * 32, shared,
                        room.overlap};
    const nq_status status = by_table(o.table, RunFew{p, room, how});
    if (status != NQ_OK) return status;
    first += p.rows;
  }
  return NQ_OK;
}

// How many rows are worked on together.
struct Plan {
  int tiles;  // of 8 rows, of a warp
  int64_t group_rows, groups, blocks;

  explicit Plan(const nq_cuda_output& o) {
    // Sums of groups take registers from the other tiles.
    tiles = o.rows <= kManyRows<4> || grouped(o.table) ? 4 : 8;
    group_rows = 16 * tiles;
    groups = ceil_div(o.rows, group_rows);
    blocks = blocks_of(o.table, kStepBlocks);
  }
  int64_t x_bytes() const { return groups * blocks * group_rows * kRowBytes; }
  int64_t factor_bytes() const { return groups * group_rows * 4; }
};

struct RunMany {
  const Many& p;
  const Plan& plan;
  const Room& room;

  template <int BITS, nq_type OPERAND, bool GROUPED>
  nq_status operator()() const {
    const nq_cuda_output& o = p.output;
    const Launch deal = {"output head's rows", dim3(static_cast<unsigned>(o.rows)), 32, 0,
                         room.overlap};
    const nq_status status =
        launch(deal, room.stream, deal_many<BITS>, p, OPERAND, static_cast<int>(plan.group_rows));
    if (status != NQ_OK) return status;
    if constexpr (!GROUPED) {
      if (plan.tiles == 8) return product<BITS, OPERAND, GROUPED, 8>();
    }
    return product<BITS, OPERAND, GROUPED, 4>();
  }

  template <int BITS, nq_type OPERAND, bool GROUPED, int TILES>
  nq_status product() const {
    const int64_t blocks = ceil_div(p.output.table.rows, kManyTableRows) * plan.groups;
    if (blocks > 0x7fffffff) return NQ_TOO_LARGE;
    const Launch how = {"output head", dim3(static_cast<unsigned>(blocks)), kManyThreads,
                        kManyShared<TILES>, room.overlap};
    return launch_with_shared<many<BITS, OPERAND, GROUPED, TILES>>(how, kManyShared<TILES>,
                                                                   room.stream, p);
  }
};

nq_status run_many(const nq_cuda_output& o, const Room& room) {
  const Plan plan(o);
  char* workspace = static_cast<char*>(o.workspace);
  const Many p = {o, static_cast<int>(plan.blocks), static_cast<int>(plan.groups),
                  reinterpret_cast<uint4*>(workspace),
                  reinterpret_cast<float*>(workspace + plan.x_bytes())};
  return by_table(o.table, RunMany{p, plan, room});
}

// Everything that does not depend on pointers.
nq_status check_output(const nq_cuda_output& o) {
  const nq_status status = check_shape(o.table);
  if (status != NQ_OK) return status;
  if (!is_half(o.x_type) || o.rows < 1 || !(o.soft_cap >= 0.0f)) return NQ_BAD_ARGUMENT;
  if (o.table.bits == 16 && o.table.type != o.x_type) return NQ_BAD_ARGUMENT;
  return o.rows > (1 << 24) ? NQ_TOO_LARGE : NQ_OK;
}

nq_status check_pointers(const nq_cuda_output& o) {
  if (!pointers_fit(o.table) || !usable(o.x) || !usable(o.logits)) return NQ_BAD_ARGUMENT;
  if (!norm_fits(o.norm, o.norm_eps, o.norm_weight, o.norm_bias)) return NQ_BAD_ARGUMENT;
  const bool fits = stride_fits(o.x_stride, o.table.columns, o.ends != nullptr ? 2 : o.rows) &&
                    o.logits_stride >= o.table.rows;
  return fits ? NQ_OK : NQ_BAD_ARGUMENT;
}

}  // namespace

}  // namespace tables
}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" size_t nq_cuda_head_workspace_bytes(const nq_cuda_output* output) {
  if (output == nullptr || tables::check_output(*output) != NQ_OK) return 0;
  if (output->rows <= NQ_CUDA_HEAD_ROWS) return 256;
  const tables::Plan plan(*output);
  return static_cast<size_t>(plan.x_bytes() + plan.factor_bytes());
}

extern "C" nq_status nq_cuda_head(const nq_cuda_output* output, void* stream) {
  if (output == nullptr) return NQ_BAD_ARGUMENT;
  nq_status status = tables::check_output(*output);
  if (status == NQ_OK) status = tables::check_pointers(*output);
  if (status != NQ_OK) return status;
  if (output->workspace == nullptr || reinterpret_cast<uintptr_t>(output->workspace) % 256 != 0 ||
      output->workspace_bytes < nq_cuda_head_workspace_bytes(output)) {
    return NQ_WORKSPACE;
  }
  tables::Room room;
  status = tables::find_room(static_cast<cudaStream_t>(stream), &room);
  if (status != NQ_OK) return status;
  const bool together = output->rows > NQ_CUDA_HEAD_ROWS && tables::whole(output->table) &&
                        room.shared >= tables::kManyShared<8>;
  return together ? tables::run_many(*output, room) : tables::run_few(*output, room);
}
