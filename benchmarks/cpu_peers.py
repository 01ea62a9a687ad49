# SPDX-License-Identifier: Apache-2.0
"""Our bundles against llama.cpp, ONNX Runtime and PyTorch on one CPU, in one run.

    python -m benchmarks.cpu_peers --gguf MODEL.gguf --checkpoint 1.0=FOLDER --checkpoint 2.0=FOLDER \
        --text wikitext2-test.raw --append
    python -m benchmarks.cpu_peers --gguf MODEL.gguf --checkpoint 1.0=FOLDER --isa avx2 --threads 1,2 \
        --prompts 32,256,2048 --only nanoquant-1.0bpw-int8head,llama.cpp-Q4_0 --append

Each measurement is a process of its own, and the peers take turns, because the cores of a shared host are not equally
fast from minute to minute; `*_over_q4_0` is the median over the rounds of a figure over that of llama.cpp's Q4_0 in the
same round. `decode_cpu_ms`, processor time a new token, depends least on what else runs, with one thread. llama.cpp
runs from an environment of its own under --work, where llama-cpp-python is built from source; with --isa, which forces
our kernels, it has to be built for the same instruction set (`FLAGS`).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.figures import append_rows, listed
from nanoquant_edge.system.native import ort_library_info

LLAMA = "llama-cpp-python==0.3.36"
KINDS = ("Q4_0", "Q4_1", "TQ1_0", "TQ2_0", "Q2_K")
PROMPT, NEW = 256, 64
_AVX2 = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
#: How llama.cpp is built for the kernels that --isa names. AMX is left out: this version's path for it ended in a
#: segmentation fault.
FLAGS = {
    "": "-DGGML_NATIVE=ON",
    "avx2": _AVX2,
    "avx512": f"{_AVX2} -DGGML_AVX512=ON",
    "avx512vbmi": f"{_AVX2} -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON",
}


@dataclass(frozen=True)
class Peer:
    """What is measured: a command line that takes threads, prompt, new tokens and repetitions, and files it needs."""

    name: str
    command: tuple[str, ...]
    files: Path
    perplexity: tuple[str, ...] = ()


def call(*command: str | Path, isa: str = "") -> dict[str, Any]:
    """Run a process that prints a JSON object last; `isa` chooses our kernels in it."""
    env = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", **({"NQ_CPU_ISA": isa} if isa else {})}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def llama_python(work: Path, isa: str) -> Path:
    """The interpreter that has llama-cpp-python, built for an instruction set, or for this processor's."""
    python = work / "venv/bin/python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True)
    if subprocess.run([str(python), "-c", "import llama_cpp"], capture_output=True).returncode:
        amx = "amx_int8" in Path("/proc/cpuinfo").read_text()
        env = {**os.environ, "CMAKE_ARGS": FLAGS["avx512vbmi" if amx and not isa else isa]}
        subprocess.run([str(python), "-m", "pip", "install", "--no-cache-dir", LLAMA, "numpy"], check=True, env=env)
    return python


def llama_peers(gguf: Path, work: Path, *, kinds: list[str], isa: str, perplexity: tuple[str, ...]) -> list[Peer]:
    """llama.cpp's formats; Q4_1 is the file as shipped, the others are made from it."""
    python, script = llama_python(work, isa), Path(__file__).with_name("peer_llama.py")
    peers = []
    for kind in kinds:
        file = gguf if kind in gguf.name else work / f"{kind}.gguf"
        if not file.is_file():
            call(python, script, "quantize", gguf, file, kind)
        run = (str(python), str(script), "measure", str(file))
        loss = (str(python), str(script), "perplexity", str(file), *perplexity)
        peers.append(Peer(f"llama.cpp-{kind}", run, file, loss))
    return peers


def our_peers(checkpoints: dict[str, Path], work: Path, wanted: Callable[[str], bool], *, cache: str) -> list[Peer]:
    """A bundle for each rate and head format, its cache in 16 bits as llama.cpp's, or in 32."""
    from nanoquant_edge.exporters.onnx import export_onnx

    peers = []
    for rate, checkpoint in checkpoints.items():
        for head in ("int8", "int4"):
            name, folder = f"nanoquant-{rate}bpw-{head}head", work / f"nanoquant-{rate}-{head}"
            if wanted(name):
                export_onnx(checkpoint, folder, embedding=head, cache=cache, overwrite=True)
                peers.append(Peer(name, (sys.executable, "-m", "benchmarks.peer_dense", "bundle", str(folder)), folder))
    return peers


def dense_peers(checkpoint: Path, gguf: Path, work: Path) -> list[Peer]:
    """PyTorch and ONNX Runtime on the dense model."""
    from benchmarks.peer_dense import dense_bundles, dense_folder

    dense = dense_folder(gguf, work / "dense")
    run = (sys.executable, "-m", "benchmarks.peer_dense")
    bundles = dense_bundles(checkpoint, dense, work)
    peers = [Peer(name, (*run, "bundle", str(folder)), folder) for name, folder in bundles.items()]
    return [*peers, Peer("pytorch-fp32", (*run, "torch", str(dense)), dense)]


def window_ids(checkpoint: Path, text: Path, windows: int, window: int) -> np.ndarray:
    """The first windows of the text, int64 [windows * window]."""
    from nanoquant_edge.formats.corpus import join_rows
    from nanoquant_edge.formats.tokenizer import load_tokenizer

    content = join_rows(text.read_text(encoding="utf-8"))[: windows * window * 12]
    ids = np.asarray(load_tokenizer(checkpoint).encode(content, add_special_tokens=False), np.int64)
    return ids[: windows * window]


