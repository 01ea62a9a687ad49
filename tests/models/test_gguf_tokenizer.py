# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of GGUF files: the tokens of the vocabulary that was written, and refusals of what is not known."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.models.gguf.content import GgufContent
from nanoquant_edge.models.gguf.splits import SPLITS
from nanoquant_edge.models.gguf.tokenizer import end_tokens, read_gguf_tokenizer
from nanoquant_edge.models.loading import load_model
from nanoquant_edge.models.source import load_tokenizer as load_source_tokenizer
from tests.models.gguf_files import llama, vocabulary, write_gguf
from tests.tiny import TEXT

CORPUS = [TEXT, "Steps:\n\n1. one\n\n2. two\n\n\n12 34  5   6 don't WE'LL 1234567\r\n\t x = f(y)\n" * 30]
HARD = [
    "Steps:\n\n1. one\n\n2. two", "a  12", "\t1\n\n\n2", "12345 67,890", "don't WE'LL They'RE 's", "  two  spaces  ",
    "x=1;y+=2\r\n\r\nz", "東京 naïve e\u0301 Größe", "fooBar HTTPServer aB", "...!?!\n/\n", " ", "",
    "\u00b2\u00bd ٣", "fox",
]  # fmt: skip
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def after(*patterns: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns), BYTES])


def qwen_pattern() -> str:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    return str(PRETOKENIZE_REGEX)


#: Name of a split -> the same split as libraries and published tokenizer.json files have it.
PUBLISHED: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "refact": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: after(qwen_pattern()),
    "deepseek-r1-qwen": lambda: after(qwen_pattern()),
    "llama-bpe": lambda: after(qwen_pattern().replace(r"\p{N}|", r"\p{N}{1,3}|")),
    "smaug-bpe": lambda: after(qwen_pattern().replace(r"\p{N}|", r"\p{N}{1,3}|")),
    "deepseek-coder": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            BYTES,
        ]
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_split_is_the_published_one(name: str) -> None:
    ours, published = SPLITS[name].pre_tokenizer(), PUBLISHED[name]()
    for text in [*HARD, *CORPUS]:
        assert [piece for piece, _ in ours.pre_tokenize_str(text)] == [p for p, _ in published.pre_tokenize_str(text)]


@given(
    text=st.text(alphabet="aB é東1²٣ '\n\r\t.,!/_\u0301\u00a0", max_size=24), name=st.sampled_from(sorted(PUBLISHED))
)
def test_a_split_is_the_published_one_on_any_text(text: str, name: str) -> None:
    ours, published = SPLITS[name].pre_tokenizer(), PUBLISHED[name]()
    assert [piece for piece, _ in ours.pre_tokenize_str(text)] == [p for p, _ in published.pre_tokenize_str(text)]


def words(name: str, text: str) -> list[str]:
    alphabet = {letter: bytes([byte]) for byte, letter in _byte_letters().items()}
    pieces = [piece for piece, _ in SPLITS[name].pre_tokenizer().pre_tokenize_str(text)]
    return [b"".join(alphabet[letter] for letter in piece).decode() for piece in pieces]


@functools.cache
def _byte_letters() -> dict[int, str]:
    """GPT-2's letters for bytes: visible ones stand for themselves, others for letters from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: chr(byte) for byte in visible}, **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tekken", "fooBar HTTPServer 12", ["foo", "Bar", " HTTPServer", " ", "1", "2"]),
        ("tekken", "a/b\n/c", ["a", "/b", "\n", "/c"]),
        ("llama-bpe", "12345 don't", ["123", "45", " don", "'t"]),
        ("llama-bpe", "DON'T", ["DON", "'T"]),
        ("qwen2", "12 a\n\n b", ["1", "2", " a", "\n\n", " b"]),
        ("smollm", "a  12 b", ["a", "  ", "1", "2", " b"]),
        ("gpt-2", "a  12 DON'T", ["a", " ", " 12", " DON", "'", "T"]),
        ("seed-coder", "a.\n\nb", ["a", ".", "\n\n", "b"]),
    ],
)
def test_words(name: str, text: str, expected: list[str]) -> None:
    assert words(name, text) == expected


def byte_level(split: pre_tokenizers.PreTokenizer, size: int = 340, special: tuple[str, ...] = ()) -> Tokenizer:
    """A byte-level tokenizer trained with a split."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def gguf_of(folder: Path, tokenizer: Tokenizer, fields: dict[str, Any] | None = None, **options: Any) -> Path:
    """A file of a tiny model with a tokenizer."""
    entries = {**vocabulary(tokenizer, **options), **{f"tokenizer.ggml.{k}": v for k, v in (fields or {}).items()}}
    model = llama(vocab_size=tokenizer.get_vocab_size(with_added_tokens=True))
    return write_gguf(folder / "m.gguf", model, tokenizer=tokenizer, fields=entries)


