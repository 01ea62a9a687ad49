# SPDX-License-Identifier: Apache-2.0
"""The preflight: exact where it can be, refusing with figures, and naming what would fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nanoquant_edge.devices import TARGETS, ModelSizes, check_fit, check_host, fit_capacity
from nanoquant_edge.devices.fit import SLOTS
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.memory import memory_available

# Llama-3.2-1B at one bit a weight with a float16 table.
SIZES = ModelSizes(
    weights=650_000_000,
    layers=16,
    kv_heads=8,
    head_dim=64,
    heads=32,
    hidden=2048,
    intermediate=8192,
    vocabulary=128256,
    batch=1,
    prefill=512,
    positions=16,
    item=2,
    max_positions=131072,
    in_place=True,
)
NANO = TARGETS["jetson-orin-nano-4gb"]
BIG = replace(SIZES, weights=2_300_000_000)


def test_the_cache_is_exact() -> None:
    fit = check_fit(NANO, SIZES, capacity=2048)
    assert fit.parts["key/value cache"] == 2 * 16 * 8 * 64 * 2 * 2048 and fit.parts["weights"] == 650_000_000
    assert fit.fits and fit.needed == sum(fit.parts.values()) and fit.to_dict()["needed"] == fit.needed
    assert check_fit(NANO, replace(SIZES, batch=4), capacity=2048).parts["key/value cache"] == 4 * 134217728 / 2


def test_the_capacity_shrinks_until_it_fits() -> None:
    (fit,) = fit_capacity([NANO], BIG, wanted=None, usual=16384)
    assert 256 <= fit.capacity < 16384 and fit.capacity % SLOTS == 0 and fit.fits
    assert not check_fit(NANO, BIG, capacity=fit.capacity + SLOTS).fits
    (most,) = fit_capacity([NANO], BIG, wanted=0, usual=2048)
    assert most.capacity == fit.capacity
    (free,) = fit_capacity([TARGETS["sm_86"]], BIG, wanted=0, usual=2048)
    assert free.capacity == 131072 and free.available is None


def test_the_smallest_device_decides() -> None:
    fits = fit_capacity([TARGETS["rtx-5090"], NANO], BIG, wanted=0, usual=2048)
    assert len({fit.capacity for fit in fits}) == 1 and all(fit.fits for fit in fits)


def test_a_capacity_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(NqEdgeError) as caught:
        fit_capacity([NANO], BIG, wanted=131072, usual=2048)
    assert caught.value.code == "NQ-FIT"
    assert "at capacity 131072: weights 2300 MB, engine code 20 MB" in caught.value.message
    words = caught.value.hint.split()
    fitting = int(words[words.index("--capacity") + 1].rstrip(","))
    assert fit_capacity([NANO], BIG, wanted=fitting, usual=2048)[0].fits


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(NqEdgeError) as caught:
        fit_capacity([NANO], replace(BIG, weights=4 << 30, batch=2), wanted=None, usual=2048)
    assert caught.value.code == "NQ-FIT" and "Jetson Orin Nano 4 GB has 2792 MB" in caught.value.message
    assert "smaller --batch" in caught.value.hint and "--capacity" not in caught.value.hint
    assert "fewer bits per weight" in caught.value.hint


def test_a_capacity_beyond_the_model_is_refused() -> None:
    for capacity in (-1, 131073):
        with pytest.raises(NqEdgeError, match="is not between 1 and the model's 131072"):
            fit_capacity([NANO], SIZES, wanted=capacity, usual=2048)


def test_materialized_scores_count() -> None:
    plain = replace(SIZES, in_place=False)
    assert plain.activations(4096) - SIZES.activations(4096) == 32 * 512 * (4096 + 512) * 10


def test_the_host_is_looked_at(tmp_path: Path) -> None:
    given = {"available": 1 << 40, "free": 1 << 40}
    assert check_host(1000, 1, folder=tmp_path / "a" / "b", **given) == {
        "memory_needed": 1500 + (1 << 30),
        "memory_available": 1 << 40,
        "disk_needed": 2250 + 1 + (16 << 20),
        "disk_free": 1 << 40,
    }
    asked = check_host(1000, 1, folder=tmp_path / "a" / "b", available=1 << 40)
    assert asked["disk_free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    asked = check_host(1000, 1, folder=tmp_path, free=1 << 40)
    assert asked["memory_available"] == pytest.approx(memory_available() or -1, rel=0.5)
    with pytest.raises(NqEdgeError, match="building needs about 1224 MB of this machine's memory, 500 MB") as caught:
        check_host(100_000_000, 1, folder=tmp_path, available=500_000_000)
    assert caught.value.code == "NQ-FIT"
    with pytest.raises(NqEdgeError, match=r"needs about 242 MB, 100 MB are free there") as caught:
        check_host(100_000_000, 1, folder=tmp_path, available=1 << 40, free=100_000_000)
    assert caught.value.code == "NQ-FIT"
    assert check_host(100_000_000, 1, folder=tmp_path, builds=False, available=1 << 30)["disk_needed"] < 140_000_000
