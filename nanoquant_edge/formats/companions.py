# SPDX-License-Identifier: Apache-2.0
"""The files that travel with a model unchanged, from the model's folder to checkpoint and bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ..system.files import path_inside

__all__ = ["COMPANION_FILES", "copy_companions"]

#: The tokenizer's files, the chat template, and the model's own settings for generating.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_companions(source: str | Path, target: Path, names: Iterable[str] = COMPANION_FILES) -> None:
    """Copy files of one folder into another, as far as they are there.

    A link is followed inside the folder and into the Hugging Face cache only: what is written here gets published, and
    a stranger's `chat_template.jinja` may be a link to a private file.

    Args:
        source: the folder that has them.
        target: the folder that gets them.
        names: of the files.

    Raises:
        NqEdgeError: NQ-PATH for a link to anywhere else.
    """
    for name in names:
        if (Path(source) / name).exists():
            shutil.copyfile(path_inside(Path(source), name), target / name)
