# SPDX-License-Identifier: Apache-2.0
"""Options of every verb that opens a bundle: one place for their names and helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["OPENING", "opening_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

#: Parameters that `opening_options` adds, named as the fields of `OpenOptions`.
OPENING = (
    *("threads", "spin", "provider", "allow_portable", "trust_bundle_code"),
    *("device", "dtype", "table", "cache_bits"),
)


def opening_options(command: Command, *, spin: bool = True) -> Command:
    """Add --device and what belongs to it, -t, --spin, --provider, --allow-portable and --trust-bundle-code."""
    options = (
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="cpu, cuda or cuda:N. auto: a checkpoint on the GPU if there is one, a bundle where it was made for.",
        ),
        click.option("--dtype", type=click.Choice(["float16", "bfloat16"]), help="Of activations on a CUDA device."),
        click.option(
            "--table",
            type=click.Choice(["fp16", "int8", "int4"]),
            help="Hold embedding and head so on a CUDA device; by default as they are stored.",
        ),
        click.option(
            "--cache-bits",
            type=click.Choice(["16", "8"]),
            default="16",
            callback=lambda _context, _option, text: int(text),
            help="Bits of a number in the key/value cache on a CUDA device.  [default: 16]",
        ),
        click.option(
            "-t", "--threads", type=int, help="Worker threads; by default the physical cores that may be used."
        ),
        click.option(
            "--spin/--no-spin",
            default=spin,
            show_default=True,
            help="Let idle threads wait busily, or sleep: that is slower alone, and faster where others compute too.",
        ),
        click.option(
            "--provider",
            type=click.Choice(["cpu", "cuda"]),
            default="cpu",
            show_default=True,
            help="Where ONNX Runtime computes; cuda needs onnxruntime-gpu and a float16 bundle.",
        ),
        click.option(
            "--allow-portable", is_flag=True, help="Run without the native kernels if they are missing (slow)."
        ),
        click.option("--trust-bundle-code", is_flag=True, help="Let machine code inside of a TensorRT engine run."),
    )
    for option in reversed(options):
        command = option(command)
    return command
