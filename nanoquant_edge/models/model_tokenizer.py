# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a model to compress: the one that validation and prompts will use, checked against transformers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError, first_line
from ..formats.tokenizer import Tokenizer
from ..formats.tokenizer import load_tokenizer as load_from_folder
from ..formats.tokenizer_file import TOKENIZER_FILE
from .gguf.content import GgufContent
from .gguf.tokenizer import read_gguf_tokenizer
from .tokenizer_agreement import check_tokenizers, hard_texts

__all__ = ["TOKENIZER_PARTS", "ModelTokenizer", "load_tokenizer", "open_tokenizer"]

#: What older models have in place of tokenizer.json (OPT, GPT-2's kind); a tokenizer.json is made of them.
TOKENIZER_PARTS = ("vocab.json", "merges.txt")
_LARGEST_PARTS = 64 << 20
#: Characters of a calibration text that are cut twice, in less than a second.
_BEGINNING = 1 << 18


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer in two readings.

    Attributes:
        ours: the one that is used.
        theirs: transformers' reading of the same files, to compare with; None where it reads them wrongly (GGUF).
        template: chat template, None without one.
    """

    ours: Tokenizer
    theirs: Any = None
    template: str | None = None

    @functools.cached_property
    def wrapped(self) -> Any:
        """The tokenizer with the methods of transformers' tokenizers, which cut texts as `ours` does."""
        from transformers import PreTrainedTokenizerFast

        split = bool(self.ours.config.get("split_special_tokens", False))
        return PreTrainedTokenizerFast(
            tokenizer_object=self.ours.core,
            chat_template=self.template,
            split_special_tokens=split,
            **self.ours.special_tokens,
        )

    def check(self, text: str, name: str) -> None:
        """See that both readings cut a text the same, for as long as its beginning.

        Raises:
            NqEdgeError: NQ-TOKENIZER with the first difference, `name` being what to call the model.
        """
        if self.theirs is not None:
            check_tokenizers(self.ours, self.theirs, [text[:_BEGINNING].encode("utf-8", "replace").decode()], name)


def open_tokenizer(folder: Path, largest: int = _LARGEST_PARTS) -> ModelTokenizer:
    """Read the tokenizer of a Hugging Face folder, and see that transformers reads it the same.

    Args:
        folder: holds tokenizer.json, or vocab.json and merges.txt.
        largest: most bytes of the latter two.

    Raises:
        NqEdgeError: NQ-TOKENIZER when it is missing, damaged, or read in two ways.
    """
    if (folder / TOKENIZER_FILE).is_file():
        ours, theirs = load_from_folder(folder), _called(folder, _plain_reading)
    elif not all((folder / part).is_file() for part in TOKENIZER_PARTS):
        raise NqEdgeError("NQ-TOKENIZER", f"{folder} has no {TOKENIZER_FILE}.")
    elif sum((folder / part).stat().st_size for part in TOKENIZER_PARTS) > largest:
        raise NqEdgeError("NQ-TOKENIZER", f"the vocabulary of {folder} has more than {largest >> 20} MiB.")
    else:
        theirs = _called(folder, _by_its_class)
        with tempfile.TemporaryDirectory(prefix="nq-edge-") as scratch:
            theirs.save_pretrained(scratch)
            ours = load_from_folder(scratch)
    found = ModelTokenizer(ours, theirs, _template(theirs))
    check_tokenizers(ours, theirs, hard_texts(ours), str(folder))
    return found


def load_tokenizer(path: Path, folder: Path, *, gguf_file: str | None = None) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        path: what the user named, for messages.
        folder: a Hugging Face folder, or the folder of a GGUF file.
        gguf_file: name of the GGUF file, where there is one.

    Raises:
        NqEdgeError: NQ-TOKENIZER when it is missing, damaged, or read in two ways.
    """
    return open_tokenizer(folder).ours if gguf_file is None else read_gguf_tokenizer(GgufContent(folder / gguf_file))


def _template(theirs: Any) -> str | None:
    """The chat template; of several by name, the one called "default"."""
    template = getattr(theirs, "chat_template", None)
    template = template.get("default") if isinstance(template, dict) else template
    return template if isinstance(template, str) else None


def _plain_reading(folder: str, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, **options)


def _by_its_class(folder: str, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **options)


def _called(folder: Path, read: Callable[..., Any]) -> Any:
    try:  # code in the folder is never run; without the explicit False, transformers would ask on the terminal
        return read(str(folder), local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # tokenizers is native code: its panics are no subclass of Exception
        raise NqEdgeError(
            "NQ-TOKENIZER", f"the tokenizer of {folder} cannot be loaded: {first_line(error)}."
        ) from error
