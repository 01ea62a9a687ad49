# SPDX-License-Identifier: Apache-2.0
"""This package as a wheel of plain Python, made from the installed files: the board's libraries travel beside it.

Layout of a wheel: the Python packaging user guide's "Binary distribution format".
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

from ..errors import NqEdgeError

__all__ = ["write_own_wheel"]

_NAME = "nanoquant-edge"
_TAG = "py3-none-any"
#: Wheels are made of these moments, so that the same files give the same wheel.
_MOMENT = (2020, 1, 1, 0, 0, 0)


def write_own_wheel(folder: Path) -> Path:
    """Write the wheel into `folder` and return its path.

    Raises:
        NqEdgeError: NQ-DEPLOY when the package is not installed, so that it has no metadata.
    """
    try:
        known = metadata.distribution(_NAME)
    except metadata.PackageNotFoundError as error:
        raise NqEdgeError("NQ-DEPLOY", f"{_NAME} runs without being installed.", "Install it: pip install .") from error
    package = Path(__file__).parents[1]
    info = f"{_NAME.replace('-', '_')}-{known.version}.dist-info"
    files: dict[str, bytes] = {}
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package)
        skipped = {"_native", "_sources", "__pycache__"} & set(inside.parts) or path.suffix in (".pyc", ".so")
        if path.is_file() and not skipped:
            files[f"{package.name}/{inside.as_posix()}"] = path.read_bytes()
    files[f"{info}/METADATA"] = (known.read_text("METADATA") or "").encode()
    files[f"{info}/entry_points.txt"] = (known.read_text("entry_points.txt") or "").encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {_NAME} {known.version}\nRoot-Is-Purelib: true\nTag: {_TAG}\n"
    ).encode()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    target = folder / f"{_NAME.replace('-', '_')}-{known.version}-{_TAG}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
