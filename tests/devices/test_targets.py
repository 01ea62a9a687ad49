# SPDX-License-Identifier: Apache-2.0
"""Targets are found by the names people use, and say which TensorRT serves them."""

from __future__ import annotations

import pytest

from nanoquant_edge.devices.targets import RTX_CAPABILITIES, TARGETS, target_named, targets_named
from nanoquant_edge.errors import NqEdgeError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("rtx-4060", "rtx-4060"),
        ("RTX 4060", "rtx-4060"),
        ("rtx4070-ti", "rtx-4070-ti"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("sm_86", "sm_86"),
        ("sm86", "sm_86"),
        ("sm-90a", "sm_90"),
        ("jetson-orin-nano-8gb", "jetson-orin-nano-8gb"),
        ("jetson-orin-nano", "jetson-orin-nano-8gb"),
        ("orin-nx-16", "jetson-orin-nx-16gb"),
        ("agx-orin-64gb", "jetson-agx-orin-64gb"),
        ("agx-thor", "jetson-agx-thor"),
        ("thor", "jetson-agx-thor"),
        ("xavier-nx", "jetson-xavier-nx-8gb"),
        ("pi5", "raspberry-pi-5-8gb"),
        ("raspberry-pi-5-4", "raspberry-pi-5-4gb"),
    ],
)
def test_names_that_people_use(spelling: str, name: str) -> None:
    assert target_named(spelling).name == name


@pytest.mark.parametrize(("name", "hint"), [("rtx-4061", "rtx-4060"), ("jetson-nano", "jetson-"), ("###", "Known:")])
def test_an_unknown_name_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        target_named(name)
    assert caught.value.code == "NQ-TARGET" and name in caught.value.message and hint in caught.value.hint


def test_every_target_is_plausible() -> None:
    for name, target in TARGETS.items():
        assert target.name == name == target_named(name).name and target.title
        assert (target.flavour == "rtx") == (target.compute_capability in RTX_CAPABILITIES)
        assert (target.flavour == "none") == (target.backend == "onnxruntime")
        if name.startswith("sm_"):
            assert target.memory_bytes is None and name[3:] == target.compute_capability.replace(".", "")
        else:
            assert target.memory_gb and 4 <= target.memory_gb <= 141 and 15 <= (target.bandwidth_gbs or 0) <= 5000
            assert 1 << 30 < (target.memory_bytes or 0) < target.memory_gb * (1 << 30)
            assert target.sources["memory_gb"] and target.power_modes
        assert name.startswith("jetson") == bool(target.jetpack) and (not target.jetpack or target.unified)
    assert not TARGETS["sm_75"].bfloat16 and TARGETS["sm_80"].bfloat16 and TARGETS["sm_110"].bfloat16
    assert not TARGETS["raspberry-pi-5-8gb"].bfloat16


def test_several_targets_for_one_engine() -> None:
    found = targets_named(("rtx-3060,sm_89", "rtx-5090", "rtx-3060"))
    assert [target.name for target in found] == ["rtx-3060", "sm_89", "rtx-5090"]
    assert [target.name for target in targets_named(("sm_87", "jetson-orin-nano"))] == ["sm_87", "jetson-orin-nano-8gb"]
    for names, message in (
        (("rtx-3060", "jetson-orin-nano"), "jetson-orin-nano-8gb needs an engine of its own"),
        (("jetson-agx-thor", "sm_87"), "jetson-agx-thor needs an engine of its own"),
        ((",",), "no target is named"),
        (("raspberry-pi-5",), "raspberry-pi-5-8gb has no GPU that our TensorRT plugin serves"),
    ):
        with pytest.raises(NqEdgeError, match=message) as caught:
            targets_named(names)
        assert caught.value.code == "NQ-TARGET"
