# SPDX-License-Identifier: Apache-2.0
"""Time of the CPU kernels and of ONNX Runtime around them, on a processor known by its cores, clock and bandwidth.

Rates of the kernels were measured on one core of a Xeon server at 2.7 GHz (`nanoquant_edge.bench.machine_rates`, best
of several runs; NQ_CPU_ISA chose the kernels): 100 G sign additions a second with AVX-512, 58 with AVX2, 15.6 scalar.
The kernels have become two to three times as fast since (docs/notes/cpu.md); constants follow when a quiet machine
gives them. NEON, of half AVX2's width, was not measured: half of its rate is assumed. The rest was fitted to
SmolLM2-135M at 1.0 and 2.0 bits with 8- and 4-bit tables on two such cores, which others used too
(docs/figures/cpu_peers.json); benchmarks/forecast.py prints what they miss.
"""

from __future__ import annotations

from ..models.rates import rank_for_rate
from .model import ModelFacts, linear_groups
from .profile import Cpu

__all__ = ["SIGNS_PER_CYCLE", "cpu_prefill_tps", "cpu_step"]

#: sign additions of one row that a core does in a cycle, from its cache, by kernel
SIGNS_PER_CYCLE = {"avx512": 37.0, "avx2": 21.0, "neon": 10.0, "scalar": 5.8}
#: share of that rate inside of a decode step, where weights come from memory and threads meet after each layer
_SHARE = 0.17
#: additions in a cycle with the many rows of a prompt: fitted for AVX-512 (256 tokens), the others in proportion
_ROWS_PER_CYCLE = {"avx512": 18.5, "avx2": 10.5, "neon": 5.0, "scalar": 2.9}
#: share of the memory bandwidth that all cores reach, and GB/s that one core reaches at most
_STREAM, _CORE_GBS = 0.6, 6.0
#: microseconds of a block besides the compressed layers at 3 GHz: attention, norms, ONNX Runtime's time a node
_BLOCK_US = 20.0


def cpu_step(cpu: Cpu, model: ModelFacts, *, gbs: float, context: int) -> dict[str, float]:
    """Microseconds of a decode step, part by part.

    Args:
        cpu: the processor; all its cores compute.
        model: at the rate in question.
        gbs: GB/s of the memory.
        context: tokens in the cache, which is float32.
    """
    config = model.config
    layers = [layer for group in linear_groups(config) for layer in group]
    signs = config.num_layers * sum((m + n) * rank_for_rate(m, n, model.bpw) for m, n in layers)
    speed = min(gbs * _STREAM, _CORE_GBS * cpu.cores) * 1e3
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4 * context
    # Tables of 16 bits are float32 in memory: ONNX Runtime has no 16-bit products on processors.
    head = model.head * (2 if model.table in ("float16", "bfloat16") else 1)
    return {
        "compressed layers": max(
            signs / (SIGNS_PER_CYCLE[cpu.isa] * _SHARE * cpu.cores * cpu.ghz * 1e3), model.body / speed
        ),
        "rest of the blocks": config.num_layers * _BLOCK_US * 3.0 / cpu.ghz,
        "head": head / speed,
        "cache": cache / speed,
    }


def cpu_prefill_tps(cpu: Cpu, model: ModelFacts, tokens: int) -> float:
    """Tokens a second of a prompt: signs over the kernels' rate with many rows, and one step of everything else."""
    layers = [layer for group in linear_groups(model.config) for layer in group]
    signs = model.config.num_layers * sum((m + n) * rank_for_rate(m, n, model.bpw) for m, n in layers)
    seconds = tokens * signs / (_ROWS_PER_CYCLE[cpu.isa] * cpu.cores * cpu.ghz * 1e9)
    return tokens / (seconds + model.config.num_layers * _BLOCK_US * 1e-6)
