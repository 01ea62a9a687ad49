# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes import Generator, SamplingConfig, load_chat_template, load_tokenizer

Edit = Callable[..., Path]


class Scripted:
    """A backend that answers with given ids, whatever the prompt."""

    name, kernel, vocab_size = "scripted", "none", 320
    extra: dict[str, np.ndarray] = {}  # noqa: RUF012

    def __init__(self, script: Sequence[int], max_context: int = 256) -> None:
        self.script, self.max_context = list(script), max_context
        self.reset()

    def forward(self, input_ids: np.ndarray, positions: object = None, lengths: object = None) -> np.ndarray:
        self.fed.append(input_ids[0].tolist())
        logits = np.zeros((1, 1, self.vocab_size), np.float32)
        logits[0, 0, self.script[len(self.fed) - 1]] = 9
        return logits

    def reset(self) -> None:
        self.fed: list[list[int]] = []

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Iterator[Generator]:
    with Generator.from_bundle(tiny_bundle, threads=1) as opened:
        yield opened


def _scripted(folder: Path, text: str, more: Sequence[int] = (), **options: int) -> Generator:
    tokenizer = load_tokenizer(folder)
    script = tokenizer.encode(text) + list(more)
    return Generator(Scripted(script, **options), tokenizer, [2], chat_template=load_chat_template(folder, tokenizer))


def test_a_text_ends_at_the_end_token(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "Größe 東京 🙂.", [2, 7, 7])
    result = generator.generate("naïve")
    prompt = generator.tokenizer.encode("naïve")
    assert result.text == "Größe 東京 🙂."
    assert result.ids == [*generator.tokenizer.encode("Größe 東京 🙂."), 2]
    assert (result.finish_reason, result.prompt_tokens, result.kernel) == ("eos", len(prompt), "none")
    assert generator.backend.fed == [prompt, *([i] for i in result.ids[:-1])]
    assert result.prefill_tps > 0 < result.decode_tps
    assert 0 < result.ttft_s < 5
    assert result.peak_memory_mb > 10
    assert json.loads(json.dumps(result.to_dict()))["text"] == result.text


def test_pieces_come_as_soon_as_they_are_final_and_join_to_the_text(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "one 🙂 two", [2])
    run = generator.stream("x")
    first = next(run)
    assert len(generator.backend.fed) < len(generator.backend.script)
    assert run.result is None
    assert first + "".join(run) == "one 🙂 two" == run.result.text


def test_a_stop_string_ends_the_text_and_is_not_shown(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "one two three", [2])
    run = generator.stream("x", stop=["absent", " tw"])
    assert "".join(run) == "one"
    assert run.result.finish_reason == "stop"
    assert len(run.result.ids) < len(generator.backend.script) - 1


@pytest.mark.parametrize("stop", ["zebra", " tw", None, np.str_(" tw")])
def test_one_stop_string_may_be_given_as_it_is(stop: str | None, byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "one two three", [2])
    several = generator.generate("x", stop=[] if stop is None else [stop])
    assert generator.generate("x", stop=stop).text == several.text == ("one" if stop == " tw" else "one two three")


@pytest.mark.parametrize(("stop", "text"), [("<|im_end|>", "one"), ("e<|im_end|>", "on"), ("im_end", "onetwo")])
def test_a_special_token_may_be_a_stop_string(stop: str, text: str, byte_level_folder: Path) -> None:
    tokenizer = load_tokenizer(byte_level_folder)
    mark = tokenizer.core.token_to_id("<|im_end|>")
    script = [*tokenizer.encode("one"), mark, *tokenizer.encode("two"), 2]
    result = Generator(Scripted(script), tokenizer, [2]).generate("x", stop=stop)  # type: ignore[arg-type]
    assert (result.text, result.finish_reason) == (text, "eos" if text == "onetwo" else "stop")


