# SPDX-License-Identifier: Apache-2.0
"""Output heads in 16, 8 and 4 bits and the choice of tokens on a GPU: time, bandwidth, and cuBLAS beside them.

    python -m benchmarks.gpu_tables [--rows 1,16] [--shapes 151936x1024] [--append]

Copies of a table that together hold at least 150 MB take turns, so that they come from memory, not from a cache; the
calls form one CUDA graph, whose replays are timed. Bandwidth counts the bytes of codes and scales, once a call. cuBLAS
multiplies a dense bfloat16 table of the same size in the same way, into float32.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.figures import append_rows, figures_option, listed
from benchmarks.gpu_timing import REPETITIONS, copy_gbs, graph_us
from nanoquant_edge.runtimes.cuda import binding
from nanoquant_edge.runtimes.cuda.table_types import CChoice, COutput, CSampling, CTable

ROTATED_BYTES = 150e6
SHAPES = "151936x1024,128256x2048,49152x576,262144x640"
#: how tokens are chosen: temperature, top_k, top_p, min_p, repetition_penalty
CHOICES = {
    "greedy": None,
    "temperature": (0.8, 0, 1.0, 0.0, 1.0),
    "min-p": (0.8, 0, 1.0, 0.05, 1.0),
    "top-p": (0.8, 0, 0.95, 0.0, 1.0),
    "top-k, top-p": (0.8, 50, 0.95, 0.0, 1.0),
    "all": (0.8, 50, 0.95, 0.05, 1.1),
}


@dataclass
class Head:
    """Random tables of one format that take turns."""

    rows: int
    columns: int
    bits: int

    def __post_init__(self) -> None:
        width = self.columns * self.bits // 8
        groups = {16: 0, 8: 1, 4: -(-self.columns // 32)}[self.bits]
        self.bytes = self.rows * (width + 2 * groups)
        self.count = max(2, math.ceil(ROTATED_BYTES / self.bytes))
        generator = torch.Generator("cuda").manual_seed(0)
        self.held: list[torch.Tensor] = []
        self.tables = []
        for _ in range(self.count):
            if self.bits == 16:
                codes = torch.randn(self.rows, self.columns, device="cuda", generator=generator).bfloat16()
            else:
                codes = torch.randint(
                    -127, 128, (self.rows, width), device="cuda", dtype=torch.int8, generator=generator
                )
            scales = torch.rand(self.rows, max(1, groups), device="cuda", generator=generator).half()
            self.held += [codes, scales]
            table = CTable(rows=self.rows, columns=self.columns, bits=self.bits)
            table.group = 32 if self.bits == 4 else self.columns
            table.type, table.scale_type = binding.CType.BFLOAT16, binding.CType.FLOAT16
            table.codes, table.scales = codes.data_ptr(), scales.data_ptr()
            self.tables.append(table)

    def us(self, count: int) -> tuple[float, float, float]:
        """Microseconds for `count` rows of x."""
        x = torch.randn(count, self.columns, device="cuda").bfloat16()
        logits = torch.empty(count, self.rows, device="cuda")
        calls = []
        for table in self.tables:
            call = COutput(table=table, x_type=binding.CType.BFLOAT16, rows=count)
            call.x, call.x_stride = x.data_ptr(), self.columns
            call.logits, call.logits_stride = logits.data_ptr(), self.rows
            call.workspace_bytes = binding.library().nq_cuda_head_workspace_bytes(ctypes.byref(call))
            self.held.append(torch.empty(call.workspace_bytes, dtype=torch.uint8, device="cuda"))
            call.workspace = self.held[-1].data_ptr()
            calls.append(call)

        def run(call: COutput) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            binding.check(binding.library().nq_cuda_head(ctypes.byref(call), stream), "output head")

        return graph_us([lambda call=call: run(call) for call in calls])  # type: ignore[misc]


def cublas_us(rows: int, columns: int, count: int) -> float:
    """The dense bfloat16 product."""
    copies = max(2, math.ceil(ROTATED_BYTES / (2 * rows * columns)))
    x = torch.randn(count, columns, device="cuda").bfloat16()
    weights = [torch.randn(rows, columns, device="cuda").bfloat16() for _ in range(copies)]
    return graph_us([lambda w=w: torch.mm(x, w.T, out_dtype=torch.float32) for w in weights])[0]  # type: ignore[misc]


def choice_us(vocabulary: int, sequences: int, options: tuple[float, ...] | None) -> tuple[float, float, float]:
    """Microseconds of one choice for each of the sequences, a thousand tokens into their texts."""
    capacity = 1 << 17
    logits = torch.randn(sequences, vocabulary, device="cuda") * 3
    tokens = torch.zeros(sequences, dtype=torch.int64, device="cuda")
    history = torch.randint(0, vocabulary, (sequences, capacity), device="cuda")
    positions = torch.full((sequences,), 1000, dtype=torch.int64, device="cuda")
    call = CChoice(sequences=sequences, vocabulary=vocabulary, logits_stride=vocabulary, capacity=capacity)
    call.logits, call.tokens, call.history = logits.data_ptr(), tokens.data_ptr(), history.data_ptr()
    call.positions = positions.data_ptr()
    call.workspace_bytes = binding.library().nq_cuda_choice_workspace_bytes(sequences, vocabulary)
    workspace = torch.zeros(call.workspace_bytes, dtype=torch.uint8, device="cuda")
    call.workspace = workspace.data_ptr()
    if options is not None:
        given = (CSampling * sequences)(*[CSampling(*options[:1], int(options[1]), *options[2:], 0, 7)] * sequences)
        sampling = torch.frombuffer(bytearray(bytes(given)), dtype=torch.uint8).cuda()
        call.sampling = sampling.data_ptr()
    function = binding.library().nq_cuda_choose if options is None else binding.library().nq_cuda_sample

    def run() -> None:
        binding.check(function(ctypes.byref(call), torch.cuda.current_stream().cuda_stream), "choice")

    return graph_us([run] * 10)


def _sizes(_context: Any, _option: Any, text: str) -> list[tuple[int, int]]:
    return [(int(rows), int(columns)) for rows, columns in (part.split("x") for part in text.split(",") if part)]


@click.command()
@click.option("--rows", default="1,4,16,128", callback=listed(int), show_default=True)
@click.option("--shapes", default=SHAPES, callback=_sizes, show_default=True)
@click.option("--sequences", default="1,16", callback=listed(int), show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to the figure file.")
@figures_option
def main(
    rows: tuple[int, ...],
    shapes: list[tuple[int, int]],
    sequences: tuple[int, ...],
    append: bool,
    folder: Path,
) -> None:
    """Print one line a table, format and row count, then one a vocabulary and way to choose."""
    copy = copy_gbs()
    click.echo(f"copy {copy:.0f} GB/s")
    made: list[dict[str, Any]] = []
    for vocabulary, columns in shapes:
        dense = {count: cublas_us(vocabulary, columns, count) for count in rows}
        for bits in (16, 8, 4):
            head = Head(vocabulary, columns, bits)
            for count in rows:
                us, low, high = head.us(count)
                gbs = head.bytes / us / 1e3
                row = {"vocabulary": vocabulary, "columns": columns, "bits": bits, "rows": count, "us": round(us, 2)}
                row |= {"us_low": round(low, 2), "us_high": round(high, 2), "gbs": round(gbs), "copy_gbs": round(copy)}
                row |= {"of_copy": round(gbs / copy, 3), "bf16_us": round(dense[count], 2)}
                row["over_bf16"] = round(dense[count] / us, 3)
                made.append(row)
                click.echo("  ".join(f"{key}={value}" for key, value in row.items() if key != "copy_gbs"))
            del head
            torch.cuda.empty_cache()
    for vocabulary in sorted({vocabulary for vocabulary, _ in shapes}):
        for count in sequences:
            for name, options in CHOICES.items():
                us, low, high = choice_us(vocabulary, count, options)
                chosen: dict[str, Any] = {"vocabulary": vocabulary, "sequences": count, "choice": name}
                chosen |= {"us": round(us, 2), "us_low": round(low, 2), "us_high": round(high, 2)}
                made.append(chosen)
                click.echo("  ".join(f"{key}={value}" for key, value in chosen.items()))
    if append:
        append_rows("gpu_tables", made, REPETITIONS, folder)


if __name__ == "__main__":
    main()
