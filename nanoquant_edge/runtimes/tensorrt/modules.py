# SPDX-License-Identifier: Apache-2.0
"""The optional packages that running an engine needs: one of the two TensorRT modules, and cuda-python."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ...errors import NqEdgeError
from ...system.extras import install_command

__all__ = ["EXTRAS", "MODULES", "import_cuda", "import_tensorrt"]

#: Flavour of an engine -> the module that runs it.
MODULES = {"standard": "tensorrt", "rtx": "tensorrt_rtx"}
#: Flavour -> the extra of this package that brings what it needs.
EXTRAS = {"standard": "tensorrt", "rtx": "rtx"}
_OTHER = {"standard": "rtx", "rtx": "standard"}
_TITLES = {"standard": "TensorRT", "rtx": "TensorRT for RTX"}


def import_tensorrt(flavour: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Args:
        flavour: "standard" or "rtx".

    Raises:
        NqEdgeError: NQ-MISSING when it is not installed, naming the extra; NQ-BACKEND when only the other flavour is.
    """
    try:
        return importlib.import_module(MODULES[flavour])
    except (ImportError, OSError) as error:  # OSError: the wheel is there, one of its libraries is not
        other = _OTHER[flavour]
        build = "Run `nq-edge build` for this device"
        if flavour == "standard":
            build += "; on a Jetson TensorRT comes with JetPack, elsewhere from NVIDIA's package index"
        hint = f"Run {install_command(EXTRAS[flavour])}."
        if importlib.util.find_spec(MODULES[other]) is not None:
            raise NqEdgeError(
                "NQ-BACKEND",
                f"the engine was built by {_TITLES[flavour]}, installed is {_TITLES[other]} ({error}).",
                f"{hint} Or: {build}.",
            ) from error
        if flavour == "standard":
            hint += " TensorRT itself comes with JetPack on a Jetson, elsewhere from NVIDIA's package index."
        raise NqEdgeError("NQ-MISSING", f"{MODULES[flavour]} cannot be imported ({error}).", hint) from error


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
            f"Run {install_command(EXTRAS[flavour])}.",
        ) from error
