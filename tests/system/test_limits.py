# SPDX-License-Identifier: Apache-2.0
"""Processors and memory of the process, not of the machine: affinity, control groups of both versions, ulimit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanoquant_edge.system.cgroup import memory_limit, processor_quota
from nanoquant_edge.system.memory import memory_available
from nanoquant_edge.system.processors import allowed_processors, default_threads, usable_processors

GIB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    """A folder with files of /proc and /sys; 16 GiB of memory, of which 12 are free."""
    files = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemAvailable: {12 << 20} kB\n", **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


#: What is written where -> (quota in processors, limit of memory, memory that is left).
TREES = {
    "no groups": ({}, None, None, 12 * GIB),
    "no limits": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None, None, 12 * GIB),
    "version 2": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/a/b/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/b/memory.stat": f"anon 7\ninactive_file {GIB}\n",
        },
        1.5,
        4 * GIB,
        2 * GIB,
    ),
    "the limit of a group above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/memory.high": f"{GIB}\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
        },
        0.5,
        GIB,
        GIB,
    ),
    "a container whose path names folders of the host": (
        {
            "proc/self/cgroup": "0::/docker/0123\n",
            "sys/fs/cgroup/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
        },
        4.0,
        2 * GIB,
        0,
    ),
    "version 1 beside version 2": (
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n",
            "sys/fs/cgroup/unified/x": "",
            "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory/m/memory.usage_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/m/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
        },
        2.0,
        8 * GIB,
        7 * GIB,
    ),
    "nonsense": (
        {"proc/self/cgroup": "\n:::\n0::/../..\nx:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "²\n"},
        None,
        None,
        12 * GIB,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_limits_of_control_groups(name: str, tmp_path: Path) -> None:
    files, quota, limit, left = TREES[name]
    root = machine(tmp_path, files)
    assert processor_quota(root) == quota
    assert memory_limit(root) == limit
    assert memory_available(root) == left


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (0.2, 1), (1.2, 1), (1.5, 2), (2.0, 2), (64.0, 4)])
def test_processors_within_a_quota(quota: float | None, threads: int, tmp_path: Path) -> None:
    limit = "max" if quota is None else f"{int(quota * 100000)}"
    root = machine(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{limit} 100000\n"})
    assert usable_processors(root, range(4)) == threads


def test_a_core_with_two_halves_gets_one_thread(tmp_path: Path) -> None:
    name = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = machine(tmp_path, {name.format(one): f"{one % 2},{one % 2 + 2}\n" for one in range(4)})
    assert usable_processors(root, range(4)) == 4
    assert default_threads(root, range(4)) == 2
    assert default_threads(root, {0, 2}) == 1
    assert default_threads(root, {7}) == 1  # no topology


def test_the_limit_of_the_address_space_counts(tmp_path: Path) -> None:
    assert memory_available(machine(tmp_path, {}), address_space=1) == 0
    assert memory_available(machine(tmp_path, {}), address_space=1 << 62) == 12 * GIB


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_the_affinity_of_this_process_counts() -> None:
    script = (
        "import os\n"
        "from nanoquant_edge.system.processors import *\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(len(allowed_processors()), usable_processors(), default_threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1"]
    assert 1 <= default_threads() <= usable_processors() <= len(allowed_processors())