def test_the_number_of_tokens_is_bounded_by_the_wish_and_by_the_context(byte_level_folder: Path) -> None:
    assert len(_scripted(byte_level_folder, "a" * 50).generate("x", max_new_tokens=3).ids) == 3
    generator = _scripted(byte_level_folder, "a" * 50, max_context=6)
    result = generator.generate("xyz", max_new_tokens=1000)
    assert (result.prompt_tokens, len(result.ids), result.finish_reason) == (3, 4, "length")
    assert sum(len(step) for step in generator.backend.fed) == 6


def test_a_prompt_longer_than_the_context_names_both_numbers(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "a", max_context=6)
    with pytest.raises(NqEdgeError, match="prompt has 7 tokens, the context holds 6") as caught:
        generator.generate("xyzxyzx")
    assert caught.value.code == "NQ-PROMPT"


def test_an_empty_prompt_begins_with_bos_or_is_refused(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "a", [2])
    assert generator.generate("").prompt_tokens == 1
    assert generator.backend.fed[0] == [1]
    generator.tokenizer.special_tokens.pop("bos_token")
    with pytest.raises(NqEdgeError, match="prompt is empty") as caught:
        generator.generate("")
    assert caught.value.code == "NQ-PROMPT"
    with pytest.raises(NqEdgeError, match="prompt has no tokens"):
        generator.generate_step([])


@pytest.mark.parametrize("count", [3, np.int64(3), np.uint8(3)])
def test_numbers_of_numpy_are_numbers(count: int, byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "a" * 50)
    assert len(generator.generate("x", max_new_tokens=count).ids) == 3
    prompt = np.array(generator.encode("xyz"), np.int32)
    assert list(generator.generate_step(prompt, max_new_tokens=count)) == generator.backend.script[:3]


@pytest.mark.parametrize("ids", [[1.5], ["1"], [[1]], 5, [None], [True], [2**70]])
def test_ids_that_are_none_are_refused(ids: object, byte_level_folder: Path) -> None:
    with pytest.raises(NqEdgeError, match="not a row of whole numbers") as caught:
        _scripted(byte_level_folder, "a").generate_step(ids)  # type: ignore[arg-type]
    assert caught.value.code == "NQ-PROMPT"


@pytest.mark.parametrize("prompt", [None, 5, b"x", {"role": "user", "content": "x"}, ["x"], [None]])
def test_a_prompt_is_a_text_or_messages(prompt: object, byte_level_folder: Path) -> None:
    with pytest.raises(NqEdgeError, match="neither a text nor a list of messages") as caught:
        _scripted(byte_level_folder, "a").generate(prompt)  # type: ignore[arg-type]
    assert caught.value.code == "NQ-PROMPT"


def test_a_system_message_needs_a_chat_and_sampling_its_type(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "a", [2])
    with pytest.raises(NqEdgeError, match="a system message is part of a chat") as caught:
        generator.generate("x", system="Be brief.")
    assert caught.value.code == "NQ-OPTION"
    with pytest.raises(NqEdgeError, match="sampling must be a SamplingConfig"):
        generator.generate("x", sampling={"temperature": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0, -5, 2.5, True, None, "3", np.float32(3)])
def test_a_bad_number_of_tokens_is_refused_before_anything_runs(wrong: object, byte_level_folder: Path) -> None:
    with pytest.raises(NqEdgeError, match="max_new_tokens must be") as caught:
        _scripted(byte_level_folder, "a").stream("x", max_new_tokens=wrong)  # type: ignore[arg-type]
    assert caught.value.code == "NQ-OPTION"


def test_a_second_text_ends_the_first(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "abcdef", [2])
    first = generator.stream("x")
    next(first)
    assert generator.generate("y").text == "abcdef"
    with pytest.raises(NqEdgeError, match="another text was started"):
        next(first)


def test_a_chat_goes_through_the_template(byte_level_folder: Path) -> None:
    generator = _scripted(byte_level_folder, "a", [2])
    generator.generate([{"role": "user", "content": "hi"}], system="Be brief.")
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert generator.tokenizer.decode(generator.backend.fed[0], skip_special_tokens=False) == expected
    generator.chat_template = None
    with pytest.raises(NqEdgeError, match="no chat template") as caught:
        generator.generate([{"role": "user", "content": "hi"}])
    assert caught.value.code == "NQ-TEMPLATE"


