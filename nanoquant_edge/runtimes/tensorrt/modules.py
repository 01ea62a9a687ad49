# SPDX-License-Identifier: Apache-2.0
"""The optional packages that running an engine needs: one of the two TensorRT modules, and cuda-python."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ...errors import NqEdgeError
from ...formats.backends import FLAVOURS
from ...system.extras import install_command

__all__ = ["import_cuda", "import_tensorrt"]


def import_tensorrt(flavour: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Args:
        flavour: "standard" or "rtx".

    Raises:
        NqEdgeError: NQ-MISSING when it is not installed, naming the extra; NQ-BACKEND when only the other flavour is.
    """
    wanted = FLAVOURS[flavour]
    try:
        return importlib.import_module(wanted.module)
    except (ImportError, OSError) as error:  # OSError: the wheel is there, one of its libraries is not
        other = next(one for one in FLAVOURS.values() if one is not wanted)
        build = "Run `nq-edge build` for this device"
        if flavour == "standard":
            build += "; on a Jetson TensorRT comes with JetPack, elsewhere from NVIDIA's package index"
        hint = f"Run {install_command(FLAVOURS[flavour].extra)}."
        if importlib.util.find_spec(other.module) is not None:
            raise NqEdgeError(
                "NQ-BACKEND",
                f"the engine was built by {wanted.title}, installed is {other.title} ({error}).",
                f"{hint} Or: {build}.",
            ) from error
        if flavour == "standard":
            hint += " TensorRT itself comes with JetPack on a Jetson, elsewhere from NVIDIA's package index."
        raise NqEdgeError("NQ-MISSING", f"{wanted.module} cannot be imported ({error}).", hint) from error


def import_cuda(flavour: str = "rtx") -> Any:
    """The module `cuda.bindings.runtime` of cuda-python.

    Args:
        flavour: of the engine, for the name of the extra.

    Raises:
        NqEdgeError: NQ-MISSING when it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise NqEdgeError(
            "NQ-MISSING",
            f"cuda-python cannot be imported ({error}).",
            f"Run {install_command(FLAVOURS[flavour].extra)}.",
        ) from error
