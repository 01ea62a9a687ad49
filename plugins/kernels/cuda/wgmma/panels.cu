// SPDX-License-Identifier: Apache-2.0
//
// From rows of x to activation panels (panels.h): input function, scale_in, range, rounding and
// order, in one pass over memory and one over the caches. One block works on one row.

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/values.cuh"
#include "cuda/wgmma/panels.h"

namespace nq_cuda {

namespace {

constexpr int kMostThreads = 512;   // of a block of prepare; 8 columns each at a time
constexpr int kRoundThreads = 128;  // of a block of round_rows

// Smallest E with value < 2^E.
__device__ int exponent_above(float value) {
  return static_cast<int>(__float_as_uint(value) >> 23 & 255u) - 126;
}

// 2^power, kept within what float multiplies without surprise.
__device__ float power_of_two(int power) {
  return __int_as_float((min(max(power, -100), 100) + 127) << 23);
}

// Of values that are not negative.
__device__ float warp_most(float value) {
  return __uint_as_float(warp_max(__float_as_uint(value)));
}

// The rare case of load_eight, out of line: rows that end or begin in the middle of 16 bytes.
__device__ __noinline__ void load_up_to_eight(const void* from, int64_t begin, int column,
                                              int count, nq_type type, float* values) {
  for (int i = 0; i < 8; ++i) {
    values[i] = column + i < count ? load_value(from, begin + column + i, type) : 0.0f;
  }
}

// Values `column` to `column + 7` of the row that begins at element `begin`; those from `count` on
// are 0. `vector` says that the row begins at a multiple of 16 bytes; `column` is a multiple of 8.
__device__ __forceinline__ void load_eight(const void* from, int64_t begin, int column, int count,
                                           nq_type type, bool vector, float (&values)[8]) {
  if (!vector || column + 8 > count) {
    float found[8];
    load_up_to_eight(from, begin, column, count, type, found);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = found[i];
  } else if (type == NQ_FLOAT32) {
    const uint4* source =
        reinterpret_cast<const uint4*>(static_cast<const float*>(from) + begin + column);
    unpack_eight(source[0], source[1], values);
  } else {
    const uint4* source =
        reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(from) + begin + column);
    unpack_eight(*source, type, values);
  }
}

// f(x) at columns `column` to `column + 7`, without the norm's factor; `squares` grows by x^2.
__device__ __forceinline__ void load_input(const PanelInput& in, int64_t begin, int column,
                                           float (&f)[8], float* squares) {
  load_eight(in.x, begin, column, in.columns, in.x_type, true, f);
  if (in.input == NQ_INPUT_RMS_NORM) {
    float weight[8];
    load_eight(in.norm_weight, 0, column, in.columns, NQ_FLOAT32, true, weight);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      *squares += f[i] * f[i];
      f[i] *= weight[i];
    }
  } else if (in.input != NQ_INPUT_PLAIN) {
    float other[8];
    load_eight(in.x, begin + in.columns, column, in.columns, in.x_type, in.columns % 8 == 0, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      f[i] = activation(f[i], in.input == NQ_INPUT_GELU) * other[i];
    }
  }
}

// The same times scale_in: what the panel holds but for the row's factor.
__device__ __forceinline__ void load_scaled(const PanelInput& in, const PanelPart& part,
                                            int64_t begin, int column, float (&v)[8],
                                            float* squares) {
  float scale[8];
  load_input(in, begin, column, v, squares);
  load_eight(part.scale_in, 0, column, in.columns, in.scale_type, true, scale);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] *= scale[i];
}

__device__ __forceinline__ uint32_t round_to_byte(float value) {
  return static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(value, -127.0f), 127.0f))) & 255u;
}

__device__ __forceinline__ void store_chunk(void* panel, int64_t block, int groups, int row,
                                            int chunk, uint4 value) {
  char* line = static_cast<char*>(panel) + (block * groups + row / 8) * 1024 + row % 8 * 128;
  *reinterpret_cast<uint4*>(line + ((chunk ^ row % 8) << 4)) = value;
}

// Writes the tile of 8 blockDim.x columns that lies in `tile` in order, as the panel has it.
__device__ __forceinline__ void write_halves(const PanelInput& in, const PanelPart& part, int row,
                                             int first_step, const uint16_t* tile) {
  const int step = threadIdx.x / 32, chunk = threadIdx.x % 32;
  if (first_step + step >= (in.columns + 255) / 256) return;
  const uint16_t* from = tile + step * 256 + chunk % 2 * 128 + chunk / 2;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = from[32 * i] | static_cast<uint32_t>(from[32 * i + 16]) << 16;
  }
  store_chunk(part.panel, (first_step + step) * 4 + chunk / 8, in.groups, row, chunk % 8,
              make_uint4(words[0], words[1], words[2], words[3]));
}