def test_greedy_ids_equal_those_of_transformers(tiny_bundle: Path, generator: Generator) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    import nanoquant_edge.hf  # noqa: F401 - registers the format

    model = AutoModelForCausalLM.from_pretrained(tiny_bundle.parent / "checkpoint", dtype=torch.float32)
    ids = generator.tokenizer.encode("The quick brown fox")
    expected = model.generate(
        torch.tensor([ids]), max_new_tokens=24, do_sample=False, repetition_penalty=1.2, eos_token_id=2
    )
    sampling = SamplingConfig(repetition_penalty=1.2)
    assert list(generator.generate_step(ids, max_new_tokens=24, sampling=sampling)) == expected[0, len(ids) :].tolist()


def test_equal_seeds_give_equal_texts_and_runs_do_not_disturb_each_other(generator: Generator) -> None:
    def ids(seed: int) -> list[int]:
        return generator.generate("The", max_new_tokens=20, sampling=SamplingConfig(temperature=9.0, seed=seed)).ids

    assert ids(1) == ids(1) != ids(2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eos_token_id": 5}, {5}),
        ({"eos_token_id": [2, 4]}, {2, 4}),
        ({"eos_token_id": None}, {2}),
        ({"eos_token_id": "x"}, {2}),
        (None, {2}),
    ],
)
def test_end_tokens_come_from_the_generation_settings_or_the_model(
    settings: dict | None, expected: set[int], tiny_bundle: Path, edit_bundle: Edit
) -> None:
    content = None if settings is None else json.dumps(settings).encode()
    folder = edit_bundle(tiny_bundle, files={"generation_config.json": content})
    with Generator.from_bundle(folder, threads=1) as generator:
        assert generator.eos_ids == expected


def test_end_tokens_come_from_the_tokenizer_at_last(tiny_bundle: Path, edit_bundle: Edit) -> None:
    folder = edit_bundle(tiny_bundle, files={"generation_config.json": b"{}"}, source_model={})
    with Generator.from_bundle(folder, threads=1) as generator:
        assert generator.eos_ids == {2}


def test_a_bundle_without_tokenizer_or_with_a_changed_file_is_refused(tiny_bundle: Path, edit_bundle: Edit) -> None:
    with pytest.raises(NqEdgeError) as caught:
        Generator.from_bundle(edit_bundle(tiny_bundle, files={"tokenizer.json": None}))
    assert caught.value.code == "NQ-TOKENIZER"
    folder = edit_bundle(tiny_bundle)
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    with pytest.raises(NqEdgeError) as caught:
        Generator.from_bundle(folder, verify=True)
    assert caught.value.code == "NQ-HASH"


def test_neither_torch_nor_transformers_nor_onnx_is_imported(tiny_bundle: Path) -> None:
    program = (
        "import sys; from nanoquant_edge import Generator\n"
        f"print(len(Generator.from_bundle({str(tiny_bundle)!r}, threads=1).generate('The', max_new_tokens=4).ids))\n"
        "print([n for n in ('torch', 'transformers', 'onnx', 'onnx_ir', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["4", "[]"]


def test_peak_memory_sees_what_is_allocated_and_remembers_it() -> None:
    program = (
        "from nanoquant_edge.system.memory import peak_memory_mb, return_freed_memory\n"
        "before = peak_memory_mb(); block = b'x' * 80_000_000; during = peak_memory_mb()\n"
        "del block; return_freed_memory(); print(before, during, peak_memory_mb())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, during, after = map(float, done.stdout.split())
    assert 5 < before < 1000
    assert 70 < during - before < 120
    # The kernel counts pages a processor at a time and adds them up now and then: the peak is exact to about 0.3 MB.
    assert after >= during - 1
