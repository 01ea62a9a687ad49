# SPDX-License-Identifier: Apache-2.0
"""A model whose embedding and head are stored otherwise than in the checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.checkpoint import PackedLayer, QuantizedTable, quantize_table
from .weights import WeightSource

__all__ = ["Requantized"]


class Requantized:
    """A weight source whose tables are stored as the user asks; a `WeightSource`.

    Args:
        source: the model's weights.
        modules: module paths of the embedding and of a head of its own.
        kind: "int8", "int4", or "fp16" to widen tables.

    Raises:
        NqEdgeError: NQ-OPTION when a table is stored in other codes already: rounding twice would cost quality in
            silence.
    """

    def __init__(self, source: WeightSource, modules: list[str], kind: str) -> None:
        self._source, self._tables = source, dict[str, QuantizedTable | None]()
        self._wide = set[str]()
        for module in modules:
            stored = source.table(module)
            if kind == "fp16":
                self._tables[module] = None
                self._wide |= {module} if stored is not None else set()
            elif stored is None:
                self._tables[module] = quantize_table(source.tensor(f"{module}.weight"), kind, module)
            elif stored.kind != kind:
                raise NqEdgeError(
                    "NQ-OPTION",
                    f"the checkpoint stores {module} as {stored.kind}; it is not rounded a second time to {kind}.",
                    "Leave --embedding out, or compress again with the format you want.",
                )

    def layer(self, name: str) -> PackedLayer:
        """See `WeightSource.layer`."""
        return self._source.layer(name)

    def tensor(self, name: str) -> NDArray[np.generic]:
        """See `WeightSource.tensor`."""
        return self._source.tensor(name)

    def table(self, module: str) -> QuantizedTable | None:
        """See `WeightSource.table`."""
        return self._tables[module] if module in self._tables else self._source.table(module)

    def tensor_names(self) -> list[str]:
        """See `WeightSource.tensor_names`."""
        return self._source.tensor_names() + [f"{module}.weight" for module in sorted(self._wide)]
