# SPDX-License-Identifier: Apache-2.0
"""Quantized tables: rounding, packing, reading back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import TABLE_FORMATS, WEIGHTS_FILE, Checkpoint, QuantizedTable, quantize_table
from nanoquant_edge.validation.dense import table_rows
from tests.tiny import tiny_checkpoint


def random_table(rows: int = 2500, columns: int = 72) -> np.ndarray:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((rows, columns)) * np.exp(rng.standard_normal((rows, 1)))
    table[3] = 0
    table[4] = 1e-9
    return table.astype(np.float32)


@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_every_entry_is_within_half_a_step(kind: str) -> None:
    dense = random_table()
    table = quantize_table(dense, kind)
    assert table.shape == dense.shape
    found = table.dense(np.float32)
    steps = np.repeat(np.abs(table.scales.astype(np.float32)), table.group_size, axis=1)[:, : dense.shape[1]]
    # The entry opposite the largest one may need code 8, which does not exist: it is a whole step off.
    limit = 0.5 if kind == "int8" else 1.0
    assert (np.abs(found - dense) <= limit * 1.002 * steps + 1e-7).all()
    assert not found[3].any()
    error = np.sqrt(((found - dense) ** 2).mean() / (dense**2).mean())
    assert error < {"int8": 0.008, "int4": 0.1}[kind]


@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_code_that_shares_nothing_reads_the_same_rows(kind: str) -> None:
    table = quantize_table(random_table(70), kind)
    other = table_rows(torch.from_numpy(table.codes), torch.from_numpy(table.scales), kind).numpy()
    np.testing.assert_array_equal(other, table.dense(np.float32))


def test_golden_bytes() -> None:
    """Row (7, -8, 1, 0 ...) with scale 1: the even column in the low half."""
    dense = np.zeros((1, 32), np.float32)
    dense[0, :3] = [7, -8, 1]
    table = quantize_table(dense, "int4")
    assert table.scales.tolist() == [[1.0]]
    assert table.codes.view(np.uint8)[0, :2].tolist() == [0x87, 0x01]
    assert quantize_table(dense * 127 / 8, "int8").codes[0, :3].tolist() == [111, -127, 16]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_impossible_entries_are_refused(value: float) -> None:
    dense = random_table(5)
    dense[2, 7] = value
    with pytest.raises(NqEdgeError) as error:
        quantize_table(dense, "int8", "model.embed_tokens")
    assert error.value.code == "NQ-NUMERIC"


def test_impossible_formats_are_refused() -> None:
    for dense, kind, message in ((random_table(5), "int3", "'int3'"), (random_table(5, 33), "int4", "33 columns")):
        with pytest.raises(NqEdgeError, match=message) as error:
            quantize_table(dense, kind)
        assert error.value.code == "NQ-OPTION"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TABLE_FORMATS)
def test_checkpoint_keeps_a_tied_table_once(tmp_path: Path, kind: str, tied: bool) -> None:
    written = tiny_checkpoint(tmp_path / "c", embedding=kind, tie_word_embeddings=tied)
    modules = ["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"]
    assert written.settings.tables == dict.fromkeys(modules, kind)
    assert {name for name in written.tensor_names() if name.endswith(".codes")} == {f"{m}.codes" for m in modules}
    assert not any(f"{m}.weight" in written for m in modules)
    plain = tiny_checkpoint(tmp_path / "plain", tie_word_embeddings=tied)
    for module in modules:
        table = written.table(module)
        assert isinstance(table, QuantizedTable)
        expected = quantize_table(plain.tensor(f"{module}.weight"), kind)
        np.testing.assert_array_equal(table.codes, expected.codes)
        np.testing.assert_array_equal(written.tensor(f"{module}.weight"), expected.dense())
        assert plain.table(module) is None


def test_contradictions_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    tiny_checkpoint(folder, embedding="int4")
    good = load_file(folder / WEIGHTS_FILE)
    config = json.loads((folder / "config.json").read_text())
    codes, scales = "model.embed_tokens.codes", "model.embed_tokens.scales"
    for change, message in (
        ({scales: good[scales][:, :-1].copy()}, "has shape"),
        ({scales: good[scales].astype(np.float32)}, "type F16"),
        ({codes: good[codes][:-1].copy()}, "has shape"),
        ({codes: good[codes].astype(np.int32)}, "type I8"),
        ({codes: None}, "no tensor model.embed_tokens.codes"),
        ({"model.embed_tokens.weight": np.zeros((2, 2), np.float16)}, "stored twice"),
    ):
        changed = {name: value for name, value in {**good, **change}.items() if value is not None}
        save_file(changed, folder / WEIGHTS_FILE)
        with pytest.raises(NqEdgeError, match=message) as error:
            Checkpoint(folder)
        assert error.value.code == "NQ-CKPT"
    save_file(good, folder / WEIGHTS_FILE)
    Checkpoint(folder)
    for tables in ({"model.embed_tokens": "int3"}, ["model.embed_tokens"], {"model.embed_tokens": None}):
        config["quantization_config"]["tables"] = tables
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(NqEdgeError, match=r"quantization_config\.tables.* has the impossible value"):
            Checkpoint(folder)
