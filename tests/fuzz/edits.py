# SPDX-License-Identifier: Apache-2.0
"""Bytes as instructions to damage an honest file.

A fuzzer that changes a file's bytes rarely gets past its outermost checks. Here its bytes are a script of edits of the
file's structure, so that each case is a nearly honest file; script byte 0 chooses raw bytes instead.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from typing import Any

__all__ = ["damaged"]

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

#: What JSON can hold and a reader may not expect.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 31, 33, 255, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**62,
    2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**40, 0.5, 1e308, -0.0, float("nan"), float("inf"),
    "", "a", "../outside", "/etc/passwd", ".", "..", "sub/../../x", "a\0b", "\ud800", "x" * 300, "link", "loop",
    "config.json", "é" * 40, "\x1b[2J", "float16", "F64", "BF16", "I32", "llama", "gemma3_text", "opt", "qwen3",
    "mistral", [], [0], [1, -1], [2**62, 2**62], [0, 2**63], {}, {"a": 1}, [[]], DEEP, ["a", "a"],
)  # fmt: skip
#: More of it: numbers that no float holds, digits of other scripts, markers, markup.
RARE: tuple[Any, ...] = (
    10**400, -(10**400), [10**400], {"a": {"b": [10**400]}}, 1e-320, "9" * 5000, "²", "٣", "1e999", "1_0", " 1",
    "*/_ORT_MEM_ADDR_/*", "a/" * 2000, "[/y]", "%s%n", "\ud800\udc00", "con", "x" * 100_000,
)  # fmt: skip
#: From this byte on, one of `RARE` is chosen.
_RARE_FROM = 224
NUMBERS = (
    0,
    1,
    2,
    7,
    31,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63,
    2**64 - 1,
)
_MOST_EDITS = 4


class _Script:
    """Reads instructions; what is missing at the end is 0."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def take(self, size: int = 1) -> int:
        piece = self.data[self.place : self.place + size]
        self.place += size
        return int.from_bytes(piece.ljust(size, b"\0"), "little")

    def rest(self, size: int) -> bytes:
        piece = self.data[self.place : self.place + size]
        self.place += size
        return piece


def damaged(seed: bytes, kind: str, script: bytes) -> bytes:
    """A damaged copy of a file.

    Args:
        seed: the honest file.
        kind: "json", "safetensors" (a JSON header before data), "zip" (the members of a torch archive), "onnx" or
            "bytes".
        script: from a fuzzer. Its first byte: 0 to 31 raw, the file is the rest; 32 to 95 edits of bytes; others edits
            of the structure.
    """
    steps = _Script(script)
    mode = steps.take()
    if mode < 32:
        return script[1:]
    if mode < 96 or kind == "bytes":
        return _bytes(seed, steps)
    return {"json": _json, "safetensors": _safetensors, "zip": _zip, "onnx": _onnx}[kind](seed, steps)


def _bytes(seed: bytes, steps: _Script) -> bytes:
    data = bytearray(seed)
    for _ in range(1 + steps.take() % _MOST_EDITS):
        if steps.left < 1 or not data:
            break
        what, place = steps.take() % 8, steps.take(3) % len(data)
        if what == 0:
            data[place] = steps.take()
        elif what in (1, 2):
            size = 4 if what == 1 else 8
            number = NUMBERS[steps.take() % len(NUMBERS)] & ((1 << 8 * size) - 1)
            data[place : place + size] = number.to_bytes(size, "little")
        elif what == 3:
            del data[place:]
        elif what == 4:
            del data[place : place + steps.take()]
        elif what == 5:
            data[place:place] = steps.rest(steps.take() % 16)
        elif what == 6:
            data[place] ^= 1 << steps.take() % 8
        else:
            source = steps.take(3) % len(data)
            data[place:place] = data[source : source + steps.take()]
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found, open_ = [], [value]
    while open_:
        container = open_.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                open_.append(container[key])
    return found


def _hostile(choice: int) -> Any:
    return HOSTILE[choice % len(HOSTILE)] if choice < _RARE_FROM else RARE[choice % len(RARE)]


def _edit_json(document: Any, steps: _Script) -> Any:
    for _ in range(1 + steps.take() % _MOST_EDITS):
        places = _places(document) if isinstance(document, dict | list) else []
        if steps.left < 1 or not places:
            break
        what, (container, key) = steps.take() % 8, places[steps.take(2) % len(places)]
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, dict):
            container[str(steps.rest(4), "latin-1")] = container.pop(key)
        elif what == 2 and isinstance(container[key], int):
            container[key] += steps.take() - 128
        elif what == 3 and isinstance(container[key], str):
            container[key] += str(steps.rest(steps.take() % 8), "latin-1")
        else:
            container[key] = copy.deepcopy(_hostile(steps.take()))
    return document


def _json(seed: bytes, steps: _Script) -> bytes:
    return json.dumps(_edit_json(json.loads(seed), steps)).encode("utf-8", "surrogatepass")


def _safetensors(seed: bytes, steps: _Script) -> bytes:
    (length,) = struct.unpack("<Q", seed[:8])
    cut = steps.take() % 8
    header = json.dumps(_edit_json(json.loads(seed[8 : 8 + length]), steps)).encode()
    data = seed[8 + length :]
    return struct.pack("<Q", len(header) + (1 if cut == 7 else 0)) + header + (data[:-3] if cut == 6 else data)


def _zip(seed: bytes, steps: _Script) -> bytes:
    """The members rewritten with right checksums, one of them damaged."""
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    pickle = next(name for name in names if name.endswith("data.pkl"))
    chosen = pickle if steps.take() < 160 else names[steps.take() % len(names)]
    members[chosen] = _bytes(members[chosen], steps)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def _onnx(seed: bytes, steps: _Script) -> bytes:
    """Attributes, dimensions, types, names and external places of a model, edited as what they are."""
    import onnx

    model = onnx.load_from_string(seed)
    own = [node for node in model.graph.node if node.domain == "com.nanoquant"] or list(model.graph.node)
    for _ in range(1 + steps.take() % _MOST_EDITS):
        if steps.left < 1:
            break
        what = steps.take() % 8
        node = own[steps.take() % len(own)]
        tensor = model.graph.initializer[steps.take() % len(model.graph.initializer)]
        number = NUMBERS[steps.take() % len(NUMBERS)]
        number = number - (1 << 64) if number >= 1 << 63 else number
        if what == 0 and node.attribute:
            node.attribute[steps.take() % len(node.attribute)].i = number
        elif what == 1 and tensor.dims:
            tensor.dims[steps.take() % len(tensor.dims)] = number
        elif what == 2 and tensor.external_data:
            entry = tensor.external_data[steps.take() % len(tensor.external_data)]
            text = str(_hostile(steps.take()))[:400]
            entry.value = text.encode("utf-8", "replace").decode()
        elif what == 3:
            tensor.data_type = steps.take() % 32
        elif what == 4 and node.input:
            del node.input[steps.take() % len(node.input)]
        elif what == 5 and node.input:
            node.input[steps.take() % len(node.input)] = tensor.name
        elif what == 6 and node.attribute:
            del node.attribute[steps.take() % len(node.attribute)]
        elif what == 7:
            tensor.raw_data = tensor.raw_data[: steps.take()]
    return model.SerializeToString()