def read(path: Path) -> Any:
    return read_gguf_tokenizer(GgufContent(path))


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_and_calibration_get_the_tokens_that_were_written(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level(PUBLISHED[name]())
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    path = gguf_of(tmp_path, tokenizer, {"add_bos_token": False}, pre=name)
    with load_model(path) as source:
        ours = load_tokenizer(source.companions)
        assert ours.size == tokenizer.get_vocab_size(with_added_tokens=True)
        for text in [*HARD, TEXT, "a</s> b", "<s>x"]:
            expected = tokenizer.encode(text).ids
            assert ours.encode(text) == source.tokenizer(text)["input_ids"] == expected, text
            assert ours.decode(expected, skip_special_tokens=False) == tokenizer.decode(expected, False), text
    load_source_tokenizer(path, tmp_path, gguf_file=path.name).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode(TEXT) == tokenizer.encode(TEXT).ids


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken", "pixtral", "gpt-2", "qwen2", "smaug-bpe"])
@pytest.mark.parametrize("flag", [None, True, False])
def test_start_tokens(tmp_path: Path, pre: str, flag: bool | None) -> None:
    path = gguf_of(tmp_path, byte_level(BYTES), {"add_bos_token": flag, "add_eos_token": flag}, pre=pre)
    ids = read(path).encode("The fox")
    starts = flag if flag is not None else pre in ("llama-bpe", "tekken", "pixtral")
    assert (ids[0] == 1) == starts and (ids[-1] == 2) == bool(flag)
    assert read(path).encode("The fox", add_special_tokens=False)[0] != 1


def test_a_word_of_the_vocabulary_is_taken_whole_where_the_split_says_so(tmp_path: Path) -> None:
    tokenizer = byte_level(BYTES)
    core = json.loads(tokenizer.to_str())
    core["model"]["vocab"]["Zyzzy"] = len(core["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(core))
    whole = read(gguf_of(tmp_path, tokenizer, {"add_bos_token": False}, pre="llama-bpe"))
    assert [whole.token(i) for i in whole.encode("Zyzzy")] == ["Zyzzy"]
    pieces = read(gguf_of(tmp_path, tokenizer, {"add_bos_token": False}, pre="smaug-bpe"))
    assert "Zyzzy" not in [pieces.token(i) for i in pieces.encode("Zyzzy")]


def sentence_pieces(prefix: bool = True) -> Tokenizer:
    """A tokenizer with byte fallback that spells spaces as U+2581."""
    steps = [normalizers.Prepend("▁")] if prefix else []
    normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    base = Tokenizer(models.BPE(unk_token="<unk>"))
    base.normalizer = normalizer
    base.train_from_iterator(
        [*CORPUS, "   leading   spaces\n" * 20], trainers.BpeTrainer(vocab_size=400, show_progress=False)
    )
    learnt = json.loads(base.to_str())["model"]
    vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))])}
    for piece in sorted(learnt["vocab"], key=learnt["vocab"].get):
        vocab.setdefault(piece, len(vocab))
    pairs = [tuple(pair) for pair in learnt["merges"]]
    made = Tokenizer(models.BPE(vocab, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizer
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_pieces(tmp_path: Path, prefix: bool) -> None:
    tokenizer = sentence_pieces(prefix)
    fields = {"merges": None, "add_space_prefix": None if prefix else False}
    path = gguf_of(tmp_path, tokenizer, fields, kind="llama", pre="default")
    ours = read(path)
    for text in [*HARD, TEXT, "  ", "   leading", "<s>bos</s> eos", "a</s>  b", "\u200b🙂"]:
        assert ours.encode(text) == tokenizer.encode(text).ids, text
        assert ours.decode(ours.encode(text)) == tokenizer.decode(tokenizer.encode(text).ids), text


def test_usual_ids_of_sentence_pieces(tmp_path: Path) -> None:
    fields = {"bos_token_id": None, "eos_token_id": None, "unknown_token_id": None}
    path = gguf_of(tmp_path, sentence_pieces(), fields, kind="llama", pre=None)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    assert {name: read(path).special_tokens[name] for name in names} == names
    assert read(path).encode("a")[0] == 1 and end_tokens(GgufContent(path)) == [2]


def test_pieces_of_equal_spelling_are_joined_by_their_scores(tmp_path: Path) -> None:
    """The higher score wins, wherever its piece stands in the vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", "ab", "bc"]
    for better, expected in (("ab", ["▁", "ab", "c"]), ("bc", ["▁", "a", "bc"])):
        scores = [-1.0 if token == better else -2.0 for token in tokens]
        fields = {"tokens": tokens, "scores": scores, "token_type": [3, 3, 3, *[6] * 256, *[1] * 6], "merges": None}
        path = gguf_of(tmp_path, sentence_pieces(), fields, kind="llama", pre="default")
        ours = read(path)
        assert [ours.token(i) for i in ours.encode("abc", add_special_tokens=False)] == expected


def test_tokens_that_users_defined_are_never_cut(tmp_path: Path) -> None:
    tokenizer = byte_level(BYTES)
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False, normalized=False)])
    ours = read(gguf_of(tmp_path, tokenizer, {"add_bos_token": False}))
    index = tokenizer.token_to_id("<|tool|>")
    assert index in ours.encode("a<|tool|>b") and index not in ours.special_ids
    assert ours.decode(ours.encode("a<|tool|>b")) == "a<|tool|>b"


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, [2]),
        ({"eot_token_id": 4}, [2, 4]),
        ({"eot_token_id": 4, "eom_token_id": 3}, [2, 4, 3]),
        ({"eot_token_id": 2, "eom_token_id": 2}, [2]),
        ({"eos_token_id": None, "eot_token_id": 4}, [4]),
        ({"eos_token_id": None}, []),
    ],
)
def test_tokens_that_end_a_text(tmp_path: Path, fields: dict[str, Any], ends: list[int]) -> None:
    tokenizer = byte_level(BYTES, special=("<|eom|>", "<|im_end|>"))
    fields = {**fields, "token_type": [1] * tokenizer.get_vocab_size()}  # files have had them as ordinary tokens
    path = gguf_of(tmp_path, tokenizer, fields)
    assert end_tokens(GgufContent(path)) == ends
    with load_model(path) as source:
        ids = json.loads((source.companions / "generation_config.json").read_text())
        assert ids.get("eos_token_id") == (ends if len(ends) > 1 else ends[0] if ends else None)
        assert source.config.get("eos_token_id") == ids.get("eos_token_id")
        assert set(ends) <= load_tokenizer(source.companions).special_ids


def test_the_chat_template_travels(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    path = write_gguf(tmp_path / "m.gguf", llama(), fields={"tokenizer.chat_template": template})
    with load_model(path) as source:
        assert (source.companions / "chat_template.jinja").read_text() == template
        shown = source.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert shown == "<|im_start|>Hi"


PLAIN = byte_level(BYTES, 300)
COUNT = PLAIN.get_vocab_size()
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a split of tomorrow": ({}, {"pre": "a-split-of-tomorrow"}, "splits words by 'a-split-of-tomorrow', which is not"),
    "the default split": ({}, {"pre": "default"}, "splits words by 'default'"),
    "no split": ({}, {"pre": None}, "does not say how it splits words"),
    "a split that is a number": ({"pre": 7}, {}, "splits words by '7'"),
    "another kind": ({}, {"kind": "t5"}, "is of the kind 't5'; gpt2 and llama are read"),
    "no kind": ({"model": None}, {}, "is of the kind 'None'"),
    "no tokens": ({"tokens": None}, {}, "has no tokens"),
    "tokens that are numbers": ({"tokens": [1] * COUNT}, {}, "has tokens that are no texts"),
    "types of other tokens": ({"token_type": [1] * 7}, {}, f"has {COUNT} tokens and 7 types of tokens"),
    "a token twice": ({"tokens": ["a"] * COUNT}, {}, "has the token 'a' twice"),
    "more tokens than rows": (
        {"tokens": [str(i) for i in range(COUNT + 1)], "token_type": [1] * (COUNT + 1)}, {},
        f"has {COUNT + 1} tokens, and the embedding table {COUNT} rows",
    ),
    "no merges": ({"merges": None}, {}, "has no merges"),
    "merges of other tokens": ({"merges": ["qqq zzz"]}, {}, "cannot be built"),
    "an id beyond the vocabulary": ({"bos_token_id": 99999}, {}, f"has bos_token_id = 99999, and {COUNT} tokens"),
    "an end beyond the vocabulary": ({"eot_token_id": COUNT}, {}, f"has eot_token_id = {COUNT}, and {COUNT} tokens"),
    "an id that is a text": ({"eos_token_id": "</s>"}, {}, "has eos_token_id = </s>"),
    "a start that is not named": ({"bos_token_id": None, "add_bos_token": True}, {}, "has add_bos_token, and no bos"),
    "an end that is not named": ({"eos_token_id": None, "add_eos_token": True}, {}, "has add_eos_token, and no eos"),
    "a flag that is a number": ({"add_bos_token": 1}, {}, "has add_bos_token = '1'"),
    "a space before bytes": ({"add_space_prefix": True}, {}, "puts a space before a text"),
    "a separator": ({"add_sep_token": True}, {}, "has tokenizer.ggml.add_sep_token = 'True', which is not known"),
    "lower case": ({"normalizer.lowercase": True}, {}, "normalizer.lowercase = 'True'"),
    "spaces removed": ({"remove_extra_whitespaces": True}, {}, "remove_extra_whitespaces = 'True'"),
    "a map of characters": ({"precompiled_charsmap": [1, 2]}, {}, "precompiled_charsmap"),
    "tokens suppressed": ({"suppress_tokens": [5]}, {}, "suppress_tokens"),
    "a field of tomorrow": ({"new_trick": 1}, {}, "has tokenizer.ggml.new_trick = '1', which is not known"),
    "not byte-level": ({"tokens": [f"piece{i}" for i in range(COUNT)]}, {}, "its vocabulary is not byte-level"),
    "pieces without scores": ({}, {"kind": "llama", "pre": "default", "scores": None}, "has no score for each token"),
    "pieces with a split": ({}, {"kind": "llama", "pre": "llama-bpe"}, "is of the kind 'llama' and splits words by"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    fields, options, message = FAULTS[fault]
    options = dict(options)
    if "scores" in options:
        fields = {**fields, "scores": options.pop("scores")}
    path = gguf_of(tmp_path, PLAIN, fields, **options)
    with pytest.raises(NqEdgeError) as caught, load_model(path):
        pass
    assert message in caught.value.message and str(path) in caught.value.message
    assert caught.value.code == "NQ-TOKENIZER"


def test_fewer_tokens_than_rows_are_no_fault(tmp_path: Path) -> None:
    entries = vocabulary(PLAIN)
    path = write_gguf(tmp_path / "m.gguf", llama(vocab_size=COUNT + 20), tokenizer=PLAIN, fields=entries)
    with load_model(path) as source:
        assert source.decoder.vocab_size == COUNT + 20
        assert load_tokenizer(source.companions).size == COUNT


def test_special_tokens_are_not_invented(tmp_path: Path) -> None:
    ours = read(gguf_of(tmp_path, PLAIN, {"add_bos_token": False}))
    assert ours.size == COUNT
    assert max(ours.encode("one.<|endoftext|>two")) < COUNT and len(ours.encode("<|endoftext|>")) > 3


ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.skipif(not SMOLLM2.is_file(), reason="needs the model that make demo fetches")
def test_the_demo_s_model_isolates_digits() -> None:
    ours = read(SMOLLM2)
    assert ours.size == 49152
    tokens = [ours.token(i) for i in ours.encode("a  12, 1999")]
    assert tokens == ["a", "ĠĠ", "1", "2", ",", "Ġ", "1", "9", "9", "9"]
    assert ours.encode("<|im_start|>user\n")[0] == 1