__device__ __forceinline__ void write_bytes(const PanelInput& in, const PanelPart& part, int row,
                                            int first_step, const uint8_t* tile) {
  const int step = threadIdx.x / 16, chunk = threadIdx.x % 16;
  if (threadIdx.x >= blockDim.x / 2 || first_step + step >= (in.columns + 255) / 256) return;
  const uint8_t* from = tile + step * 256 + chunk % 2 * 128 + chunk / 2;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = from[32 * i] | from[32 * i + 8] << 8 | from[32 * i + 16] << 16 |
               static_cast<uint32_t>(from[32 * i + 24]) << 24;
  }
  store_chunk(part.panel, (first_step + step) * 2 + chunk / 8, in.groups, row, chunk % 8,
              make_uint4(words[0], words[1], words[2], words[3]));
}

// The last block: how far scale_mid must be brought down so that it never exceeds 1.
__device__ void write_mid_range(const PanelInput& in, float* scratch) {
  for (int i = 0; i < in.count; ++i) {
    const PanelPart& part = in.parts[i];
    float most = part.scale_mid == nullptr ? 0.75f : 0.0f;
    if (part.scale_mid != nullptr) {
      for (int c = threadIdx.x; c < part.rank; c += blockDim.x) {
        most = fmaxf(most, fabsf(load_value(part.scale_mid, c, in.scale_type)));
      }
    }
    most = warp_most(most);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < blockDim.x / 32; ++w) most = fmaxf(most, scratch[w]);
    const int above = exponent_above(most);
    if (threadIdx.x == 0) {
      part.mid_range[0] = power_of_two(-above);
      part.mid_range[1] = power_of_two(above);
    }
  }
}

// What a row's values are multiplied by, and the factors that later stages need.
template <bool BYTES>
__device__ float row_factor(const PanelInput& in, const PanelPart& part, int row, float largest,
                            float total) {
  float factor, back;
  if (BYTES) {
    factor = largest > 0.0f ? 127.0f / largest : 0.0f;
    back = largest * (1.0f / 127.0f);
    total += back * 0.5f * in.columns;  // what rounding can add
  } else {
    const int up = 14 - exponent_above(largest);
    factor = power_of_two(up);
    back = power_of_two(-up);
  }
  const int room = 15 - exponent_above(total);
  if (blockIdx.y == 0 && threadIdx.x == 0) {
    part.mid_factor[row] = back * power_of_two(room);
    part.out_factor[row] = power_of_two(-room);
  }
  return factor;
}

template <bool BYTES>
__global__ void __launch_bounds__(kMostThreads, 3) prepare(const __grid_constant__ PanelInput in) {
  __shared__ float scratch[2][3][kMostThreads / 32];
  __shared__ alignas(16) char tile[kMostThreads * 16];
  release_dependents();
  wait_for_predecessors();
  const int row = blockIdx.x, width = blockDim.x * 8, warps = blockDim.x / 32;
  if (row == in.rows) {
    if (blockIdx.y == 0) write_mid_range(in, scratch[0][0]);
    return;
  }
  const int64_t begin = row * in.stride;
  const bool once = in.columns <= width;  // then nothing is read twice
#pragma unroll 1
  for (int i = 0; i < in.count; ++i) {
    const PanelPart& part = in.parts[i];
    float most = 0.0f, sum = 0.0f, squares = 0.0f;
    float v[8] = {};
#pragma unroll 1
    for (int column = threadIdx.x * 8; column < in.columns; column += width) {
      load_scaled(in, part, begin, column, v, &squares);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        most = fmaxf(most, fabsf(v[j]));
        sum += fabsf(v[j]);
      }
    }
    most = warp_most(most);
    sum = warp_sum(sum);
    if (in.input == NQ_INPUT_RMS_NORM) squares = warp_sum(squares);
    float (*shared)[kMostThreads / 32] = scratch[i % 2];
    if (threadIdx.x % 32 == 0) {
      shared[0][threadIdx.x / 32] = most;
      shared[1][threadIdx.x / 32] = sum;
      shared[2][threadIdx.x / 32] = squares;
    }
    __syncthreads();
    most = sum = squares = 0.0f;
    for (int w = 0; w < warps; ++w) {
      most = fmaxf(most, shared[0][w]);
      sum += shared[1][w];
      squares += shared[2][w];
    }
    const float norm =
        in.input == NQ_INPUT_RMS_NORM ? rsqrtf(squares / in.columns + in.norm_eps) : 1.0f;
    const float factor = row_factor<BYTES>(in, part, row, most * norm, sum * norm) * norm;
#pragma unroll 1
    for (int first = blockIdx.y * width; first < in.columns; first += gridDim.y * width) {
      if (!once) load_scaled(in, part, begin, first + threadIdx.x * 8, v, &squares);
      if (BYTES) {
        uint32_t words[2] = {};
#pragma unroll
        for (int j = 0; j < 8; ++j) words[j / 4] |= round_to_byte(v[j] * factor) << (j % 4 * 8);
        reinterpret_cast<uint2*>(tile)[threadIdx.x] = make_uint2(words[0], words[1]);
      } else {
        reinterpret_cast<uint4*>(tile)[threadIdx.x] =
            make_uint4(pack_pair(v[0] * factor, v[1] * factor, NQ_FLOAT16),
                       pack_pair(v[2] * factor, v[3] * factor, NQ_FLOAT16),
                       pack_pair(v[4] * factor, v[5] * factor, NQ_FLOAT16),
                       pack_pair(v[6] * factor, v[7] * factor, NQ_FLOAT16));
      }
      __syncthreads();
      if (BYTES) {
        write_bytes(in, part, row, first / 256, reinterpret_cast<const uint8_t*>(tile));
      } else {
        write_halves(in, part, row, first / 256, reinterpret_cast<const uint16_t*>(tile));
      }
      __syncthreads();
    }
  }
}

