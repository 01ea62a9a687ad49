# SPDX-License-Identifier: Apache-2.0
"""The folder that a board builds its engine from: the graph is there already; what is added here says how to go on.

Standard TensorRT builds on the device it builds for. The board needs its own TensorRT and this package, but neither
`onnx` nor PyTorch.
"""

from __future__ import annotations

from pathlib import Path

from ...devices import Target
from ...system.sources import copy_sources
from .plan import BuildPlan

__all__ = ["write_board_files"]


_SCRIPT = """\
#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the engine for {title} on the device itself. Usage: sh build.sh [OUTPUT FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=${{1:-"$here/../engine"}}

# From the root: python3 -c imports from the working folder first.
(cd / && python3 -c 'import tensorrt') || {{ echo "TensorRT's Python package is missing: {install}" >&2; exit 1; }}
command -v nq-edge >/dev/null || {{
  echo "nq-edge is missing: copy the wheel of nanoquant-edge {version} here (make wheel-aarch64), pip install it" >&2
  exit 1
}}

# The plugin: the installed one, or built here for this GPU. NQ_EDGE_NATIVE_DIR names its folder, at run time too.
if [ -z "${{NQ_EDGE_NATIVE_DIR:-}}" ] && ! (cd / && python3 -c \\
  'from nanoquant_edge.system.native import tensorrt_library_path as path; path()') 2>/dev/null; then
  PATH="$PATH:/usr/local/cuda/bin"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cmake -S "$here/plugins" -B "$work" -DCMAKE_BUILD_TYPE=Release -DNQ_CUDA=ON -DNQ_TENSORRT=ON \\
    -DNQ_CUDA_ARCHITECTURES={architecture} -DSKBUILD_PROJECT_VERSION_FULL={version}
  cmake --build "$work" -j "$(nproc)"
  NQ_EDGE_NATIVE_DIR="$HOME/.local/lib/nanoquant-edge"
  cmake --install "$work" --prefix "$work/stage"
  mkdir -p "$NQ_EDGE_NATIVE_DIR"
  # Beside the old file and renamed: a program that runs with the old one keeps it.
  for file in "$work"/stage/*.so; do
    cp "$file" "$NQ_EDGE_NATIVE_DIR/.new" && mv -f "$NQ_EDGE_NATIVE_DIR/.new" "$NQ_EDGE_NATIVE_DIR/${{file##*/}}"
  done
  export NQ_EDGE_NATIVE_DIR
  echo "Before running the engine: export NQ_EDGE_NATIVE_DIR=$NQ_EDGE_NATIVE_DIR"
fi

nq-edge build "$here" --target {target} --output "$output"
"""

_README = """\
# Build folder for {title}

There is no engine in this folder yet: TensorRT builds it on the device. On the board{jetpack}:

    sh build.sh ../engine
    nq-edge generate ../engine --prompt "Hello"

`build.sh` needs TensorRT's Python package, `nq-edge` {version}, and, where no built plugin is installed, CMake, a C++17
compiler and nvcc ({architecture} is compiled). It needs neither PyTorch nor `onnx`.

| | |
| --- | --- |
| graph | {graph}, dialect {dialect}, {precision} |
| compressed layers | {linears} in {nodes} plugin layers |
| weights | {weights:.1f} MB |
| cache | {capacity} tokens |

Nothing of this was run on such a board by the project that wrote it.
"""


def write_board_files(folder: Path, plan: BuildPlan, target: Target) -> None:
    """Add build.sh, README.md and the plugin's sources to a folder with a graph.

    Args:
        folder: holds the graph and its plan.
        plan: what is built.
        target: for whom.
    """
    from importlib.metadata import version

    architecture = target.compute_capability.replace(".", "")
    words = {
        "title": target.title,
        "target": target.name,
        "architecture": architecture,
        "version": version("nanoquant-edge"),
        "install": "it comes with JetPack (apt install nvidia-jetpack)" if target.jetpack else "see NVIDIA's index",
        "jetpack": f" (JetPack {target.jetpack} or later)" if target.jetpack else "",
        "graph": plan.graph,
        "dialect": plan.dialect,
        "precision": plan.precision,
        "linears": plan.compressed_linears,
        "nodes": plan.plugin_layers,
        "weights": plan.weights / 1e6,
        "capacity": plan.kv.capacity,
    }
    script = folder / "build.sh"
    script.write_text(_SCRIPT.format(**words), encoding="utf-8")
    script.chmod(0o755)
    (folder / "README.md").write_text(_README.format(**words), encoding="utf-8")
    copy_sources(folder / "plugins")
