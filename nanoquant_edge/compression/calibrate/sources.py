# SPDX-License-Identifier: Apache-2.0
"""Where calibration text comes from: files and folders with weights, plain, in JSON lines, or compressed; the model."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...errors import NqEdgeError
from ...formats.corpus import join_rows

__all__ = ["CalibrationText", "OwnText", "TextSource", "read_source", "shared_out"]

#: Decompressed bytes of all files of one source; more text than any calibration reads.
_MOST_BYTES = 1 << 30
_KINDS = (".txt", ".raw", ".md", ".jsonl")
_COMPRESSED = (".xz", ".zst")
#: The source that is the model itself: self, self:2M, self:300k.
_OWN = re.compile(r"self(?::(\d{1,12}(?:\.\d{1,3})?)([kKmM]?))?")
_UNITS = {"": 1, "k": 1000, "m": 1_000_000}


@dataclass(frozen=True)
class OwnText:
    """Text that the model writes itself, when windows of it are asked for.

    Attributes:
        tokens: how many it writes at most; None for as many as are asked for.
    """

    tokens: int | None = None


@dataclass(frozen=True)
class TextSource:
    """A file or a folder of calibration text, or the model.

    Attributes:
        path: a file, or a folder whose .txt, .raw, .md and .jsonl files (also .xz or .zst) are read in order of name;
            for the model's own text only its name.
        weight: share of the windows that are drawn from it, in proportion to the other sources' weights.
        own: the model's own text, in place of a file.

    Raises:
        NqEdgeError: NQ-OPTION when the weight is not a number above 0.
    """

    path: Path
    weight: float = 1.0
    own: OwnText | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise NqEdgeError("NQ-OPTION", f"the weight of {self.path} must be above 0, not {self.weight}.")

    @classmethod
    def parse(cls, text: str) -> TextSource:
        """A source as a command line names it: PATH or PATH=WEIGHT, or self, self:2M, self:500k=0.5 for the model.

        A file of the name self is written ./self.

        Example:
            >>> TextSource.parse("notes.txt=0.5")
            TextSource(path=PosixPath('notes.txt'), weight=0.5, own=None)
            >>> TextSource.parse("self:2M").own
            OwnText(tokens=2000000)
        """
        path, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists():
            return cls(Path(text), own=_own(text))
        try:
            return cls(Path(path), float(weight), _own(path))
        except ValueError as error:
            raise NqEdgeError(
                "NQ-OPTION",
                f"{weight!r} in {text!r} is no weight.",
                "Write PATH or PATH=WEIGHT, such as notes.txt=0.5.",
            ) from error


def _own(text: str) -> OwnText | None:
    """What a name says about text of the model's own; None where it is a path."""
    match = _OWN.fullmatch(text)
    if match is None:
        if re.match(r"self:", text):
            hint = "Write self, or self:2M or self:500k for so many tokens; a file of that name is ./self:…"
            raise NqEdgeError("NQ-OPTION", f"{text!r} names no amount of text.", hint)
        return None
    return OwnText(None if match[1] is None else int(float(match[1]) * _UNITS[match[2].lower()]))


@dataclass(frozen=True)
class CalibrationText:
    """The texts of all sources.

    Attributes:
        texts: the text of each source, or that the model writes it.
        weights: of each source; equal ones where there are none.
        tokens: number of a source -> its token ids, kept by the first one who needs them; a run has one tokenizer.
    """

    texts: tuple[str | OwnText, ...]
    weights: tuple[float, ...] = ()
    tokens: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.texts))

    @classmethod
    def read(cls, sources: Sequence[TextSource]) -> CalibrationText | None:
        """Read all sources; None where there are none. Errors are those of `read_source`."""
        if not sources:
            return None
        texts = tuple(read_source(source) if source.own is None else source.own for source in sources)
        return cls(texts, tuple(source.weight for source in sources))

    @property
    def written(self) -> bool:
        """Whether the model writes any of it."""
        return any(isinstance(text, OwnText) for text in self.texts)

    @property
    def passages(self) -> str | None:
        """The first text that is there, which instructions may be about."""
        return next((text for text in self.texts if isinstance(text, str)), None)

    def digest(self) -> str:
        """Hex SHA-256 that changes with every text and weight."""
        digest = hashlib.sha256()
        for text, weight in zip(self.texts, self.weights, strict=True):
            if isinstance(text, OwnText):
                digest.update(f"{weight} own {text.tokens} ".encode())
                continue
            digest.update(f"{weight} {len(text)} ".encode())
            digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def shared_out(windows: int, weights: Sequence[float], most: Sequence[int] | None = None) -> list[int]:
    """How many of `windows` each source gives, in proportion to the weights; they add up.

    Args:
        windows: to share out.
        weights: of the sources.
        most: windows that each source has; the others give what one lacks, as long as they have any.

    Example:
        >>> shared_out(10, [1.0, 1.0, 2.0])
        [3, 2, 5]
        >>> shared_out(10, [1.0, 1.0, 2.0], [2, 9, 9])
        [2, 2, 6]
    """
    if most is not None:
        windows = min(windows, sum(most))
        given = [0] * len(weights)
        while sum(given) < windows:
            able = [index for index, there in enumerate(most) if given[index] < there]
            more = shared_out(windows - sum(given), [weights[index] for index in able])
            for index, count in zip(able, more, strict=True):
                given[index] = min(most[index], given[index] + count)
        return given
    exact = [windows * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: windows - sum(counts)]:
        counts[index] += 1
    return counts


