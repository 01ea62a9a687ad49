# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import Tokenizer, load_tokenizer
from nanoquant_edge.runtimes.streaming import StopMatcher, TextStream, stop_strings

TEXT = "Größe 東京 🙂🚀👩‍👩‍👧 naïve\n the fox"


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return load_tokenizer(folder)


def _stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(index) for index in ids), stream.flush()]


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(ids) > len(TEXT)  # several tokens a character, or the test shows nothing
    pieces = _stream(tokenizer, ids)
    assert "".join(pieces) == TEXT == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 6  # it does stream


@given(data=st.data())
def test_any_ids_join_to_their_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # Bytes and special tokens are favoured; ids past the end stand for padded vocabularies.
    index = st.one_of(st.integers(0, 270), st.integers(0, tokenizer.size + 3))
    ids = data.draw(st.lists(index, max_size=24))
    assert "".join(_stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_an_unfinished_character_is_replaced_at_the_end_only(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    pieces = _stream(tokenizer, ids)
    assert "\ufffd" not in "".join(pieces[:-1])
    assert "".join(pieces) == tokenizer.decode(ids)


def test_special_tokens_can_be_shown(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, skip_special_tokens=False)
    assert stream.push(2) + stream.flush() == "</s>"


def test_a_stop_string_over_several_pieces_is_never_shown() -> None:
    matcher = StopMatcher(["\nUser:", "END"])
    shown = [matcher.push(piece) for piece in ["Hel", "lo\n", "Us", "er", ": next"]]
    assert "".join(shown) == "Hello"
    assert matcher.stopped
    assert matcher.push("more") == matcher.flush() == ""


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    matcher = StopMatcher(["END."])
    assert [matcher.push(piece) for piece in "aENDxEN"] == ["a", "", "", "", "ENDx", "", ""]
    assert matcher.flush() == "EN"
    assert not matcher.stopped


def test_without_stop_strings_nothing_is_held_back() -> None:
    matcher = StopMatcher([""])
    assert matcher.push("text") == "text"
    assert matcher.flush() == ""


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_how_the_text_is_cut_changes_nothing(text: str, stops: list[str], data: st.DataObject) -> None:
    whole = StopMatcher(stops)
    expected = whole.push(text)
    expected += whole.flush()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    assert shown + matcher.flush() == expected
    assert matcher.stopped == whole.stopped == any(stop in text for stop in stops)
    stops_at = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if stops_at:
        first = text[: min(stops_at)]
        assert expected == min((first[: -len(s)] for s in stops if first.endswith(s)), key=len)


@pytest.mark.parametrize(("stop", "expected"), [
    (None, ()), ("", ()), ([], ()), ("zebra", ("zebra",)), (["a", "", "b"], ("a", "b")), (("a",), ("a",)),
])  # fmt: skip
def test_stop_strings_are_given_as_text_list_or_nothing(stop: object, expected: tuple[str, ...]) -> None:
    assert stop_strings(stop) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("stop", [5, b"x", [b"x"], ["a", None], {"a": 1}, {"a"}, True])
def test_stop_strings_that_are_none_are_refused(stop: object) -> None:
    with pytest.raises(NqEdgeError, match="stop must be a text or a list of texts") as caught:
        stop_strings(stop)  # type: ignore[arg-type]
    assert caught.value.code == "NQ-OPTION"


SPECIAL = {7: "<end>", 8: "<end>of<turn>", 9: "<other>"}


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stopped"),
    [
        (["<end>"], ["one", 7, "two"], "one", True),
        (["x<end>"], ["one", 7, "x", 7, "two"], "one", True),
        (["<end>"], ["one <en", "d> two"], "one ", True),  # spelled by ordinary tokens
        (["end", "<"], ["one", 7, "two"], "onetwo", False),  # a special token is found as a whole only
        (["<end>of<turn>"], ["one", 8, "two"], "one", True),
        (["<end>y"], ["one", 7, "x"], "onex", False),
        (["<end><other>"], ["one", 7, 9, "two"], "one", True),
        (["<end><other>"], ["one", 7, "two"], "onetwo", False),
    ],
)
def test_special_tokens_in_stop_strings(stops: list[str], pieces: list, shown: str, stopped: bool) -> None:
    matcher = StopMatcher(stops, SPECIAL)
    out = [matcher.push(piece if isinstance(piece, str) else matcher.mark(piece)) for piece in pieces]
    assert "".join(out) + matcher.flush() == shown
    assert matcher.stopped == stopped
