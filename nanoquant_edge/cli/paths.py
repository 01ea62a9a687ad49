# SPDX-License-Identifier: Apache-2.0
"""What a path on the command line is, and which verb comes next when it is not what a verb takes.

Only a few names and bytes are looked at. What is recognised as the right thing may still be damaged, as its reader
says.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..errors import NqEdgeError, printable
from ..formats.backends import BOARD_BUILD, ENGINE_BACKENDS, GENAI

__all__ = ["KINDS", "check_kind", "kind_of"]

#: Larger than any configuration or manifest seen; a larger file is left to its reader.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Kind:
    """Something that a path may be.

    Attributes:
        title: what it is called in a sentence.
        step: what to do with it next; `{path}` stands for the path.
    """

    title: str
    step: str


#: Name -> kind. The names are what `kind_of` returns and `check_kind` takes.
KINDS = {
    "bundle": Kind("a bundle for ONNX Runtime", "run it with nq-edge generate {path}, or nq-edge inspect {path}"),
    "engine": Kind("a bundle with a TensorRT engine", "run it with nq-edge generate {path}"),
    "build folder": Kind("a folder from which a board builds its engine", "build it there: nq-edge build {path}"),
    "checkpoint": Kind(
        "a NanoQuant checkpoint",
        "run it with nq-edge generate {path}, or export it: nq-edge export {path} --output bundle",
    ),
    "genai": Kind(
        "a folder for ONNX Runtime GenAI",
        "run it with onnxruntime-genai, or export its checkpoint with nq-edge export --to onnx",
    ),
    "deployment": Kind(
        "a deployment folder", "copy it to the board and run {path}/setup.sh there; its bundle is {path}/bundle"
    ),
    "gguf": Kind("a GGUF file of a model", "compress it first: nq-edge compress {path} --output checkpoint"),
    "model": Kind(
        "a Hugging Face folder of a model that is not compressed",
        "compress it first: nq-edge compress {path} --output checkpoint",
    ),
    "official": Kind(
        "a checkpoint of the official NanoQuant code",
        "import it first: nq-edge import {path} --base MODEL --output checkpoint",
    ),
    "state": Kind(
        "the state of an interrupted compression",
        "continue it: nq-edge compress --resume with the options of before",
    ),
}


def kind_of(path: str | Path) -> str | None:
    """What a path is: a key of `KINDS`; None where it is nothing of the kind, or nothing at all.

    Example:
        >>> kind_of("nothing/there") is None
        True
    """
    try:
        return _of_folder(Path(path)) if Path(path).is_dir() else _of_file(Path(path))
    except (OSError, ValueError):  # unreadable, or a name that no file system takes: its reader says so
        return None


def check_kind(path: str | Path, *wanted: str, code: str) -> None:
    """Refuse a path that is recognised as something else, and say which verb takes it.

    Args:
        path: as the user gave it.
        wanted: keys of `KINDS` that are taken.
        code: of the refusal.

    Raises:
        NqEdgeError: `code`. A path that is not recognised passes: its reader has more to say.
    """
    found = kind_of(path)
    shown = shlex.quote(printable(str(path)))
    if found is not None and found not in wanted:
        titles = " or ".join(KINDS[name].title for name in wanted)
        step = KINDS[found].step.format(path=shown)
        hint = f"{step[0].upper()}{step[1:]}."
        raise NqEdgeError(code, f"{shown} is {KINDS[found].title}; this verb takes {titles}.", hint)
    near = _near(Path(path), wanted) if found is None else None
    if near is not None:
        hint = f"Did you mean {shlex.quote(printable(str(near)))}?"
        raise NqEdgeError(code, f"{shown} itself is no {' or '.join(wanted)}.", hint)


def _of_folder(folder: Path) -> str | None:
    from ..formats.bundle import MANIFEST_FILE

    if (folder / MANIFEST_FILE).is_file():
        backend = str(_read(folder / MANIFEST_FILE).get("backend", ""))
        if backend in ENGINE_BACKENDS:
            return "engine"
        return {BOARD_BUILD: "build folder", GENAI: "genai"}.get(backend, "bundle")
    if (folder / "nq_deploy.json").is_file():
        return "deployment"
    if (folder / "genai_config.json").is_file() and (folder / "model.onnx").is_file():
        return "genai"
    if (folder / "config.json").is_file():
        quantization = _read(folder / "config.json").get("quantization_config")
        compressed = isinstance(quantization, dict) and quantization.get("quant_method") == "nanoquant"
        return "checkpoint" if compressed else "model"
    return "state" if (folder / "run.json").is_file() and (folder / "start.safetensors").is_file() else None


def _of_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        begin = file.read(4)
    if begin == b"GGUF":
        return "gguf"
    return "official" if begin == b"PK\x03\x04" and path.suffix in (".pt", ".pth", ".bin") else None


def _near(path: Path, wanted: tuple[str, ...]) -> Path | None:
    """The folder that a file belongs to, or the only thing inside of a folder, where that is of a wanted kind."""
    try:
        if path.is_file():
            return path.parent if kind_of(path.parent) in wanted else None
        found = [entry for entry in sorted(path.iterdir())[:200] if kind_of(entry) in wanted]
    except (OSError, ValueError):
        return None
    return found[0] if len(found) == 1 else None


def _read(path: Path) -> dict[str, object]:
    if path.stat().st_size > _MOST_BYTES:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
