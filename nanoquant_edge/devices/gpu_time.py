# SPDX-License-Identifier: Apache-2.0
"""Time of the CUDA kernels on a GPU that is known by its data sheet: bandwidth, issue slots, tensor cores, latencies.

For each half of a compressed layer: hand-off + chain + max(bytes / bandwidth, instructions / issue rate, products /
tensor rate). Bytes are the packed words in tiles of 16 x 256; instructions a tile come from the machine code; the chain
is the straight path of one warp. Its constants were read off an H200 (docs/notes/gpu.md, "CUDA kernels: one row").
`STREAM`, `LINEARS` and `BLOCK_US` were fitted to whole decode steps measured there (docs/figures/gpu_decode.json, batch
1, Qwen3-0.6B, Llama-3.2-1B and Qwen3-8B shapes); benchmarks/forecast.py prints what they miss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BLOCK_US", "LINEARS", "STREAM", "Code", "Gpu", "half_us", "int8_rate", "layer_us"]

#: cycles an instruction of the straight path takes (H200, clock readings in the kernel)
PATH_CYCLES = 6.0
#: cycles from asking for activations to having them, with weights on their way (same)
LOAD_CYCLES = 900.0
#: microseconds from one kernel's end to the next one's first instruction on an H200: overlapped launches, plain ones
HANDOFF_US = {True: 0.65, False: 1.2}
#: share of the issue slots that a loop fills (assumed)
ISSUE_SHARE = 0.7
#: cycles of a multiprocessor quarter for one product: m16n8k256 bits and m16n8k32 bytes on an H200; assumed elsewhere
PRODUCT_CYCLES = 6.0

#: share of the bandwidth that a step of packed words reaches: as fitted on the H200, and assumed below 1.2 TB/s, where
#: fewer bytes in flight fill the memory's latency
STREAM = {True: 0.5, False: 0.7}
#: time of a step's compressed layers over the sum of the halves, and microseconds of a block besides them (attention,
#: norms): fitted on the H200
LINEARS, BLOCK_US = 1.0, 5.0

#: int8 multiply-adds of a multiprocessor in a cycle, dense, by compute capability: white papers of Turing, Ampere
#: (GA100, GA102), Ada, Hopper and Blackwell, Orin's and Thor's data sheets (TOPS over multiprocessors and clock)
_INT8 = {"7.5": 1024, "8.0": 2048, "8.6": 1024, "8.7": 2048, "8.9": 1024, "9.0": 4096, "10.0": 4096, "11.0": 4096}
_INT8 |= {"12.0": 1024, "12.1": 1024}


@dataclass(frozen=True)
class Gpu:
    """A GPU: compute capability as a number (87), multiprocessors, GHz under load, GB/s."""

    architecture: int
    multiprocessors: int
    ghz: float
    gbs: float

    @property
    def bits(self) -> bool:
        """Whether its tensor cores multiply single bits natively (compute capability 8.0 to 9.0)."""
        return 80 <= self.architecture <= 90

    @property
    def stream(self) -> float:
        """Share of the bandwidth that is counted on."""
        return STREAM[self.gbs > 1200]


@dataclass(frozen=True)
class Code:
    """Instructions and products for one tile of 512 bytes, by column tiles of a warp; length of the straight path."""

    per_tile: dict[int, tuple[float, float]]
    path: int

    @classmethod
    def typical(cls, bits: bool) -> Code:
        """What `python -m benchmarks.gpu_forecast` reads in sm_86, 87, 89 and 90 code, which differ by 4 % at most.

        For int8 tensor cores its instructions are taken 1.4 times: on the H200 the bit path was that much faster
        (docs/notes/gpu.md); 16 products of m16n8k32 make two planes of a tile.
        """
        return cls({1: (65.0, 2.0), 2: (34.0, 2.0)}, 369) if bits else cls({1: (91.0, 16.0), 2: (48.0, 16.0)}, 369)


def half_us(gpu: Gpu, code: Code, *, rows: int, columns: int, share: float | None = None) -> float:
    """One half of a layer for one token: a sign matrix of rows x columns.

    Args:
        gpu: the GPU that computes.
        code: what the kernels' machine code holds.
        rows, columns: size of the matrix.
        share: share of the memory bandwidth that is reached; None takes `Gpu.stream`.
    """
    column_tiles = math.ceil(columns / 256)
    tiles = math.ceil(rows / 16) * column_tiles
    instructions, products = code.per_tile[1 if column_tiles <= 16 else 2]
    busiest = math.ceil(math.ceil(rows / 16) / gpu.multiprocessors) * column_tiles
    memory = tiles * 512 / (gpu.gbs * (share or gpu.stream)) / 1e3
    issue = busiest * instructions / (4 * ISSUE_SHARE) / gpu.ghz / 1e3
    tensor = busiest * products * PRODUCT_CYCLES / 4 / gpu.ghz / 1e3
    chain = (LOAD_CYCLES + code.path * PATH_CYCLES) / gpu.ghz / 1e3
    return HANDOFF_US[gpu.architecture >= 90] + chain + max(memory, issue, tensor)


def layer_us(gpu: Gpu, code: Code, *, out: int, into: int, rank: int, share: float | None = None) -> float:
    """Both halves of a layer for one token."""
    first = half_us(gpu, code, rows=rank, columns=into, share=share)
    return first + half_us(gpu, code, rows=out, columns=rank, share=share)


def int8_rate(gpu: Gpu) -> float:
    """Dense int8 multiply-adds a second, at the published rate of the tensor cores."""
    capability = f"{gpu.architecture // 10}.{gpu.architecture % 10}"
    return gpu.multiprocessors * gpu.ghz * 1e9 * _INT8.get(capability, 1024)
