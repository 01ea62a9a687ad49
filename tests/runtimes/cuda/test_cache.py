# SPDX-License-Identifier: Apache-2.0
"""Pages: who holds which, copies where they are shared, growth, and memory that is given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.cuda.cache import CacheForm, PagedCache
from nanoquant_edge.runtimes.cuda.device import Device, device_index

FORM = CacheForm(2, 2, 16, bits=8, page_tokens=16)


@pytest.fixture
def device(stand_in: Path) -> Iterator[Device]:
    made = Device()
    yield made
    made.close()


def filled(cache: PagedCache, page: int, value: int) -> None:
    for layer in range(FORM.layers):
        sizes = [FORM.codes, FORM.codes, FORM.scales, FORM.scales]
        cache.write_page(page, layer, [np.full(size, value, np.uint8) for size in sizes])


def test_pages_are_held_shared_and_given_back(device: Device) -> None:
    cache = PagedCache(device, FORM)
    cache.grow(6)
    one: list[int] = []
    cache.extend(one, 0, 40)
    assert len(one) == 3 and cache.free == 3
    two = cache.share(one, 33)
    assert two == one and cache.free == 3
    # Writing token 33 of the copy: the page that holds it is shared, and only that one is copied.
    assert cache.needs(two, 33, 34) == 1
    filled(cache, one[2], 7)
    cache.extend(two, 33, 34)
    assert two[:2] == one[:2] and two[2] != one[2] and cache.free == 2
    assert all((part == 7).all() for part in cache.read_page(two[2], 1))
    filled(cache, two[2], 9)
    assert all((part == 7).all() for part in cache.read_page(one[2], 0))
    cache.release(one)
    assert one == [] and cache.free == 3
    cache.release(two, 16)
    assert len(two) == 1 and cache.free == 5


def test_what_is_held_survives_growth(device: Device) -> None:
    cache = PagedCache(device, FORM)
    cache.grow(2)
    held: list[int] = []
    cache.extend(held, 0, 32)
    filled(cache, held[1], 5)
    before = cache.generation
    cache.grow(9)
    assert cache.generation > before and cache.pages == 9 and cache.free == 7
    assert all((part == 5).all() for part in cache.read_page(held[1], 1))
    described = cache.describe()
    assert len(described) == FORM.layers and described[0].pages == 9 and described[0].key_scales


def test_a_pool_that_does_not_fit_stays_as_it_was(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PagedCache(device, FORM)
    cache.grow(4)
    held: list[int] = []
    cache.extend(held, 0, 16)
    filled(cache, held[0], 3)
    monkeypatch.setenv("NQ_STAND_IN_MEMORY", str(device.held + 20_000))
    with pytest.raises(NqEdgeError) as caught:
        cache.grow(4000)
    assert caught.value.code == "NQ-MEMORY"
    assert cache.pages == 4
    assert all((part == 3).all() for part in cache.read_page(held[0], 0))
    cache.close()
    assert device.held == 0


def test_names_of_devices() -> None:
    assert [device_index(name) for name in ("cuda", "auto", "cuda:0", "cuda:12")] == [0, 0, 0, 12]
    for name in ("cuda:", "cuda:x", "cpu", "cuda:1234", "cuda:-1"):
        with pytest.raises(NqEdgeError):
            device_index(name)


def test_a_capture_that_fails_leaves_the_stream_usable(device: Device) -> None:
    memory = device.zeroed(256, "a test")
    with pytest.raises(RuntimeError), device.capturing():
        device.fill(memory.address, 1, 256)
        raise RuntimeError
    assert not device.download(memory.address, (256,), np.uint8).any()
    with device.capturing() as found:
        device.fill(memory.address, 2, 256)
    assert not device.download(memory.address, (256,), np.uint8).any()
    found[0].launch()
    assert (device.download(memory.address, (256,), np.uint8) == 2).all()
    found[0].free()
