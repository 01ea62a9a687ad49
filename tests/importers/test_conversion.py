# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other implementations: written here from their published layouts, imported, compared as weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.importers.conversion import import_checkpoint
from nanoquant_edge.validation.dense import dense_model
from tests.command import run
from tests.compression.support import ORACLE, dense_folder, dense_llama, linears_of

#: Module inside a block -> llama.cpp's name.
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def words(signs: np.ndarray) -> np.ndarray:
    """docs/FORMAT.md, "Packed words", written out: column c is bit c mod 32 of word c div 32, -1 is a set bit."""
    packed = np.zeros((signs.shape[0], -(-signs.shape[1] // 32)), np.uint32)
    for column in range(signs.shape[1]):
        packed[:, column // 32] |= (signs[:, column] < 0).astype(np.uint32) << np.uint32(column % 32)
    return packed.view(np.int32)


class Foreign:
    """Random factors of every layer of a tiny model: signs, scales, and the weights they stand for."""

    def __init__(self, model: Any, mid: bool) -> None:
        rng = np.random.default_rng(3)
        self.layers: dict[str, dict[str, np.ndarray]] = {}
        self.weights: dict[str, np.ndarray] = {}
        for name, linear in linears_of(model).items():
            m, n = linear.weight.shape
            r = int(rng.integers(3, 70))
            u, v = rng.choice([-1.0, 1.0], (m, r)), rng.choice([-1.0, 1.0], (r, n))
            s1, s2, s = (rng.uniform(0.5, 2, k).astype(ml_dtypes.bfloat16) for k in (m, n, r))
            self.layers[name] = {"u": u, "v": v, "pre": s2, "post": s1} | ({"mid": s} if mid else {})
            core = u * s.astype(np.float64) if mid else u
            self.weights[name] = s1.astype(np.float64)[:, None] * (core @ v) * s2.astype(np.float64)


def bfloat16(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)


def official_state(foreign: Foreign) -> dict[str, torch.Tensor]:
    """The official code's flat dictionary (docs/METHOD.md, section 13); with a mid scale, arelath's bridge to it."""
    state = {}
    for name, part in foreign.layers.items():
        state[f"{name}.scale_pre"] = bfloat16(part["pre"])[None]
        state[f"{name}.scale_post"] = bfloat16(part["post"])[None]
        if "mid" in part:
            state[f"{name}.scale_mid"] = bfloat16(part["mid"])[None]
        for letter in "vu":
            state[f"{name}.{letter.upper()}_packed"] = torch.from_numpy(words(part[letter]))
            state[f"{name}.{letter.upper()}_shape"] = torch.tensor(part[letter].shape)
    return state


def paired_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs side by side, as llama.cpp keeps queries and keys of `llama`."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write_gguf_factors(
    path: Path, foreign: Foreign, architecture: str, exact: bool = False, **others: np.ndarray
) -> None:
    """A GGUF file with the tensors of arelath/NanoQuant (docs/METHOD.md, section 13)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_uint32("quantization.nanoquant.version", 1)
    for name, array in others.items():
        writer.add_tensor(name, array)
    for name, part in foreign.layers.items():
        _, _, block, linear = name.split(".", 3)
        base = f"blk.{block}.{GGUF_NAMES[linear]}"
        u, post = part["u"], part["post"].astype(np.float32)
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(linear)
        if heads and architecture == "llama":
            u, post = paired_rows(u, heads), paired_rows(post, heads)
        writer.add_tensor(f"{base}.nq_v", words(part["v"]))
        writer.add_tensor(f"{base}.nq_u", words(u))
        pre = np.ascontiguousarray(part["pre"].view(np.uint8))
        writer.add_tensor(f"{base}.nq_scale_pre", pre, raw_dtype=gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(f"{base}.nq_scale_mid", part["mid"].astype(np.float32))
        writer.add_tensor(f"{base}.nq_scale_post", post)
        if exact:
            writer.add_tensor(f"{base}.nq_salient_idx", np.array([3], np.int32))
            writer.add_tensor(f"{base}.nq_salient_weight", np.ones((len(u), 1), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_folder(tmp_path_factory.mktemp("base") / "m")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base)


def check(folder: Path, foreign: Foreign, model: Any) -> Checkpoint:
    """Each imported layer is the foreign weight; everything else is the dense model's."""
    rebuilt = dense_model(folder)
    for name, linear in linears_of(rebuilt).items():
        np.testing.assert_allclose(linear.weight.detach().numpy(), foreign.weights[name], rtol=1e-6, atol=1e-6)
    table = model.get_input_embeddings().weight.half().float()
    assert torch.equal(rebuilt.get_input_embeddings().weight, table)
    assert torch.equal(rebuilt.model.norm.weight, model.model.norm.weight)
    return Checkpoint(folder)


def test_an_official_checkpoint(tmp_path: Path, base: Path, model: Any) -> None:
    foreign = Foreign(model, mid=False)
    torch.save(official_state(foreign), tmp_path / "o.pt")
    import_checkpoint(tmp_path / "o.pt", base, output=tmp_path / "c")
    checkpoint = check(tmp_path / "c", foreign, model)
    name = checkpoint.layers[0]
    assert checkpoint.settings.scale_dtype == "bfloat16"
    assert checkpoint.layer(name).u_packed.tobytes() == words(foreign.layers[name]["u"]).tobytes()
    assert checkpoint.layer(name).scale_in.tobytes() == foreign.layers[name]["pre"].tobytes()
    assert checkpoint.settings.recipe["imported_from"] == "o.pt"
    assert (tmp_path / "c/tokenizer.json").is_file()


def test_tensors_that_the_file_has_replace_the_model_s(tmp_path: Path, base: Path, model: Any) -> None:
    state = official_state(Foreign(model, mid=False))
    state["model.norm.weight"] = torch.full((40,), 3.0, dtype=torch.bfloat16)
    torch.save(state, tmp_path / "o.pt")
    checkpoint = import_checkpoint(tmp_path / "o.pt", base, output=tmp_path / "c")
    assert (checkpoint.tensor("model.norm.weight") == 3).all()


def test_arelath_s_bridge_checkpoint(tmp_path: Path, base: Path, model: Any) -> None:
    foreign = Foreign(model, mid=True)
    save_file(official_state(foreign), tmp_path / "block.safetensors")
    import_checkpoint(tmp_path / "block.safetensors", base, output=tmp_path / "c")
    assert check(tmp_path / "c", foreign, model).layer("model.layers.0.mlp.up_proj").scale_mid is not None
    (tmp_path / "shards").mkdir()
    state = official_state(foreign)
    for block in "01":
        part = {name: value for name, value in state.items() if name.startswith(f"model.layers.{block}.")}
        save_file(part, tmp_path / f"shards/block-{block}.safetensors")
    import_checkpoint(tmp_path / "shards", base, output=tmp_path / "c2")
    check(tmp_path / "c2", foreign, model)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_arelath_s_gguf(tmp_path: Path, base: Path, model: Any, architecture: str) -> None:
    foreign = Foreign(model, mid=True)
    write_gguf_factors(tmp_path / "f.gguf", foreign, architecture)
    checkpoint = import_checkpoint(tmp_path / "f.gguf", base, output=tmp_path / "c")
    check(tmp_path / "c", foreign, model)
    assert checkpoint.settings.scale_dtype == "float32"  # the file mixes types


def test_tail_bits_and_a_mid_scale_of_ones_are_dropped(tmp_path: Path, base: Path, model: Any) -> None:
    foreign = Foreign(model, mid=False)
    state = official_state(foreign)
    name = "model.layers.0.self_attn.q_proj"
    state[f"{name}.V_packed"][:, -1] |= -256  # 40 columns: bits 8 to 31 of the second word mean nothing
    state[f"{name}.scale_mid"] = torch.ones(1, state[f"{name}.V_packed"].shape[0], dtype=torch.bfloat16)
    torch.save(state, tmp_path / "o.pt")
    checkpoint = import_checkpoint(tmp_path / "o.pt", base, output=tmp_path / "c")
    assert not (checkpoint.layer(name).v_packed[:, -1].view(np.uint32) >> 8).any()
    assert checkpoint.layer(name).scale_mid is None
    check(tmp_path / "c", foreign, model)


def test_biases_come_from_the_file_or_else_from_the_model(tmp_path: Path) -> None:
    source = dense_folder(tmp_path / "m", **ORACLE)
    dense = dense_llama(**ORACLE)
    state = official_state(Foreign(dense, mid=False))
    state[f"{Q}.bias"] = torch.full((64,), 2.0, dtype=torch.bfloat16)
    torch.save(state, tmp_path / "o.pt")
    checkpoint = import_checkpoint(tmp_path / "o.pt", source, output=tmp_path / "c")
    assert (checkpoint.tensor(f"{Q}.bias") == 2).all()
    name = "model.layers.0.mlp.up_proj.bias"
    np.testing.assert_array_equal(checkpoint.tensor(name), dense.state_dict()[name].numpy())
    assert checkpoint.settings.head == "float16"


Q = "model.layers.0.self_attn.q_proj"


def drop(state: dict, name: str) -> None:
    del state[name]


FAULTS: dict[str, tuple[Callable[[dict], Any], str, str]] = {
    "no scale": (lambda s: drop(s, f"{Q}.scale_pre"), "NQ-CKPT", "q_proj has no scale_in"),
    "no u": (lambda s: drop(s, f"{Q}.U_packed"), "NQ-CKPT", "q_proj has no u_packed"),
    "no layer": (lambda s: [drop(s, n) for n in list(s) if n.startswith(Q)], "NQ-CKPT", "it has no layer"),
    "more layers": (lambda s: s.update({n.replace("s.0", "s.7"): v for n, v in s.items()}), "NQ-CKPT", "it compresses"),
    "short words": (lambda s: s.update({f"{Q}.V_packed": s[f"{Q}.V_packed"][:, :1].clone()}), "NQ-CKPT", "contradicts"),
    "shape lies": (lambda s: s.update({f"{Q}.V_shape": torch.tensor([1, 40])}), "NQ-CKPT", "contradicts itself"),
    "flat words": (lambda s: s.update({f"{Q}.V_packed": torch.zeros(3, dtype=torch.int32)}), "NQ-CKPT", "contradicts"),
    "long words": (lambda s: s.update({f"{Q}.U_packed": s[f"{Q}.U_packed"].long()}), "NQ-CKPT", "contradicts itself"),
    "matrix scale": (lambda s: s.update({f"{Q}.scale_pre": torch.ones(2, 20)}), "NQ-CKPT", "is not a vector of floats"),
    "integer scale": (lambda s: s.update({f"{Q}.scale_pre": torch.ones(40).int()}), "NQ-CKPT", "not a vector"),
    "not finite": (lambda s: s.update({f"{Q}.scale_pre": torch.full((40,), torch.inf)}), "NQ-NUMERIC", "NaN or inf"),
    "other width": (lambda s: s.update(_other_width()), "NQ-CKPT", "is 64 x 39, the model's is (64, 40)"),
    "a bias": (lambda s: s.update({f"{Q}.bias": torch.ones(64)}), "NQ-CKPT", "the model's layer has none"),
    "norm shape": (lambda s: s.update({"model.norm.weight": torch.ones(41)}), "NQ-CKPT", "model.norm.weight has shape"),
    "an adapter": (
        lambda s: s.update({f"{Q}.lora_A": torch.ones(2)}),
        "NQ-CKPT",
        f"1 tensors that the model has no place for, the first is {Q}.lora_A",
    ),
    "a head of its own": (lambda s: s.update({"lm_head.weight": torch.ones(320, 40)}), "NQ-CKPT", "is lm_head.weight"),
    "exact columns": (lambda s: s.update({f"{Q}.salient_idx": torch.ones(1)}), "NQ-CKPT", "keeps some input columns"),
    "nothing": (lambda s: s.clear(), "NQ-CKPT", "holds no packed NanoQuant layers"),
    "a stride of 0": (lambda s: s.update(x=torch.ones(1).expand(1 << 40)), "NQ-CKPT", "plain tensors"),
    "a list": (lambda s: s.update(x=[1]), "NQ-CKPT", "flat dictionary of plain tensors"),
}


def _other_width() -> dict[str, torch.Tensor]:
    ones = {f"{Q}.scale_pre": torch.ones(39), f"{Q}.scale_post": torch.ones(64)}
    return ones | {
        f"{Q}.V_packed": torch.zeros(3, 2, dtype=torch.int32),
        f"{Q}.U_packed": torch.zeros(64, 1, dtype=torch.int32),
        f"{Q}.V_shape": torch.tensor([3, 39]),
        f"{Q}.U_shape": torch.tensor([64, 3]),
    }


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_are_refused(tmp_path: Path, base: Path, model: Any, fault: str) -> None:
    make, code, message = FAULTS[fault]
    state: dict[str, Any] = official_state(Foreign(model, mid=False))
    make(state)
    torch.save(state, tmp_path / "o.pt")
    with pytest.raises(NqEdgeError) as caught:
        import_checkpoint(tmp_path / "o.pt", base, output=tmp_path / "c")
    assert caught.value.code == code
    assert message in caught.value.message
    assert not (tmp_path / "c").exists()


def test_exact_columns_of_a_gguf_are_refused(tmp_path: Path, base: Path, model: Any) -> None:
    write_gguf_factors(tmp_path / "f.gguf", Foreign(model, mid=True), "llama", exact=True)
    with pytest.raises(NqEdgeError, match="keeps some input columns exactly"):
        import_checkpoint(tmp_path / "f.gguf", base, output=tmp_path / "c")


def test_norms_of_a_gguf_replace_the_model_s_and_its_tables_do_not(tmp_path: Path, base: Path, model: Any) -> None:
    foreign = Foreign(model, mid=True)
    others = {
        "output_norm.weight": np.full(40, 3, np.float32),
        "blk.1.ffn_norm.weight": np.full(40, 2, np.float32),
        "token_embd.weight": np.zeros((320, 40), np.float32),
    }
    write_gguf_factors(tmp_path / "f.gguf", foreign, "llama", **others)
    checkpoint = import_checkpoint(tmp_path / "f.gguf", base, output=tmp_path / "c")
    assert (checkpoint.tensor("model.norm.weight") == 3).all()
    assert (checkpoint.tensor("model.layers.1.post_attention_layernorm.weight") == 2).all()
    assert (checkpoint.tensor("model.embed_tokens.weight") != 0).any()
    assert checkpoint.settings.recipe["taken_over"] == [
        "model.layers.1.post_attention_layernorm.weight", "model.norm.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.nq_new", "blk.0.attn_q.weight", "blk.0.attn_sub_norm.weight", "cls.weight"]
)
def test_what_a_gguf_holds_besides_is_refused(tmp_path: Path, base: Path, model: Any, name: str) -> None:
    write_gguf_factors(tmp_path / "f.gguf", Foreign(model, mid=True), "llama", **{name: np.ones(40, np.float32)})
    with pytest.raises(NqEdgeError, match=f"holds '{name}', which the model has no place for") as caught:
        import_checkpoint(tmp_path / "f.gguf", base, output=tmp_path / "c")
    assert caught.value.code == "NQ-CKPT"


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"not a model", b"GGUF\x03"])
def test_foreign_files(tmp_path: Path, base: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NqEdgeError) as caught:
        import_checkpoint(tmp_path / "x", base, output=tmp_path / "c")
    assert caught.value.code == "NQ-CKPT"


