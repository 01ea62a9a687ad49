# SPDX-License-Identifier: Apache-2.0
"""A deployment folder for an aarch64 board, executed in an emulated Debian: minutes, and a mirror the first time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nanoquant_edge.deploy import deploy
from nanoquant_edge.devices import target_named
from nanoquant_edge.exporters.onnx import export_onnx
from nanoquant_edge.runtimes import Generator
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
#: Where the emulated machine is unpacked, once.
WORK = Path(os.environ.get("NQ_EDGE_EMULATED_WORK", ROOT / "build" / "emulated-deploy"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_folder_runs_in_an_emulated_machine(tmp_path: Path) -> None:
    needed = ("apt-get", "dpkg-deb", "unshare", "aarch64-linux-gnu-g++", "cmake")
    missing = [name for name in needed if shutil.which(name) is None]
    probe = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "binfmt_misc",
        "none",
        "/proc/sys/fs/binfmt_misc",
    ]
    if missing or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(f"needs {', '.join(missing) or 'a kernel with binfmt_misc in user namespaces'}")
    export_onnx(tiny_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle")
    deploy(tmp_path / "bundle", target_named("raspberry-pi-5"), output=tmp_path / "board")
    script = ROOT / "tests/deploy/emulated_deploy.sh"
    done = subprocess.run([script, tmp_path / "board", WORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with Generator.from_bundle(tmp_path / "bundle") as generator:
        assert generator.generate("The capital of France is", max_new_tokens=8).ids == found["ids"]
