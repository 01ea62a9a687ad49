# SPDX-License-Identifier: Apache-2.0
"""When engines can be built here, and scripts in the compiler's place for everything around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.tensorrt.toolchain import Toolchain
from nanoquant_edge.system.native import tensorrt_library_path


def can_compile() -> bool:
    """Whether TensorRT for RTX and the plugin are here."""
    try:
        return Toolchain().has("rtx") and tensorrt_library_path().is_file()
    except NqEdgeError:
        return False


needs_builder = pytest.mark.skipif(not can_compile(), reason="TensorRT for RTX or the plugin is not installed")

#: What a compiler of standard TensorRT would report.
DONE = {
    "event": "done",
    "tensorrt_version": "10.3.0",
    "plugin_layers": 8,
    "compressed_linears": 14,
    "layers": 300,
    "parse_seconds": 0.1,
    "build_seconds": 1.0,
    "engine_bytes": 6,
    "peak_bytes": 1000,
    "peak_private_bytes": 500,
}


#: A machine without TensorRT.
NOTHING = Toolchain(flavours=())


def scripted(folder: Path, body: str, *flavours: str, done: dict[str, object] = DONE) -> Toolchain:
    """A compiler that is a script in `folder`; it has `request`, `send` and `done`."""
    script = folder / "compiler.py"
    script.write_text(
        "import json, os, signal, sys\nrequest = json.load(sys.stdin)\n"
        "def send(entry): print(json.dumps(entry), flush=True)\n"
        f"done = json.loads({json.dumps(done)!r})\n{body}\n"
    )
    return Toolchain(flavours, (sys.executable, str(script)))
