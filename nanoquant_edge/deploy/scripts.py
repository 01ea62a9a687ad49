# SPDX-License-Identifier: Apache-2.0
"""Scripts, service and container recipe of a deployment, from the templates beside this file."""

from __future__ import annotations

import re
from pathlib import Path

from ..formats.backends import ONNXRUNTIME
from .deployment import Deployment

__all__ = ["write_scripts"]

_TEMPLATES = Path(__file__).parent / "templates"
#: template -> its place in the deployment; scripts are executable.
_FILES = {
    "setup.sh": "setup.sh",
    "nq-edge": "nq-edge",
    "run.sh": "run.sh",
    "serve.sh": "serve.sh",
    "build_engine.sh": "build_engine.sh",
    "README.md": "README.md",
    "Dockerfile": "Dockerfile",
    "dockerignore": ".dockerignore",
    "install.sh": "container/install.sh",
    "build.sh": "container/build.sh",
    "config.py.in": "container/config.py",
    "test.py.in": "container/test.py",
    "nanoquant-edge.service": "systemd/nanoquant-edge.service",
}


def write_scripts(folder: Path, made: Deployment, version: str) -> None:
    """Fill the templates in.

    Args:
        folder: folder of the deployment.
        made: what it holds.
        version: version of this package.
    """
    words = _words(made, version)
    for template, name in _FILES.items():
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        filled = re.sub(r"@([A-Z_]+)@", lambda match: words[match[1]], text)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(filled, encoding="utf-8", newline="\n")
        if filled.startswith("#!"):
            path.chmod(0o755)


def _words(made: Deployment, version: str) -> dict[str, str]:
    target, bundle = made.target, made.bundle
    system = target.software[0] if target.software else {}
    jetson, gpu = bool(target.jetpack), target.flavour == "standard"
    older = system.get("python", made.python) != made.python
    paths = ["ONNX Runtime on the processor"] if bundle.backend == ONNXRUNTIME else []
    if made.graph or bundle.backend == "tensorrt":
        paths.append("TensorRT on the GPU, once ./build_engine.sh has built its engine there")
    fit = None if made.found is None else made.found.fit
    speed = None if made.found is None else made.found.speed
    base = (
        f"nvcr.io/nvidia/l4t-jetpack:r{system['l4t']}"
        if gpu and "l4t" in system
        else f"python:{made.python}-slim-bookworm"
    )
    return {
        "TITLE": _safe(target.title),
        "NAME": target.name,
        "MODEL": _safe(str(bundle.source_model.get("name", "the model"))),
        "BPW": f"{bundle.true_bpw:.3f}",
        "VERSION": version,
        "PYTHON": made.python,
        "ARCHITECTURE": target.architecture,
        "CUDA_ARCHITECTURE": target.compute_capability.replace(".", ""),
        # JetPack's TensorRT package belongs to the system's Python.
        "VENV_OPTIONS": "--system-site-packages" if gpu else "--clear",
        "NO_GRAPH": "this deployment runs on the processor; it has no graph for TensorRT"
        if not gpu
        else "there is no graph/: deploy again where onnx and onnx-ir are installed",
        "ENGINE_LINE": "    ./build_engine.sh                       # on the board itself, minutes\n"
        if made.graph
        else "",
        "NETWORK": "no network is needed" if made.complete else "fetches the versions of requirements-index.txt",
        "PATHS": "; ".join(paths),
        "SYSTEM": ", ".join(f"{key} {value}" for key, value in system.items() if value) or "any Linux",
        "MEMORY": "not known: the bundle does not hold the model's configuration"
        if fit is None or fit.available is None
        else f"{fit.needed / 1e6:.0f} MB of {fit.available / 1e6:.0f} MB at a context of {fit.capacity} tokens",
        "FORECAST": "none" if speed is None else f"{speed.decode} tokens/s on the {speed.path}",
        "NEEDS": ", ".join(made.needs),
        "NATIVE": ", ".join(made.libraries) or "none: setup.sh builds them from plugins/",
        "NOTES": "\n".join(target.notes)
        + (f"\n\nThe wheels are for Python {made.python}, which this system does not bring." if older else ""),
        "DOCKER_OPTIONS": "--runtime nvidia " if gpu and jetson else "",
        "DEPENDS": "[cuda, tensorrt, python]" if gpu else "[python]",
        "REQUIRES": f">={system['l4t'].split('.')[0]}" if "l4t" in system else ">=32.6",
        "BASE_IMAGE": base,
        # All slots together hold the context that the forecast counts, so that the memory's limit is not met.
        "CACHE_TOKENS": "" if fit is None or not fit.capacity else f" --cache-tokens {fit.capacity}",
        "MEMORY_MAX": f"{int(1.25 * fit.needed / 1e6) + 256}M" if fit is not None else "90%",
        "SUPPLEMENTARY": "SupplementaryGroups=video render\n" if gpu else "",
        "TRIED": "The processor's path is executed by the project's tests in an emulated aarch64 system: setup.sh, "
        "run.sh and\nthe operator's library. Nothing here was run on such a board"
        + ("; the engine was neither built nor run on one." if made.graph else "."),
    }


def _safe(text: str) -> str:
    """A stranger's model name for scripts, YAML and units: letters, digits and a few marks."""
    return re.sub(r"[^A-Za-z0-9 ._+()-]", "_", text)[:80] or "the model"
