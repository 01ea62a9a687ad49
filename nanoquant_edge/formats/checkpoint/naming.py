# SPDX-License-Identifier: Apache-2.0
"""What the model of a checkpoint is called: by its own name, not by that of the folder that was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["model_name"]

#: A folder of the hub's cache: models--OWNER--NAME/snapshots/REVISION.
_CACHED = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


def model_name(config: Mapping[str, Any], recipe: Mapping[str, Any], folder: Path) -> str:
    """The name of a model, from what its checkpoint remembers.

    Args:
        config: of the checkpoint's config.json.
        recipe: how it was compressed; `source` says from what.
        folder: of the checkpoint, whose name is taken where nothing else is known.

    Example:
        >>> model_name({}, {"source": "models/SmolLM2-135M-Instruct.Q4_1.gguf"}, Path("checkpoint"))
        'SmolLM2-135M-Instruct.Q4_1'
    """
    given = config.get("_name_or_path")
    for text in (given, recipe.get("source")):
        if isinstance(text, str) and text.strip("/. "):
            cached = _CACHED.search(text)
            if cached:
                return f"{cached[1]}/{cached[2]}"
            if text == given and text.count("/") == 1 and not text.startswith((".", "/")):
                return text  # an id of the hub
            return PurePosixPath(text.replace("\\", "/")).name.removesuffix(".gguf")
    return folder.resolve().name
