# SPDX-License-Identifier: Apache-2.0
"""Running exported bundles in ONNX Runtime, and the dense PyTorch model that they must equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.checkpoint import Checkpoint
from nanoquant_edge.system.native import ort_library_path


def have_kernel() -> bool:
    """Whether the native library is built."""
    try:
        return ort_library_path().is_file()
    except NqEdgeError:
        return False


def open_session(
    model: str | Path | bytes, kernel: bool = True, threads: int = 1, **entries: str
) -> onnxruntime.InferenceSession:
    """A CPU session with the operator's kernel, or with the portable body and no constant folding."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    if kernel:
        options.register_custom_ops_library(str(ort_library_path()))
    disabled = [] if kernel else ["ConstantFolding"]
    model = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


class Decoder:
    """One sequence batch with its cache bound in place, as a runtime does it."""

    def __init__(self, bundle: Bundle, batch: int = 1, capacity: int = 32, fill: float = 0.0, kernel: bool = True):
        self.session = open_session(bundle.folder / "model.onnx", kernel)
        kv = bundle.kv
        dtype = {"float32": np.float32, "float16": np.float16}[kv.dtype]
        shape = (batch, kv.heads, capacity, kv.head_dim)
        names = [f"{block}.{part}" for block in range(kv.layers) for part in ("key", "value")]
        self.cache = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, fill, dtype)) for name in names}

    def __call__(self, ids: np.ndarray, mask: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Logits [batch, positions, vocab]; the cache moves on."""
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("attention_mask", np.ascontiguousarray(mask))
        binding.bind_cpu_input("logits_indices", np.ascontiguousarray(indices))
        binding.bind_output("logits", "cpu")
        for name, value in self.cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    def feed(self, ids: np.ndarray, past: int = 0) -> np.ndarray:
        """Logits of all positions of `ids` [1, sequence], after `past` earlier tokens."""
        mask = np.ones((1, past + ids.shape[1]), np.int64)
        return self(ids, mask, np.arange(ids.shape[1])[None])


def reference_model(checkpoint: Checkpoint) -> Any:
    """transformers' model with dense weights made from the factors."""
    entries = {
        key: value for key, value in checkpoint.config.items() if key not in ("quantization_config", "model_type")
    }
    config = AutoConfig.for_model(checkpoint.config["model_type"], **entries)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    parts = ("packed", "scale_in", "scale_out", "scale_mid")
    state = {
        name: torch.tensor(np.asarray(checkpoint.tensor(name)).astype(np.float32))
        for name in checkpoint.tensor_names()
        if not name.endswith(parts)
    }
    for name in checkpoint.layers:
        state[f"{name}.weight"] = torch.tensor(checkpoint.layer(name).dense().astype(np.float32))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model


def reference_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """float32 logits [batch, sequence, vocab]."""
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()
