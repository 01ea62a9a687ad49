# SPDX-License-Identifier: Apache-2.0
"""The work memory of a model on the device, and the small arrays that go to it with every call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models import DecoderConfig
from .decoder import Buffers, Decoder, Lanes
from .device import Device, aligned
from .passes import Rows, Scratch
from .plan import MAIL_SLOTS, Work
from .weights import Placing

__all__ = ["Workspace"]

#: What the host writes before a call, in the order in which it lies; `tokens` last of those that every call needs.
_INPUTS = ("positions", "starts", "tokens", "ends", "page_table")
_TYPES = {"positions": np.int64, "starts": np.int32, "tokens": np.int64, "ends": np.int32, "page_table": np.int32}


class Workspace:
    """Everything beside weights and cache, in one piece of memory.

    Args:
        device: the GPU.
        decoder: the model.
        work: sizes.

    Attributes:
        work: as given.
        buffers: activations.
        host: name -> the host's side of an input: positions int64, starts int32, tokens int64, ends int32 and
            page_table int32, flat. What is written there reaches the device by `send`.
        result: float32 [logit_rows, vocab_size] of the host, for logits.
        mail: int64 [MAIL_SLOTS, sequences] of the host, for chosen tokens; `post` sends them there.
    """

    def __init__(self, device: Device, decoder: Decoder, work: Work) -> None:
        self._device, self.work = device, work
        self._placing = Placing()
        for name in (*_INPUTS, *(name for name in work.parts if name not in _INPUTS)):
            self._placing.add(name, work.parts[name])
        self._memory = device.zeroed(self._placing.size, "working")
        self.buffers = self._buffers(decoder.config, decoder)
        inputs = self._placing.places["page_table"]
        self._mail_offset = aligned(inputs[0] + inputs[1])
        self._pinned = device.pinned(self._mail_offset + work.parts["mail"])
        self.mail: NDArray[np.int64] = self._pinned.view(np.int64, self._mail_offset, work.parts["mail"] // 8).reshape(
            MAIL_SLOTS, -1
        )
        self._events = [device.event() for _ in range(MAIL_SLOTS)]
        self._logits = device.pinned(work.parts["logits"])
        self.host: dict[str, NDArray[Any]] = {
            name: self._pinned.view(_TYPES[name], offset, size // np.dtype(_TYPES[name]).itemsize)
            for name, (offset, size) in self._placing.places.items()
            if name in _INPUTS
        }
        shape = (work.logit_rows, decoder.config.vocab_size)
        self.result: NDArray[np.float32] = self._logits.view(np.float32, 0, shape[0] * shape[1]).reshape(shape)

    def _buffers(self, config: DecoderConfig, decoder: Decoder) -> Buffers:
        def scratch(name: str) -> Scratch:
            return Scratch(self.address(name), self._placing.places[name][1])

        return Buffers(
            rows=self.work.rows,
            hidden=Rows(self.address("hidden"), config.hidden_size),
            spare=Rows(self.address("spare"), config.hidden_size),
            wide=Rows(self.address("wide"), decoder.wide_width),
            scratch=scratch("scratch"),
            attention=scratch("attention"),
            head=scratch("head"),
        )

    @property
    def size(self) -> int:
        """Bytes of device memory."""
        return self._memory.size

    def address(self, name: str) -> int:
        """Where a part lies on the device."""
        return self._placing.at(self._memory.address, name)

    def bytes_of(self, name: str) -> int:
        """Bytes of a part."""
        return self._placing.places[name][1]

    def lanes(self, sequences: int, stride: int, *, ragged: bool) -> Lanes:
        """The sequences of a call, whose inputs lie here."""
        return Lanes(
            sequences=sequences,
            tokens=self.address("tokens"),
            positions=self.address("positions"),
            starts=self.address("starts") if ragged else 0,
            page_table=self.address("page_table"),
            stride=stride,
        )

    def send(self, first: str, last: str, count: int) -> None:
        """Enqueue the inputs from `first` on, up to `count` numbers of `last`."""
        begin = self._placing.places[first][0]
        end = self._placing.places[last][0] + count * np.dtype(_TYPES[last]).itemsize
        self._device.copy(self._memory.address + begin, self._pinned.address + begin, end - begin)

    def fetch_logits(self, rows: int) -> NDArray[np.float32]:
        """The first rows of logits, once everything is done; valid until the next call."""
        width = self.result.shape[1]
        self._device.copy(self._logits.address, self.address("logits"), 4 * rows * width)
        self._device.synchronize()
        return self.result[:rows]

    def post(self, slot: int, sequences: int) -> None:
        """Enqueue the copy of the first sequences' tokens into a row of `mail`."""
        place = self._pinned.address + self._mail_offset + slot * self.mail.shape[1] * 8
        self._device.copy(place, self.address("tokens"), 8 * sequences)
        self._events[slot].record()

    def received(self, slot: int, sequences: int) -> NDArray[np.int64]:
        """A row of `mail`, once it is there; a copy."""
        self._events[slot].wait()
        return self.mail[slot, :sequences].copy()

    def close(self) -> None:
        """Give back all memory."""
        self._device.synchronize()
        self.mail = np.zeros((0, 0), np.int64)
        for event in self._events:
            event.free()
        self._memory.free()
        self._pinned.free()
        self._logits.free()