__device__ __forceinline__ uint4 load_chunk(const void* panel, int64_t block, int groups, int row,
                                            int chunk) {
  const char* line =
      static_cast<const char*>(panel) + (block * groups + row / 8) * 1024 + row % 8 * 128;
  return *reinterpret_cast<const uint4*>(line + ((chunk ^ row % 8) << 4));
}

__global__ void __launch_bounds__(kRoundThreads)
    round_rows(const __grid_constant__ PanelRoundings all) {
  __shared__ uint32_t scratch[kRoundThreads / 32];
  release_dependents();
  wait_for_predecessors();
  const PanelRounding& part = all.parts[blockIdx.y];
  const int row = blockIdx.x, chunks = part.steps * 32;
  uint32_t most = 0;  // absolute values of halves compare like integers
  for (int i = threadIdx.x; i < chunks; i += kRoundThreads) {
    const uint4 value = load_chunk(part.halves, i / 8, all.groups, row, i % 8);
    const uint32_t words[] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      most = max(most, max(words[j] & 0x7fffu, words[j] >> 16 & 0x7fffu));
    }
  }
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = most;
  __syncthreads();
  for (int w = 0; w < kRoundThreads / 32; ++w) most = max(most, scratch[w]);
  const float largest = __half2float(__ushort_as_half(static_cast<unsigned short>(most)));
  const float factor = largest > 0.0f ? 127.0f / largest : 0.0f;
  if (threadIdx.x == 0) part.factor[row] *= largest * (1.0f / 127.0f);
  // Chunk (s, a) of bytes alternates the halves of chunks (s, a) and (s + 8, a).
  for (int i = threadIdx.x; i < part.steps * 16; i += kRoundThreads) {
    const int step = i / 16, chunk = i % 16;
    const uint4 low = load_chunk(part.halves, step * 4 + chunk / 8, all.groups, row, chunk % 8);
    const uint4 high =
        load_chunk(part.halves, step * 4 + 2 + chunk / 8, all.groups, row, chunk % 8);
    const uint32_t lows[] = {low.x, low.y, low.z, low.w};
    const uint32_t highs[] = {high.x, high.y, high.z, high.w};
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float a, b, c, d;
      unpack_pair(lows[j], NQ_FLOAT16, &a, &b);
      unpack_pair(highs[j], NQ_FLOAT16, &c, &d);
      words[j] = round_to_byte(a * factor) | round_to_byte(c * factor) << 8 |
                 round_to_byte(b * factor) << 16 | round_to_byte(d * factor) << 24;
    }
    store_chunk(part.bytes, step * 2 + chunk / 8, all.groups, row, chunk % 8,
                make_uint4(words[0], words[1], words[2], words[3]));
  }
}

}  // namespace

nq_status prepare_panels(const PanelInput& input, bool bytes, cudaStream_t stream) {
  // Rows are cut into even tiles; those of few rows go to blocks of their own, so that more of the
  // GPU takes part.
  const int64_t eights = panel_steps(input.columns) * 32;
  const int64_t tiles = ceil_div(eights, kMostThreads);
  const int threads = static_cast<int>(round_up(ceil_div(eights, tiles), 32));
  const int64_t pieces = input.rows > 128 ? 1 : min(tiles, int64_t{64});
  const dim3 grid(input.rows + 1, static_cast<unsigned>(pieces));
  const Launch how = {"prepare", grid, threads, 0, true};
  return launch(how, stream, bytes ? prepare<true> : prepare<false>, input);
}

nq_status round_panels(const PanelRoundings& roundings, cudaStream_t stream) {
  const dim3 grid(roundings.rows, roundings.count);
  return launch({"round_panels", grid, kRoundThreads, 0, true}, stream, round_rows, roundings);
}

}  // namespace nq_cuda
