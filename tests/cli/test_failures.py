# SPDX-License-Identifier: Apache-2.0
"""Whatever the system, a library or a path can do to a verb ends with one message, a code and status 2."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoquant_edge.cli.app import VERBS
from nanoquant_edge.errors import CATALOGUE, NqEdgeError
from nanoquant_edge.system.error_messages import explained, wants_memory
from tests.command import run
from tests.formats.support import graph_bundle

NQ_EDGE = str(Path(sys.executable).parent / "nq-edge")
ONE_MESSAGE = re.compile(r"nq-edge: \[(NQ-[A-Z-]+)\] [^\x00-\x09\x0b-\x1f\x7f-\x9f]+\n  [^\n]*\n")


class LibraryError(Exception):
    """An error type of a native library."""


LibraryError.__module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


class PanicException(BaseException):
    """What a panic in Rust becomes: no Exception at all."""


PanicException.__module__ = "pyo3_runtime"

TEXT = st.text(max_size=60)
NUMBERS = [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG, errno.EMFILE, errno.ELOOP, errno.EIO, errno.ENOMEM, 12345]
ERRORS: st.SearchStrategy[BaseException] = st.one_of(
    st.builds(OSError, st.sampled_from(NUMBERS), TEXT),
    st.builds(OSError, st.sampled_from(NUMBERS), TEXT, TEXT),
    st.builds(OSError, TEXT),
    st.builds(UnicodeEncodeError, st.just("latin-1"), TEXT, st.just(0), st.just(1), TEXT),
    st.builds(UnicodeDecodeError, st.just("utf-8"), st.binary(max_size=9), st.just(0), st.just(1), TEXT),
    *(
        st.builds(kind, TEXT)
        for kind in (
            MemoryError,
            RecursionError,
            RuntimeError,
            OverflowError,
            EOFError,
            SystemError,
            ImportError,
            LibraryError,
        )
    ),
    st.builds(PanicException, TEXT),
)


@pytest.mark.parametrize("verb", VERBS)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(error=ERRORS)
def test_every_verb_turns_what_others_raise_into_one_message(
    verb: str, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command(verb)
    def command() -> None:
        """Fail."""
        raise error

    name = f"nanoquant_edge.cli.{verb}{'_cmd' if verb == 'import' else ''}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, types.SimpleNamespace(command=command))  # type: ignore[arg-type]
        assert run(verb) == 2
    said = capsys.readouterr().err
    assert (found := ONE_MESSAGE.fullmatch(said)) is not None, said
    assert found[1] in CATALOGUE
    assert (found[1] == "NQ-MEMORY") == wants_memory(error)


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), ZeroDivisionError(), KeyboardInterrupt()])
def test_our_own_mistakes_are_not_explained_away(error: BaseException) -> None:
    assert explained(error) is None


def test_the_reason_and_the_name_are_told() -> None:
    said = explained(PermissionError(errno.EACCES, "Permission denied", b"a\xff[/y]\x1b[2J"))
    assert said is not None and said.message == "a?[/y]?[2J: Permission denied." and "permissions" in said.hint
    assert NqEdgeError("NQ-PATH", "m", "a\x1b[2J\ud800b").hint == "a?[2J?b"


@pytest.mark.parametrize(
    "text",
    [
        "std::bad_alloc",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "Failed to allocate memory for requested buffer of size 94371840",
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "Unable to allocate 9.00 GiB for an array with shape (3,) and data type float32",
    ],
)
def test_want_of_memory_is_called_so_whoever_notices_it(text: str) -> None:
    for error in (LibraryError(text), RuntimeError(text)):
        said = explained(error)
        assert said is not None and said.code == "NQ-MEMORY" and "memory" in said.hint
    outer = LibraryError("the session cannot be made")
    outer.__cause__ = RuntimeError(text)
    assert wants_memory(outer)
    blaming = NqEdgeError("NQ-MISSING", "onnxruntime cannot be imported (failed to map segment from shared object).")
    blaming.__cause__ = ImportError(text)
    said = explained(blaming)
    assert said is not None and said.code == "NQ-MEMORY" and "onnxruntime" in said.message
    assert not wants_memory(LibraryError("the graph needs opset 24"))


#: Verb -> its arguments, with OLD for a path that is read and NEW for one that is written.
CALLS: dict[str, list[str]] = {
    "compress": ["OLD", "--output", "NEW", "--preset", "quick"],
    "import": ["OLD", "--base", "OLD", "--output", "NEW"],
    "inspect": ["OLD"],
    "export": ["OLD", "--output", "NEW"],
    "build": ["OLD", "--target", "rtx-4060", "--output", "NEW"],
    "validate": ["OLD", "--against", "OLD"],
    "generate": ["OLD", "--prompt", "x"],
    "chat": ["OLD"],
    "serve": ["OLD", "--port", "0"],
    "bench": ["OLD"],
    "devices": ["fit", "OLD", "--device", "pi5"],
    "deploy": ["OLD", "--device", "pi5", "--no-wheels", "--no-native", "--output", "NEW"],
    "demo": ["--model", "OLD", "--output", "NEW"],
}


def odd_paths(folder: Path) -> dict[str, str]:
    """Paths that a shell lets through and a program may stumble over."""
    (folder / "plain").write_text("no model")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    return {
        "nothing there": str(folder / "nothing"),
        "an empty folder": str(folder / "empty"),
        "a file": str(folder / "plain"),
        "markup": str(folder / "x[") + "/y]",
        "control characters": str(folder / "a\x1b]0;title\x07\r\nb"),
        "not UTF-8": os.fsdecode(os.fsencode(folder) + b"/odd\xff\xe9"),
        "too long": str(folder / ("a" * 300)),
        "a link to itself": str(folder / "loop"),
        "a link to nowhere": str(folder / "dangling"),
        "a device": "/dev/null",
        "an empty word": "",
    }


def test_every_verb_that_takes_a_path_is_tried() -> None:
    assert set(VERBS) - set(CALLS) == {"doctor", "completion"}


@pytest.mark.parametrize("verb", CALLS)
def test_odd_paths_end_with_one_message(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bundle = graph_bundle(tmp_path / "bundle").folder
    for what, path in odd_paths(tmp_path).items():
        for words in ({"OLD": path, "NEW": str(tmp_path / "new")}, {"OLD": str(bundle), "NEW": path}):
            if "NEW" not in CALLS[verb] and words["NEW"] == path:
                continue
            status = run(verb, *(words.get(word, word) for word in CALLS[verb]))
            said = capsys.readouterr().err
            assert status == 2 or (words["NEW"] == path and status == 0), (what, said)
            assert "Traceback" not in said and "MarkupError" not in said, (what, said)
            assert status == 0 or "[NQ-" in said or "Usage:" in said, (what, said)
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", said.replace("\r", "")), (what, said)


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace", **options}
    return subprocess.run([NQ_EDGE, *arguments], check=False, **options)


OUTPUTS = [["--help"], ["--version"], ["devices"], ["devices", "show", "pi5"], ["doctor", "--json"]]


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_a_full_output_is_one_message(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = command(*arguments, stdout=full)
    assert done.returncode == 2 and ONE_MESSAGE.fullmatch(done.stderr), done.stderr
    assert "No space left" in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_closed_streams_do_no_harm(closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    done = command("devices", "show", "pi5", preexec_fn=close)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert 1 in closed or "Raspberry Pi 5" in done.stdout


def test_a_reader_that_went_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = command("devices", stdout=write)
    os.close(write)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_letters_that_the_terminal_lacks(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    name = os.fsdecode(os.fsencode(tmp_path) + "/東京é".encode() + b"\xff")
    graph_bundle(Path(name))
    for arguments in (["inspect", name], ["inspect", name, "--json"], ["doctor", "--json"], ["devices", "show", "pi5"]):
        done = command(*arguments, env=environment, encoding=encoding)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
        if "--json" in arguments:
            json.loads(done.stdout)
    shown = json.loads(command("inspect", name, "--json", env=environment, encoding=encoding).stdout)
    assert shown["folder"] == name


def limited(kind: int, value: int) -> Callable[[], None]:
    import resource

    return lambda: resource.setrlimit(kind, (value, value))


def test_few_open_files_are_one_message(tmp_path: Path) -> None:
    import resource

    bundle = graph_bundle(tmp_path / "bundle").folder
    done = command("devices", "fit", str(bundle), "-d", "pi5", preexec_fn=limited(resource.RLIMIT_NOFILE, 12))
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0 or "[NQ-" in done.stderr


def test_too_little_memory_is_called_so(tmp_path: Path) -> None:
    """The first that fails is the import of numpy, which blames the installed version in forty lines."""
    import resource

    bundle = graph_bundle(tmp_path / "bundle").folder
    little = limited(resource.RLIMIT_AS, 60 << 20)
    done = command("generate", str(bundle), "--prompt", "x", preexec_fn=little)
    assert done.returncode == 2 and ONE_MESSAGE.fullmatch(done.stderr), done.stderr
    assert "[NQ-MEMORY]" in done.stderr


def without_the_rights_of_root() -> None:
    """Root reads whatever it likes; without these two capabilities it is refused like anybody."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
@pytest.mark.parametrize(
    ("verb", "locked"),
    [
        (["inspect", "{bundle}"], "nq_bundle.json"),
        (["inspect", "{bundle}"], "."),
        (["generate", "{bundle}", "-p", "x"], "."),
        (["generate", "{bundle}", "--prompt-file", "{bundle}/model.onnx"], "model.onnx"),
        (["devices", "fit", "{bundle}", "-d", "pi5"], "."),
        (["deploy", "{bundle}", "-d", "pi5", "--no-wheels", "--output", "{bundle}-board"], "model.onnx"),
    ],
    ids=str,
)
def test_what_may_not_be_read_is_one_message(verb: list[str], locked: str, tmp_path: Path) -> None:
    bundle = graph_bundle(tmp_path / "bundle").folder
    words = [word.format(bundle=bundle) for word in verb]
    (bundle / locked).chmod(0)
    try:
        done = command(*words, preexec_fn=without_the_rights_of_root)
    finally:
        (bundle / locked).chmod(0o755)
    assert done.returncode == 2 and ONE_MESSAGE.fullmatch(done.stderr), done.stderr
    assert "ermission" in done.stderr
