# SPDX-License-Identifier: Apache-2.0
"""The graph's external weights, mapped by us and lent to TensorRT's parser.

Where the parser maps the file itself (TensorRT before 10.13 offers nothing else), pages that were read stay resident.
A mapping of ours can be emptied while the engine is built: nothing is lost, they come from the file again.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

from ...errors import NqEdgeError
from ...formats.onnx_file import external_tensors
from ...system.files import path_inside

__all__ = ["LentWeights"]


def _malformed() -> NqEdgeError:
    return NqEdgeError("NQ-BUNDLE", "the graph's model file is not valid ONNX.", "Export it again.")


class LentWeights:
    """The external weights of a model, mapped; keep it until the engine is built.

    Args:
        model: the model file; its weights lie in one file of its folder.

    Raises:
        NqEdgeError: NQ-BUNDLE when they do not lie inside of it, NQ-PATH when it is elsewhere.
    """

    def __init__(self, model: Path) -> None:
        self.content = model.read_bytes()
        self._tensors = external_tensors(self.content)
        names = {entry[0] for entry in self._tensors.values()}
        if len(names) > 1:
            raise _malformed()
        self._mapping: mmap.mmap | None = None
        if names:
            try:
                with path_inside(model.parent, names.pop()).open("rb") as file:
                    # A private mapping that nobody writes to: ctypes gives no address of a read-only one.
                    self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:  # missing or empty
                raise _malformed() from error
            size = len(self._mapping)
            if any(start < 0 or length < 1 or start + length > size for _, start, length in self._tensors.values()):
                raise _malformed()

    def lend(self, parser: Any) -> None:
        """Give every weight to the parser, by address.

        Raises:
            NqEdgeError: NQ-ENGINE when it refuses one.
        """
        if self._mapping is None:
            return
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        for name, (_, start, length) in self._tensors.items():
            if not parser.load_initializer(name, base + start, length):
                raise NqEdgeError("NQ-ENGINE", f"TensorRT's parser does not take the weight {name}.")

    def forget(self) -> None:
        """Give the pages back; they are read from the file again when they are needed."""
        if self._mapping is not None and hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED)
