# SPDX-License-Identifier: Apache-2.0
"""Which device a name means, and the most memory that a run took."""

from __future__ import annotations

import pytest
import torch

from nanoquant_edge.compression.execution.device import chosen_device, peak_mb
from nanoquant_edge.errors import NqEdgeError

CPU = torch.device("cpu")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_names_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert chosen_device("auto") == chosen_device("cpu") == CPU
    gpus(monkeypatch, 2)
    assert chosen_device("cpu") == CPU
    assert chosen_device("cuda:0") == torch.device("cuda", 0)
    assert chosen_device("auto") == chosen_device("cuda") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("tpu", 0, "'tpu' is not a device"),
        ("meta", 0, "'meta' is not supported"),
        ("cuda", 0, "sees no CUDA device"),
        ("cuda:2", 2, "there are 2 CUDA devices, so no 'cuda:2'"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    name: str, count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(NqEdgeError, match=message) as caught:
        chosen_device(name)
    assert caught.value.code == "NQ-OPTION"


def test_the_peak_is_that_of_this_process() -> None:
    assert 10 < peak_mb(CPU) < 1e6
