# SPDX-License-Identifier: Apache-2.0
"""The profile files: every number has a source, and what the project promises to know is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanoquant_edge.devices import profile, target_named

FILES = sorted((Path(profile.__file__).parent / "profiles").glob("*.json"))
NUMBERS = ("memory_gb", "bandwidth_gbs", "multiprocessors", "gpu_ghz", "compute_capability", "cpu", "power_modes")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_a_source(path: Path) -> None:
    family = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 8000 and family["family"]
    for name, own in family["devices"].items():
        entry = {**family["defaults"], **own}
        cited = {**family["cited"], **own.get("cited", {})}
        for key in (*NUMBERS, "reserved_gb", "software", "recognise"):
            if entry.get(key):
                assert len(family["sources"][cited[key]]) > 20, f"{name}.{key} has no source"
    used = {source for own in family["devices"].values() for source in own.get("cited", {}).values()}
    assert set(family["sources"]) == used | set(family["cited"].values())


def test_what_is_promised_is_there() -> None:
    names = "xavier-nx orin-nano-4gb orin-nano-8gb orin-nx-8gb orin-nx-16gb agx-orin-32gb agx-orin-64gb thor"
    names += " rtx-2060 rtx-3050 rtx-3060 rtx-4060 rtx-4090 rtx-5060 rtx-5090 raspberry-pi-5 x86-laptop"
    for name in names.split():
        target = target_named(name)
        assert target.memory_gb and target.bandwidth_gbs and target.dialect and target.sources
        assert target.cpu or target.multiprocessors


def test_power_modes_name_only_what_is_published() -> None:
    nano = target_named("orin-nano-8gb")
    modes = {mode.name: mode for mode in nano.power_modes}
    assert modes["15W"].bandwidth_gbs == 68 and modes["25W"].watts == 25 and modes["MAXN_SUPER"].gpu_ghz == 1.02
    assert [mode.watts for mode in nano.power_modes] == sorted(mode.watts for mode in nano.power_modes)
    assert target_named("agx-orin").power_modes[0].gpu_ghz is None


def test_a_profile_is_json_ready() -> None:
    entry = json.loads(json.dumps(target_named("orin-nano-8gb").to_dict()))
    assert entry["software"][0]["python"] == "3.10" and entry["cpu"]["cores"] == 6 and entry["flavour"] == "standard"
    assert "assumed" in entry["sources"]["reserved_gb"]
