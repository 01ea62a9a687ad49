# SPDX-License-Identifier: Apache-2.0
"""Rows of the CPU benchmark: medians, spreads, ratios round by round, and failures that name the command."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from benchmarks.cpu_peers import Peer, _row, call, perplexity_of, size_mb


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2_000_000))
    keys = ("decode_tps", "decode_cpu_ms", "prefill_tps", "ttft_ms", "rss_mb")
    # The host slows down from round to round: medians move, ratios do not.
    base = [dict.fromkeys(keys, speed) for speed in (100.0, 50.0, 10.0)]
    runs = [dict.fromkeys(keys, 2 * speed) for speed in (100.0, 50.0, 10.0)]
    row = _row(Peer("p", (), tmp_path), runs, base)
    assert row["decode_tps"] == 100.0 and row["decode_tps_range"] == [20.0, 200.0]
    assert row["decode_tps_over_q4_0"] == row["rss_mb_over_q4_0"] == 2.0
    assert row["file_mb"] == 2.0
    assert "decode_tps_over_q4_0" not in _row(Peer("p", (), tmp_path), runs, [])


def test_a_process_that_fails_is_named() -> None:
    with pytest.raises(click.ClickException, match="ended with 3: oh"):
        call(sys.executable, "-c", "import sys; sys.stderr.write('oh'); sys.exit(3)")
    assert call(sys.executable, "-c", "print('noise'); print('{\"a\": 1}')") == {"a": 1}


def test_files_and_folders_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x").write_bytes(bytes(1_000_000))
    assert size_mb(tmp_path) == size_mb(tmp_path / "inner" / "x") == 1.0


def test_a_folder_that_is_no_bundle_has_no_perplexity(tmp_path: Path) -> None:
    import numpy as np

    assert perplexity_of(Peer("p", (), tmp_path), np.zeros(8, np.int64), 4) is None
