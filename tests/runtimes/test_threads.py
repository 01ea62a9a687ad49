# SPDX-License-Identifier: Apache-2.0
"""Several threads and one model: on every backend a text is what it is alone, or the documented error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.runtimes import Generator, OnnxRuntimeBackend, SamplingConfig, load_tokenizer

LONG = "The quick brown fox jumps over the lazy dog. " * 4
KINDS = ["onnxruntime", "tensorrt", "cuda"]


@pytest.fixture(params=KINDS)
def open_one(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> Callable[[], Any]:
    """Opens the same tiny model on a backend, one more at each call."""

    def onnxruntime() -> Any:
        return OnnxRuntimeBackend(Bundle.open(tiny_bundle), threads=1)

    def cuda() -> Any:
        from nanoquant_edge.runtimes.cuda.backend import CudaBackend

        request.getfixturevalue("stand_in")
        return CudaBackend.from_checkpoint(tiny_bundle.parent / "checkpoint")

    def tensorrt() -> Any:
        from nanoquant_edge.exporters.onnx import export_onnx
        from nanoquant_edge.runtimes.tensorrt import TensorRTBackend
        from tests.runtimes.tensorrt.conftest import write_engine_bundle
        from tests.runtimes.tensorrt.imitation import HostDevice, OrtEngine

        graph = tmp_path / "graph"
        if not graph.exists():
            export_onnx(tiny_bundle.parent / "checkpoint", graph, dialect="onnx24")
            write_engine_bundle(graph, tmp_path / "engine")

        def opener(bundle: Bundle, **_options: Any) -> tuple[HostDevice, OrtEngine]:
            device = HostDevice()
            return device, OrtEngine(device, bundle, graph)

        return TensorRTBackend(Bundle.open(tmp_path / "engine"), opener=opener)

    return {"onnxruntime": onnxruntime, "cuda": cuda, "tensorrt": tensorrt}[request.param]


@pytest.fixture
def generator(open_one: Callable[[], Any], tiny_bundle: Path) -> Iterator[Generator]:
    with Generator(open_one(), load_tokenizer(tiny_bundle)) as made:
        yield made


def _together(*works: Callable[[], None]) -> list[BaseException]:
    """Run functions at once, and return what they raised."""
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
        assert not thread.is_alive()
    return raised


def test_texts_of_many_threads_are_right_or_refused(generator: Generator) -> None:
    def text(seed: int) -> list[int]:
        sampling = SamplingConfig(temperature=3.0, seed=seed)
        return generator.generate(LONG[: 20 + 7 * seed], max_new_tokens=6, sampling=sampling).ids

    alone = [text(seed) for seed in range(4)]
    finished, wrong, refused = [], [], []

    def work(seed: int) -> None:
        for _ in range(12):
            try:
                ids = text(seed)
            except NqEdgeError as error:
                refused.append(error)
                continue
            finished.append(seed)
            if ids != alone[seed]:
                wrong.append((seed, ids))

    assert _together(*(lambda seed=seed: work(seed) for seed in range(4))) == []  # type: ignore[misc]
    assert wrong == []
    assert finished and {error.code for error in refused} <= {"NQ-OPTION"}
    assert all("another text was started" in error.message for error in refused)


class _Slow:
    """A backend that takes its time, and says when it is entered while it computes."""

    name, kernel, vocab_size, max_context, capacity = "slow", "none", 320, 256, 0

    def __init__(self) -> None:
        self.extra: dict[str, np.ndarray] = {}
        self.fed: list[int] = []
        self.busy, self.faults = False, []  # type: ignore[var-annotated]

    def _compute(self, what: str) -> None:
        if self.busy:
            self.faults.append(what)
        self.busy = True
        time.sleep(0.002)
        self.busy = False

    def forward(self, ids: np.ndarray, *_rest: object) -> np.ndarray:
        self._compute("forward")
        self.fed += ids[0].tolist()
        logits = np.zeros((1, 1, self.vocab_size), np.float32)
        logits[0, 0, (sum(self.fed) + 7) % self.vocab_size] = 9  # each token depends on all before it
        return logits

    def reset(self) -> None:
        self._compute("reset")
        self.fed = []

    def close(self) -> None:
        self._compute("close")


def test_nothing_enters_a_backend_while_it_computes(tiny_bundle: Path) -> None:
    backend = _Slow()
    generator = Generator(backend, load_tokenizer(tiny_bundle))  # type: ignore[arg-type]
    alone = {prompt: generator.generate(prompt, max_new_tokens=8).ids for prompt in ("The", "A fox", "dog")}
    wrong: list[str] = []

    def work(prompt: str) -> None:
        for _ in range(15):
            try:
                if generator.generate(prompt, max_new_tokens=8).ids != alone[prompt]:
                    wrong.append(prompt)
            except NqEdgeError as error:
                assert error.code == "NQ-OPTION"

    def close() -> None:
        time.sleep(0.2)
        generator.close()

    assert _together(*(lambda prompt=prompt: work(prompt) for prompt in alone), close) == []  # type: ignore[misc]
    assert (backend.faults, wrong) == ([], [])


def test_the_later_text_ends_the_earlier_one(generator: Generator) -> None:
    first = generator.stream(LONG, max_new_tokens=20)
    next(first)
    expected = generator.generate("The", max_new_tokens=5).ids
    with pytest.raises(NqEdgeError, match="another text was started"):
        list(first)
    # A text that was overtaken before its first token leaves the later one's tokens alone.
    late = generator.stream(LONG, max_new_tokens=20)
    steps = generator.generate_step(generator.encode("The"), max_new_tokens=5)
    begun = [next(steps)]
    with pytest.raises(NqEdgeError, match="another text was started"):
        next(late)
    assert begun + list(steps) == expected


@pytest.mark.parametrize("after", [0.0, 0.002, 0.01, 0.03])
def test_close_waits_for_the_token_and_ends_the_text(after: float, open_one: Any, tiny_bundle: Path) -> None:
    for _ in range(4):
        generator = Generator(open_one(), load_tokenizer(tiny_bundle))
        messages: list[str] = []

        def write(generator: Generator = generator, messages: list[str] = messages) -> None:
            try:
                while True:
                    generator.generate(LONG, max_new_tokens=30)
            except NqEdgeError as error:
                messages.append(f"{error.code} {error.message}")

        def close(generator: Generator = generator) -> None:
            time.sleep(after)
            generator.close()

        assert _together(write, write, close) == []
        assert len(messages) == 2 and all(end.startswith("NQ-OPTION") for end in messages), messages
        assert any("closed" in end for end in messages)


def test_a_backend_is_closed_once_the_call_has_ended(open_one: Callable[[], Any]) -> None:
    for after in (0.0, 0.001, 0.004):
        backend = open_one()
        calls: list[int] = []

        def compute(backend: Any = backend, calls: list[int] = calls) -> None:
            with pytest.raises(NqEdgeError, match="the backend is closed"):
                while True:
                    backend.reset()
                    backend.forward(np.arange(5, 80)[None])
                    calls.append(1)

        def close(backend: Any = backend, after: float = after) -> None:
            time.sleep(after)
            backend.close()
            backend.close()

        assert _together(compute, close) == []


def test_threads_may_share_the_pieces_of_one_text(generator: Generator) -> None:
    alone = generator.generate("The", max_new_tokens=30)
    run, pieces = generator.stream("The", max_new_tokens=30), []  # type: ignore[var-annotated]
    assert _together(*[lambda: pieces.extend(run)] * 3) == []
    assert sorted("".join(pieces)) == sorted(alone.text)
    assert run.result is not None and run.result.ids == alone.ids
    steps, ids = generator.generate_step(generator.encode("The"), max_new_tokens=30), []  # type: ignore[var-annotated]
    assert _together(*[lambda: ids.extend(steps)] * 3) == []
    assert sorted(ids) == sorted(alone.ids)
