# SPDX-License-Identifier: Apache-2.0
"""Boards are known by their device tree, cards by their name, anything else by /proc."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanoquant_edge.devices.recognise import Nvidia, describe_machine, recognise, this_target

ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nprocessor\t: 1\nFeatures\t: fp asimd asimddp\n"
X86 = "processor\t: 0\nmodel name\t: A Processor\ncpu MHz\t\t: 3100.5\nflags\t\t: fpu avx2 avx512f avx512bw\n"


def machine(tmp_path: Path, compatible: str = "", cpuinfo: str = ARM, kilobytes: int = 8 << 20) -> Path:
    for name, text in {
        "proc/device-tree/compatible": compatible.replace("|", "\0"),
        "proc/cpuinfo": cpuinfo,
        "proc/meminfo": f"MemTotal:       {kilobytes} kB\nMemFree: 1 kB\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("compatible", "name"),
    [
        ("nvidia,p3768-0000+p3767-0005-super|nvidia,p3767-0005|nvidia,tegra234|", "jetson-orin-nano-8gb"),
        ("nvidia,p3768-0000+p3767-0000|nvidia,tegra234|", "jetson-orin-nx-16gb"),
        ("nvidia,p3737-0000+p3701-0005|nvidia,tegra234|", "jetson-agx-orin-64gb"),
        ("nvidia,p4071-0000+p3834-0008|nvidia,tegra264|", "jetson-agx-thor"),
        ("nvidia,p3509-0000+p3668-0000|nvidia,tegra194|", "jetson-xavier-nx-8gb"),
        ("raspberrypi,5-model-b|brcm,bcm2712|", "raspberry-pi-5-8gb"),
    ],
)
def test_boards(tmp_path: Path, compatible: str, name: str) -> None:
    found = describe_machine(machine(tmp_path, compatible), gpus=())
    assert recognise(found) is not None and this_target(found).name == name
    assert found.isa == "neon" and found.cores == 2


def test_the_jetson_linux_release(tmp_path: Path) -> None:
    machine(tmp_path, "nvidia,p3767-0005|")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
    assert describe_machine(tmp_path, gpus=()).l4t == "36.4.3"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("NVIDIA GeForce RTX 4060", "rtx-4060"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060"),
        ("NVIDIA GeForce RTX 3050", "rtx-3050"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_cards(tmp_path: Path, name: str, target: str) -> None:
    found = describe_machine(machine(tmp_path, cpuinfo=X86), gpus=(Nvidia(name, "8.9", 8 << 30, "580.1"),))
    assert this_target(found).name == target and found.isa == "avx512" and found.ghz == 3.1


def test_an_unknown_pc_is_described_from_proc(tmp_path: Path) -> None:
    gpu = Nvidia("NVIDIA Something New", "13.0", 0, "600")
    found = describe_machine(machine(tmp_path, cpuinfo=X86, kilobytes=16 << 20), gpus=(gpu,))
    target = this_target(found)
    assert recognise(found) is None and target.name == "this" and target.title == "A Processor"
    assert target.memory_gb == 16 and target.cpu is not None and target.cpu.isa == "avx512"
    assert "assumed" in target.sources["bandwidth_gbs"] and target.flavour == "none"


def test_an_empty_machine_and_this_one(tmp_path: Path) -> None:
    assert this_target(describe_machine(tmp_path, gpus=())).cpu is not None
    assert this_target().memory_gb


def test_what_this_process_may_use_counts(tmp_path: Path) -> None:
    """A container with one and a half processors and 2 GiB on a board and on a PC; a card's memory is its own."""
    machine(tmp_path, "nvidia,p3767-0000|")
    for name, text in {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "110000 100000\n",
        "sys/fs/cgroup/memory.max": f"{2 << 30}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    board = describe_machine(tmp_path, gpus=())
    assert (board.cores, board.usable_cores, board.memory, board.memory_limit) == (2, 1, 8 << 30, 2 << 30)
    for found in (board, replace(board, compatible=())):
        target = this_target(found)
        assert target.memory_bytes == 2 << 30 and target.cpu is not None and target.cpu.cores == 1
        assert len(target.notes) >= 2 and "limit" in target.sources["memory_gb"]
    card = replace(board, compatible=(), gpus=(Nvidia("NVIDIA GeForce RTX 4060", "8.9", 8 << 30, "580.1"),))
    assert this_target(card).memory_gb == 8
    assert this_target(replace(board, memory_limit=64 << 30)).memory_gb == 16
