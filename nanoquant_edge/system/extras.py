# SPDX-License-Identifier: Apache-2.0
"""The command that installs what one of the package's extras needs.

No index has this package, so a hint must not ask for `nanoquant-edge[cpu]`: the packages behind the extra are named
instead. That works from a checkout, from a wheel and on a board alike.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

__all__ = ["install_command"]

_NAME = "nanoquant-edge"
_EXTRA = re.compile(r"""extra\s*==\s*['"]([A-Za-z0-9._-]+)['"]""")
#: TensorRT for RTX's wheels are built on the spot and do not name what they need for it.
_BUILT_ON_THE_SPOT = "rtx"


def install_command(extra: str) -> str:
    """The pip command that installs the packages of an extra.

    Args:
        extra: name of an extra of pyproject.toml, such as "cpu" or "compress".

    Returns:
        One shell command, or two joined by "&&".

    Example:
        >>> install_command("cpu")
        "pip install 'onnxruntime>=1.23'"
    """
    packages = _packages(extra)
    if not packages:
        return f"pip install '{Path(__file__).resolve().parents[2]}[{extra}]'"
    names = " ".join(f"'{name}'" for name in packages)
    if extra == _BUILT_ON_THE_SPOT:
        return f"pip install wheel setuptools && pip install --no-build-isolation {names}"
    return f"pip install {names}"


def _packages(extra: str) -> list[str]:
    """The requirements of an extra as the installed package's metadata list them; none where it is not installed."""
    try:
        entries = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for entry in entries:
        requirement, _, marker = entry.partition(";")
        named = _EXTRA.search(marker)
        if named and named[1] == extra:
            found.append(requirement.strip())
    return found
