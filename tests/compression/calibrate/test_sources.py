# SPDX-License-Identifier: Apache-2.0
"""Calibration text from files and folders, plain, in JSON lines and compressed; what cannot be read is named."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoquant_edge.compression.calibrate import sources
from nanoquant_edge.compression.calibrate.sources import CalibrationText, OwnText, TextSource, read_source, shared_out
from nanoquant_edge.errors import NqEdgeError


def test_a_source_is_a_path_with_or_without_a_weight(tmp_path: Path) -> None:
    assert TextSource.parse("notes.txt") == TextSource(Path("notes.txt"), 1.0)
    assert TextSource.parse("notes.txt=0.25") == TextSource(Path("notes.txt"), 0.25)
    odd = tmp_path / "a=b"
    odd.write_text("text")
    assert TextSource.parse(str(odd)) == TextSource(odd, 1.0)


def test_the_model_is_a_source_too() -> None:
    assert TextSource.parse("self").own == OwnText(None)
    assert TextSource.parse("self:2M").own == TextSource.parse("self:2000k").own == OwnText(2_000_000)
    assert TextSource.parse("self:1.5m=0.25") == TextSource(Path("self:1.5m"), 0.25, OwnText(1_500_000))
    assert TextSource.parse("./self").own is None and TextSource.parse("selfish.txt").own is None
    for wrong in ("self:", "self:much", "self:2G", "self:-1", "self:1e6"):
        with pytest.raises(NqEdgeError, match="names no amount of text") as caught:
            TextSource.parse(wrong)
        assert caught.value.code == "NQ-OPTION"


def test_own_text_counts_in_the_digest_and_is_not_read() -> None:
    found = CalibrationText.read([TextSource.parse("self:2M=3")])
    assert found is not None and found.written and found.passages is None
    amounts = (CalibrationText((OwnText(tokens),)) for tokens in (None, 1, 2))
    assert len({text.digest() for text in (*amounts, CalibrationText(("own",)))}) == 4
    mixed = CalibrationText((OwnText(), "words"))
    assert mixed.passages == "words"


@pytest.mark.parametrize("text", ["notes.txt=much", "notes.txt=0", "notes.txt=-1", "notes.txt=nan", "notes.txt=inf"])
def test_an_impossible_weight_is_refused(text: str) -> None:
    with pytest.raises(NqEdgeError) as caught:
        TextSource.parse(text)
    assert caught.value.code == "NQ-OPTION"


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_add_up_and_are_off_by_less_than_one(windows: int, weights: list[float]) -> None:
    counts = shared_out(windows, weights)
    assert sum(counts) == windows
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - windows * weight / sum(weights)) < 1 + 1e-9


def test_every_kind_of_file_gives_its_text(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_source(TextSource(tmp_path / "plain.txt")) == "one\n\n\n\n\ntwo\n"  # rows, as perplexity has them
    with lzma.open(tmp_path / "packed.txt.xz", "wt", encoding="utf-8") as file:
        file.write("naïve\nlines\n")
    assert read_source(TextSource(tmp_path / "packed.txt.xz")) == "naïve\nlines\n"
    lines = [json.dumps({"text": "first"}), "", json.dumps({"text": "second\nline", "id": 7})]
    (tmp_path / "some.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_source(TextSource(tmp_path / "some.jsonl")) == "first\n\nsecond\nline"
    with lzma.open(tmp_path / "more.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "third"}))
    assert read_source(TextSource(tmp_path / "more.jsonl.xz")) == "third"


def test_zstandard_files_where_the_package_is(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"text"))
    assert read_source(TextSource(tmp_path / "a.txt.zst")) == "text"


def test_a_folder_is_its_text_files_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "inner" / "c.jsonl").write_text('{"text": "third"}')
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert read_source(TextSource(tmp_path)).split() == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.txt.xz", b"not compressed", "is damaged"),
        ("a.txt.xz", lzma.compress(b"x" * 1000)[:-9], "is damaged"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"content": "x"}', "line 2"),
        ("a.jsonl", b'{"text": 5}', "is no text"),
        ("a.jsonl", b"{" * 5000, "line 1"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NqEdgeError, match=message) as caught:
        read_source(TextSource(tmp_path / name))
    assert caught.value.code == "NQ-CALIBRATION" and name in caught.value.message


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MOST_BYTES", 1000)
    (tmp_path / "bomb.txt.xz").write_bytes(lzma.compress(b"\0" * 100_000))
    with pytest.raises(NqEdgeError, match="more than 1000 bytes"):
        read_source(TextSource(tmp_path / "bomb.txt.xz"))


def test_missing_files_and_folders_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NqEdgeError, match="cannot read"):
        read_source(TextSource(tmp_path / "absent.txt"))
    with pytest.raises(NqEdgeError, match="holds no text"):
        read_source(TextSource(tmp_path))
