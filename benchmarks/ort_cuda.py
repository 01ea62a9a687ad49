# SPDX-License-Identifier: Apache-2.0
"""A float16 bundle in ONNX Runtime on an NVIDIA GPU against the same bundle on the CPU: equal tokens, speed, nodes.

    python -m benchmarks.ort_cuda BUNDLE [--append]

Both sides run this package's kernels and round to float16 in the same places, so logits differ by rounding only. The
CPU side uses ONNX Runtime's default number of threads. Nodes are counted from ONNX Runtime's own profile.
"""

from __future__ import annotations

import collections
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.figures import append_rows
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import Generator, OnnxRuntimeBackend
from nanoquant_edge.runtimes.onnxruntime import session as ort_session

__all__ = ["main"]

PROMPT = (
    "The history of computing begins long before the first electronic machines. In the nineteenth century, Charles "
    "Babbage designed a mechanical device that could be programmed with punched cards. "
) * 3


def measure(folder: Path, provider: str, repetitions: int, new_tokens: int) -> tuple[dict[str, Any], np.ndarray]:
    """Speed of generation and the logits of the prompt."""
    with Generator.from_bundle(folder, provider=provider) as generator:
        ids = np.array([generator.encode(PROMPT)])
        logits = generator.backend.forward(ids, positions=np.arange(ids.shape[1])[None])[0]
        runs = [generator.generate(PROMPT, max_new_tokens=new_tokens) for _ in range(repetitions + 1)][1:]
    row = {
        "name": f"onnxruntime {provider}",
        "prompt": ids.shape[1],
        "new": new_tokens,
        "decode_tps": round(statistics.median(run.decode_tps for run in runs), 1),
        "decode_tps_spread": [round(pick(run.decode_tps for run in runs), 1) for pick in (min, max)],
        "prefill_tps": round(statistics.median(run.prefill_tps for run in runs), 1),
        "ids": runs[0].ids,
    }
    return row, logits.astype(np.float64)


def compare(logits: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """The figures of the validation step `logits`."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        shifted = x - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    ours, theirs = log_softmax(logits), log_softmax(wanted)
    cosine = (logits * wanted).sum(-1) / np.linalg.norm(logits, axis=-1) / np.linalg.norm(wanted, axis=-1)
    return {
        "cosine_min": float(cosine.min()),
        "kl_mean": float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()),
        "top1": float((logits.argmax(-1) == wanted.argmax(-1)).mean()),
    }


def nodes(folder: Path) -> dict[str, int]:
    """How many nodes ran where, by operator and provider."""
    original = ort_session._options
    with tempfile.TemporaryDirectory() as place:

        def profiled(*arguments: Any) -> Any:
            options = original(*arguments)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(place) / "profile")
            return options

        ort_session._options = profiled
        try:
            with OnnxRuntimeBackend(Bundle.open(folder), provider="cuda") as backend:
                backend.forward(np.array([[1, 2, 3]]))
                events = json.loads(Path(backend._session.end_profiling()).read_text(encoding="utf-8"))
        finally:
            ort_session._options = original
    names = {(e["name"], e["args"]["op_name"], e["args"]["provider"]) for e in events if e.get("cat") == "Node"}
    kernels = [entry for entry in names if entry[0].endswith("_kernel_time")]
    return dict(collections.Counter(f"{op} on {provider}" for _, op, provider in kernels).most_common())


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repetitions", default=5, show_default=True)
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/ort_cuda.json.")
def main(bundle: Path, repetitions: int, new_tokens: int, append: bool) -> None:
    """Compare BUNDLE on the GPU with itself on the CPU."""
    gpu, logits = measure(bundle, "cuda", repetitions, new_tokens)
    cpu, wanted = measure(bundle, "cpu", repetitions, new_tokens)
    gpu |= compare(logits, wanted)
    pairs = list(zip(gpu.pop("ids"), cpu.pop("ids"), strict=True))
    gpu["equal_tokens"] = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    gpu["nodes"] = nodes(bundle)
    for row in (gpu, cpu):
        click.echo(json.dumps(row, indent=1))
    if append:
        append_rows("ort_cuda", [gpu, cpu], repetitions)


if __name__ == "__main__":
    main()