def read_source(source: TextSource) -> str:
    """The text of a source.

    A plain text file is read as perplexity is measured: its lines are rows of a corpus (`formats.corpus.join_rows`).
    Compressed files and JSON lines are taken as they are; each line's field "text" is a document.

    Raises:
        NqEdgeError: NQ-CALIBRATION when nothing can be read, something is not UTF-8 or not JSON, or the text has more
            than 1 GiB; NQ-MISSING for .zst files without the package zstandard.
    """
    if not source.path.is_dir():
        return _text_of(source.path, _MOST_BYTES)
    names = (*_KINDS, *(f"{kind}{packed}" for kind in _KINDS for packed in _COMPRESSED))
    files = sorted(path for path in source.path.rglob("*") if path.is_file() and path.name.endswith(names))
    if not files:
        raise NqEdgeError("NQ-CALIBRATION", f"{source.path} holds no text.", f"Its files end with {', '.join(_KINDS)}.")
    left, texts = _MOST_BYTES, []
    for path in files:
        texts.append(_text_of(path, left))
        left -= len(texts[-1])
    return "\n\n".join(texts)


def _text_of(path: Path, most: int) -> str:
    name = path.name
    try:
        data = _bytes_of(path, most)
        plain = name.removesuffix(path.suffix) if path.suffix in _COMPRESSED else name
        text = data.decode("utf-8")
    except OSError as error:
        raise NqEdgeError(
            "NQ-CALIBRATION", f"cannot read {path}: {error.strerror or error}.", "Check the path."
        ) from error
    except (lzma.LZMAError, EOFError) as error:
        raise NqEdgeError("NQ-CALIBRATION", f"{path} is damaged: {error}.", "Fetch it again.") from error
    except UnicodeDecodeError as error:
        raise NqEdgeError(
            "NQ-CALIBRATION", f"{path} is not UTF-8 text ({error.reason}).", "Convert it to UTF-8."
        ) from error
    if plain.endswith(".jsonl"):
        return "\n\n".join(_documents(path, text))
    return text if path.suffix in _COMPRESSED else join_rows(text)


def _bytes_of(path: Path, most: int) -> bytes:
    """At most `most` bytes, decompressed; a file that holds more is refused before they are in memory."""
    if path.suffix == ".xz":
        with lzma.open(path) as file:
            data = file.read(most + 1)
    elif path.suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise NqEdgeError(
                "NQ-MISSING", f"reading {path} needs the package zstandard.", "Run pip install zstandard."
            ) from error
        try:
            with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as stream:
                data = stream.read(most + 1)
        except zstandard.ZstdError as error:
            raise NqEdgeError("NQ-CALIBRATION", f"{path} is damaged: {error}.", "Fetch it again.") from error
    else:
        with path.open("rb") as plain:
            data = plain.read(most + 1)
    if len(data) > most:
        raise NqEdgeError("NQ-CALIBRATION", f"{path} holds more than {most} bytes of text.", "Pass an excerpt of it.")
    return data


def _documents(path: Path, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NqEdgeError(
                "NQ-CALIBRATION", f'line {number} of {path} is no JSON object with a field "text".', "Mend or drop it."
            ) from error
        if not isinstance(document, str):
            raise NqEdgeError("NQ-CALIBRATION", f'the field "text" of line {number} of {path} is no text.')
        found.append(document)
    return found