def test_code_in_a_pickle_does_not_run(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Evil()}, tmp_path / "x.pt")
    with pytest.raises(NqEdgeError, match="cannot be read as tensors only"):
        import_checkpoint(tmp_path / "x.pt", base, output=tmp_path / "c")
    assert "ran" not in capsys.readouterr().out


def test_the_verb(tmp_path: Path, base: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = Foreign(model, mid=False)
    torch.save(official_state(foreign), tmp_path / "o.pt")
    arguments = ("import", tmp_path / "o.pt", "--base", base, "--output", tmp_path / "c")
    assert run(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layers"] == 14
    assert report["true_bpw"] == Checkpoint(tmp_path / "c").settings.true_bpw
    assert run(*arguments) == 2
    assert "[NQ-OUTPUT]" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    assert "14 layers at" in capsys.readouterr().out
    assert run("import", tmp_path / "absent", "--base", base, "--output", tmp_path / "d") == 2
    assert "[NQ-CKPT]" in capsys.readouterr().err


def test_a_nanoquant_gguf_is_no_dense_model(tmp_path: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_gguf_factors(tmp_path / "f.gguf", Foreign(model, mid=True), "llama")
    assert run("compress", tmp_path / "f.gguf", "--output", tmp_path / "c") == 2
    shown = capsys.readouterr().err
    assert "holds a NanoQuant model already" in shown
    assert "nq-edge import" in shown


ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared/data/official-smollm2-1bpw.pt"
SMOLLM2 = ROOT / "build/models/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.skipif(not (OFFICIAL.is_file() and SMOLLM2.is_file()), reason="needs the official file and SmolLM2")
def test_a_real_official_checkpoint(tmp_path: Path) -> None:
    """Words and scales as the official code wrote them; perplexity is `benchmarks.official_import`'s business."""
    checkpoint = import_checkpoint(OFFICIAL, SMOLLM2, output=tmp_path / "c")
    state = torch.load(OFFICIAL, weights_only=True)
    assert len(checkpoint.layers) == 210
    for name in checkpoint.layers:
        layer = checkpoint.layer(name)
        assert np.array_equal(layer.u_packed, state[f"{name}.U_packed"].numpy())
        assert np.array_equal(layer.v_packed, state[f"{name}.V_packed"].numpy())
        assert torch.equal(bfloat16(np.array(layer.scale_in)), state[f"{name}.scale_pre"][0])
        assert torch.equal(bfloat16(np.array(layer.scale_out)), state[f"{name}.scale_post"][0])
    assert round(checkpoint.settings.true_bpw, 4) == 0.9557