def perplexity_of(peer: Peer, ids: np.ndarray, window: int) -> float | None:
    """Of a peer that can tell; PyTorch's is ONNX Runtime's float32 figure."""
    if peer.perplexity:
        return float(call(*peer.perplexity)["ppl"])
    if not (peer.files / "nq_bundle.json").is_file():
        return None
    from nanoquant_edge.formats.bundle import Bundle
    from nanoquant_edge.runtimes.selection import open_backend
    from nanoquant_edge.validation.perplexity import backend_perplexity

    backend = open_backend(Bundle.open(peer.files, verify=False), max_context=window)
    try:
        return backend_perplexity(backend, ids, window=window)
    finally:
        backend.close()


def size_mb(path: Path) -> float:
    """A file, or all files of a folder that hold weights or a graph."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


@click.command()
@click.option("--gguf", type=click.Path(path_type=Path, exists=True), required=True, help="The dense model, Q4_1.")
@click.option("--checkpoint", "checkpoints", multiple=True, required=True, help="RATE=FOLDER, several times.")
@click.option("--text", type=click.Path(path_type=Path), help="Text for perplexity; none without it.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/peers"), show_default=True)
@click.option("--threads", default="2", callback=listed(int), show_default=True, help="Separated by commas.")
@click.option("--prompts", default=str(PROMPT), callback=listed(int), show_default=True, help="Prompt lengths.")
@click.option("--new-tokens", default=NEW, show_default=True)
@click.option("--isa", type=click.Choice(list(FLAGS)), default="", help="Our kernels (NQ_CPU_ISA) and llama.cpp's.")
@click.option("--cache", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Processes of each peer.")
@click.option("--repetitions", default=3, show_default=True, help="Inside of a process.")
@click.option("--windows", default=4, show_default=True)
@click.option("--window", default=512, show_default=True)
@click.option("--only", default="", callback=listed(str), help="Names of peers, separated by commas; all without it.")
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/cpu_peers.json.")
def main(
    gguf: Path,
    checkpoints: tuple[str, ...],
    text: Path | None,
    work: Path,
    threads: tuple[int, ...],
    prompts: tuple[int, ...],
    new_tokens: int,
    isa: str,
    cache: str,
    rounds: int,
    repetitions: int,
    windows: int,
    window: int,
    only: tuple[str, ...],
    append: bool,
) -> None:
    """Print one row for each peer, number of threads and prompt."""
    work.mkdir(parents=True, exist_ok=True)
    folders = {rate: Path(folder) for rate, _, folder in (entry.partition("=") for entry in checkpoints)}
    first = next(iter(folders.values()))
    ids, file = np.zeros(0, np.int64), work.resolve() / "ids.npy"
    if text is not None:
        ids = window_ids(first, text, windows, window)
        np.save(file, ids)

    def wanted(name: str) -> bool:
        return not only or name in only

    losses = (str(threads[0]), str(window), str(file))
    kinds = [kind for kind in KINDS if wanted(f"llama.cpp-{kind}")]
    peers = our_peers(folders, work, wanted, cache=cache)
    if kinds:
        peers += llama_peers(gguf.resolve(), work.resolve(), kinds=kinds, isa=isa, perplexity=losses)
    if any(map(wanted, ("onnxruntime-fp32", "onnxruntime-int4", "pytorch-fp32"))):
        peers += [peer for peer in dense_peers(first, gguf.resolve(), work) if wanted(peer.name)]
    told = {}
    if text is not None:
        told = {peer.name: {"ppl": perplexity_of(peer, ids, window), "ppl_windows": windows} for peer in peers}
    rows = []
    for count, prompt in itertools.product(threads, prompts):
        runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
        for _ in range(rounds):
            for peer in peers:
                numbers = map(str, (count, prompt, new_tokens, repetitions))
                runs[peer.name].append(call(*peer.command, *numbers, isa=isa))
                click.echo(f"{peer.name}: {json.dumps(runs[peer.name][-1])}", err=True)
        for peer in peers:
            row = _row(peer, runs[peer.name], runs.get("llama.cpp-Q4_0", []))
            if peer.name in told:
                row |= {**told[peer.name], "ppl_window": window}
            row |= {"threads": count, "prompt": prompt, "new_tokens": new_tokens, "rounds": rounds}
            row |= {"cache": cache if peer.name.startswith("nanoquant") else "float16"}
            rows.append({**row, "isa": isa or str(ort_library_info()["isa"])})
            click.echo(json.dumps(rows[-1]))
    if append:
        append_rows("cpu_peers", rows, rounds * repetitions)


def _row(peer: Peer, runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds with least and most, and ratios to llama.cpp's Q4_0 round by round."""
    row: dict[str, Any] = {"name": peer.name, "file_mb": round(size_mb(peer.files), 1)}
    for key in ("decode_tps", "decode_cpu_ms", "prefill_tps", "ttft_ms", "rss_mb"):
        values = [run[key] for run in runs]
        row[key] = round(statistics.median(values), 1)
        row[f"{key}_range"] = [round(min(values), 1), round(max(values), 1)]
    for key in ("decode_tps", "decode_cpu_ms", "prefill_tps", "rss_mb"):
        if base:
            ratios = [run[key] / other[key] for run, other in zip(runs, base, strict=True)]
            row[f"{key}_over_q4_0"] = round(statistics.median(ratios), 2)
    return row


if __name__ == "__main__":
    main()
