# SPDX-License-Identifier: Apache-2.0
"""From the files to the device: bytes are read into one pinned buffer and copied on while the next ones are read.

No file is mapped, so what a loading process holds of the host's memory is that buffer. Sign words become tiles on the
device, 16-bit tables change their type there, and norms of Gemma get the one that they are stored without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from ctypes import byref

import numpy as np
from numpy.typing import NDArray

from ...errors import NqEdgeError
from ...formats.checkpoint import TABLE_FORMATS
from ...formats.checkpoint.table import pack_codes, quantize_rows
from ...formats.stored_tensor import StoredTensor
from ...models import DecoderConfig
from ...models.rotary import frequencies
from .binding import check
from .device import Device, Memory
from .model_files import LayerFiles, ModelFiles, TableFiles
from .number_types import C_TYPES, SPELLING, from_float32, to_float32
from .table_types import CEmbedding, CTable
from .weights import Placing, Weights, place_weights, residual_scale, rotaries, table_form

__all__ = ["STAGING_BYTES", "load_weights", "staging_bytes"]

#: Of each of the two halves of the pinned buffer.
_HALF = 16 << 20
#: Of device memory in which a piece of a table waits to be converted.
STAGING_BYTES = 32 << 20


def staging_bytes(files: ModelFiles) -> int:
    """Device memory that loading takes beside the weights."""
    words = [layer.parts[part].size for layer in files.layers.values() for part in ("v_packed", "u_packed")]
    return max(STAGING_BYTES, *words)


def load_weights(device: Device, files: ModelFiles, *, placing: Placing, dtype: str, table: str | None) -> Weights:
    """Bring a model's weights onto the device.

    Args:
        device: the GPU.
        files: the model.
        placing: of `place_weights`, with the same `table`.
        dtype: of activations, "float16" or "bfloat16".
        table: see `weights.table_form`.

    Raises:
        NqEdgeError: NQ-CKPT for files that end early, NQ-MEMORY, NQ-CUDA.
    """
    assert place_weights(files, table).size == placing.size
    memory = device.allocate(placing.size, "the model's weights")
    staging = device.allocate(staging_bytes(files), "loading")
    loader = _Loader(device, placing, memory, staging)
    try:
        for name, layer in files.layers.items():
            loader.layer(name, layer, files.scale_type)
        for module, stored in files.tables.items():
            if f"{module}.codes" in placing.places:
                learned = module == files.config.structure.positions
                loader.table(module, stored, None if learned else table, SPELLING[dtype])
        scale, behind = residual_scale(files.config, dtype), _norms_behind(files.config)
        for name, vector in files.vectors.items():
            loader.norm(name, vector, plus_one=name in files.plus_one, scale=scale if name in behind else 1.0)
        for index, rotary in enumerate(rotaries(files)):
            loader.put(frequencies(rotary, files.config.head_dim), placing.at(memory.address, f"frequencies.{index}"))
        device.synchronize()  # kernels may read constants ahead of stream order (nq_cuda.h)
    except BaseException:
        memory.free()
        raise
    finally:
        loader.close()
        staging.free()
    return Weights(files, placing, memory=memory, dtype=dtype, table=table)


def _norms_behind(config: DecoderConfig) -> frozenset[str]:
    """Weights of the norms whose results are added to the residual."""
    family = config.structure
    parts = [part for part in (family.attention_out_norm, family.feed_out_norm) if part]
    return frozenset(f"{family.blocks}.{b}.{part}.weight" for b in range(config.num_layers) for part in parts)


class _Loader:
    """Reads parts of files and enqueues what brings them to their places."""

    def __init__(self, device: Device, placing: Placing, memory: Memory, staging: Memory) -> None:
        self._device, self._placing, self._base, self._staging = device, placing, memory.address, staging
        self._pinned = device.pinned(2 * _HALF)
        self._half, self._used = 0, 0
        self._events = [device.event() for _ in range(2)]
        self._pending = [False, False]
        self._files: dict[str, int] = {}

    def close(self) -> None:
        """Give back the buffer, the events and the open files."""
        self._device.synchronize()
        for event in self._events:
            event.free()
        for handle in self._files.values():
            os.close(handle)
        self._pinned.free()

    def layer(self, name: str, layer: LayerFiles, scale_type: str) -> None:
        """Signs to tiles, scales and bias to one type."""
        shapes = {"v_packed": (layer.rank, layer.in_features), "u_packed": (layer.out_features, layer.rank)}
        for part, stored in layer.parts.items():
            place = self._place(f"{name}.{part}")
            if part not in shapes:
                self._vector(stored, scale_type, place)
            elif layer.tiled:
                self._copy(stored, 0, stored.size, place)
            else:
                self._copy(stored, 0, stored.size, self._staging.address)
                arguments = (self._staging.address, *shapes[part], place)
                self._device.call("nq_cuda_make_tiles", *arguments, self._device.stream)

    def table(self, module: str, table: TableFiles, wanted: str | None, kind: str) -> None:
        """A table in the form that it is held in."""
        form, codes = table_form(table, wanted), self._place(f"{module}.codes")
        if table.scales is not None or (form.bits == 16 and table.codes.dtype == kind):
            self._copy(table.codes, 0, table.codes.size, codes)
            if table.scales is not None:
                self._copy(table.scales, 0, table.scales.size, self._place(f"{module}.scales"))
        elif form.bits == 16 and table.codes.dtype != "F32":
            self._convert(table, codes, kind)
        else:
            scales = self._place(f"{module}.scales") if form.groups else 0
            self._round(table, wanted, codes, scales, kind)

    def norm(self, name: str, stored: StoredTensor, *, plus_one: bool, scale: float = 1.0) -> None:
        """A norm's weight or bias, float32, with a factor."""
        numbers = to_float32(self._read_whole(stored), stored.dtype)
        self.put((numbers + np.float32(plus_one)) * np.float32(scale), self._place(name))

    def put(self, array: NDArray[np.generic], place: int) -> None:
        """An array of the host, through the pinned buffer."""
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        for begin in range(0, data.size, _HALF):
            piece = data[begin : begin + _HALF]
            offset = self._take(piece.size)
            self._pinned.bytes[offset : offset + piece.size] = piece
            self._device.copy(place + begin, self._pinned.address + offset, piece.size)

    def _place(self, name: str) -> int:
        return self._placing.at(self._base, name)

    def _vector(self, stored: StoredTensor, kind: str, place: int) -> None:
        if stored.dtype == kind:
            self._copy(stored, 0, stored.size, place)
        else:
            self.put(from_float32(to_float32(self._read_whole(stored), stored.dtype), kind), place)

    def _convert(self, table: TableFiles, codes: int, kind: str) -> None:
        """A 16-bit table of the other type: the device looks up every row of a piece and writes it in its own type."""
        rows, columns = table.shape
        step = max(1, (self._staging.size - (1 << 20)) // (2 * columns))
        step = min(step, rows, (1 << 20) // 8 - 32)
        tokens = self._staging.address + self._staging.size - (1 << 20)
        self.put(np.arange(step, dtype=np.int64), tokens)
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            self._copy(table.codes, 2 * begin * columns, 2 * count * columns, self._staging.address)
            piece = CTable(
                rows=count,
                columns=columns,
                group=columns,
                bits=16,
                type=C_TYPES[table.codes.dtype],
                codes=self._staging.address,
            )
            lookup = CEmbedding(
                table=piece,
                type=C_TYPES[kind],
                multiplier=1.0,
                count=count,
                tokens=tokens,
                out=codes + 2 * begin * columns,
                out_stride=columns,
            )
            check(self._device.library.nq_cuda_embed(byref(lookup), self._device.stream), "converting a table")

    def _round(self, table: TableFiles, wanted: str | None, codes: int, scales: int, kind: str) -> None:
        """A table of plain numbers into codes, or float32 into 16 bits, on the host and a piece at a time."""
        rows, columns = table.shape
        form = TABLE_FORMATS.get(wanted or "")
        step = max(1, (8 << 20) // (4 * columns))
        width = table.codes.size // rows
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            data = self._read(table.codes, begin * width, count * width)
            numbers = to_float32(data, table.codes.dtype).reshape(count, columns)
            if not np.isfinite(numbers).all():
                raise NqEdgeError("NQ-NUMERIC", "the embedding holds NaN or infinity.")
            if form is None:
                self.put(from_float32(numbers, kind), codes + 2 * begin * columns)
                continue
            entries, factors = quantize_rows(numbers, form)
            packed = pack_codes(entries, form)
            self.put(packed, codes + begin * packed.shape[1])
            self.put(factors, scales + 2 * begin * factors.shape[1])

    def _copy(self, stored: StoredTensor, begin: int, size: int, place: int) -> None:
        """Bytes [begin, begin + size) of a tensor to the device."""
        for start, length in _pieces(size):
            offset = self._take(length)
            self._fill(stored, begin + start, offset, length)
            self._device.copy(place + start, self._pinned.address + offset, length)

    def _read(self, stored: StoredTensor, begin: int, size: int) -> NDArray[np.uint8]:
        """Bytes of a tensor, for the host."""
        data = np.empty(size, np.uint8)
        self._read_into(stored, begin, data.data)
        return data

    def _read_whole(self, stored: StoredTensor) -> NDArray[np.uint8]:
        return self._read(stored, 0, stored.size)

    def _fill(self, stored: StoredTensor, begin: int, offset: int, size: int) -> None:
        self._read_into(stored, begin, self._pinned.bytes.data[offset : offset + size])

    def _read_into(self, stored: StoredTensor, begin: int, target: memoryview) -> None:
        handle = self._open(stored)
        position = stored.offset + begin
        while target:
            count = os.preadv(handle, [target], position)
            if count == 0:
                raise NqEdgeError("NQ-CKPT", f"{stored.path} ends before its tensors do.", "Copy it again.")
            target, position = target[count:], position + count

    def _open(self, stored: StoredTensor) -> int:
        path = str(stored.path)
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise NqEdgeError("NQ-CKPT", f"cannot read {path}: {error.strerror}.") from error
        return self._files[path]

    def _take(self, size: int) -> int:
        """Room in the pinned buffer: its offset. Waits where the copies out of that half are not done."""
        if self._used + size > _HALF:
            self._events[self._half].record()
            self._pending[self._half] = True
            self._half, self._used = 1 - self._half, 0
            if self._pending[self._half]:
                self._events[self._half].wait()
        offset = self._half * _HALF + self._used
        self._used += -(-size // 64) * 64
        return offset


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Where pieces of a size begin, and their lengths."""
    for start in range(0, size, _HALF):
        yield start, min(_HALF, size - start)
