# SPDX-License-Identifier: Apache-2.0
"""The dense model for `benchmarks.cpu_peers`: a Hugging Face folder for PyTorch, and ONNX Runtime in float32 and int4.

The ONNX graph is the bundle's own, with the original weight in each compressed layer's place, ONNX Runtime's attention
and its MatMulNBits: blocks of 32, symmetric, accuracy level 4 (int8 activations), its fastest setting.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nanoquant_edge.bench import BenchOptions, measure_bundle
from nanoquant_edge.system.memory import resident_memory_mb

__all__ = ["dense_bundles", "dense_folder", "measure_torch"]


def dense_folder(gguf: Path, folder: Path) -> Path:
    """The model as a Hugging Face folder of float32 weights, made once."""
    if not (folder / "config.json").is_file():
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        # The weights are float32 now; what they were before would keep transformers from saving them.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
        model.save_pretrained(folder)
    return folder


def dense_bundles(checkpoint: Path, dense: Path, output: Path) -> dict[str, Path]:
    """Bundles of the dense model for ONNX Runtime, made once: name -> folder."""
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    from safetensors.numpy import load_file

    from nanoquant_edge.exporters.onnx import build_model, export_onnx
    from nanoquant_edge.exporters.onnx.export import write_model
    from nanoquant_edge.formats.bundle import Bundle
    from nanoquant_edge.formats.checkpoint import Checkpoint
    from nanoquant_edge.models.config_reader import read_config

    folders = {"onnxruntime-fp32": output / "ort-fp32", "onnxruntime-int4": output / "ort-int4"}
    if all((folder / "model.onnx.data").is_file() for folder in folders.values()):
        return folders
    source, weights = Checkpoint(checkpoint), load_file(dense / "model.safetensors")
    write_model(build_model(read_config(source.config), source), output / "graph.onnx")
    model = onnx.load(str(output / "graph.onnx"))
    for node in model.graph.node:
        if node.domain == "com.nanoquant":
            name = f"{node.name}.dense"
            array = np.ascontiguousarray(weights[f"{node.name}.weight"].astype(np.float32).T)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            node.op_type, node.domain = "MatMul", ""
            del node.attribute[:]
            node.input[:] = [node.input[0], name]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for name, folder in folders.items():
        export_onnx(source, folder, overwrite=True)
        for file in ("model.onnx", "model.onnx.data"):
            (folder / file).unlink()
        if name.endswith("int4"):
            # Every MatMul is a layer's; the head is a Gemm on the shared table and stays as it is.
            model = onnx.load(str(folders["onnxruntime-fp32"] / "model.onnx"))
            quantizer = nbits.MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
            quantizer.process()
            model = quantizer.model.model
        onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
        manifest = json.loads((folder / "nq_bundle.json").read_text())
        manifest["compressed_linears"] = 0
        manifest["files"] = {}
        (folder / "nq_bundle.json").write_text(json.dumps(manifest))
        replace(Bundle.open(folder, verify=False), files={}).write()
    (output / "graph.onnx").unlink()
    (output / "model.onnx.data").unlink()
    return folders


def measure_torch(folder: Path, threads: int, prompt: int, new: int, repetitions: int) -> dict[str, float]:
    """PyTorch float32 with a key-value cache."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rng, firsts, rates, times = np.random.default_rng(0), [], [], []
    with torch.inference_mode():
        for number in range(repetitions + 1):
            ids = torch.from_numpy(rng.integers(0, model.config.vocab_size, (1, prompt)))
            past: Any = None
            begin = time.perf_counter()
            for step in range(new + 1):
                result = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                past, ids = result.past_key_values, result.logits[:, -1:].argmax(-1)
                if step == 0:
                    first, worked = time.perf_counter(), time.process_time()
            if number:
                firsts.append(first - begin)
                rates.append(new / (time.perf_counter() - first))
                times.append((time.process_time() - worked) / new)
    first = statistics.median(firsts)
    return {
        "prefill_tps": prompt / first,
        "ttft_ms": first * 1e3,
        "decode_tps": statistics.median(rates),
        "decode_cpu_ms": statistics.median(times) * 1e3,
        "rss_mb": resident_memory_mb(),
    }


def measure_ours(folder: Path, threads: int, prompt: int, new: int, repetitions: int) -> dict[str, float]:
    """A bundle, ours or the dense one."""
    options = BenchOptions(lengths=(prompt,), new_tokens=new, repetitions=repetitions, threads=threads)
    found = measure_bundle(folder, options)
    (timing,) = found["timings"]
    figures = {key: timing[key][0] for key in ("prefill_tps", "ttft_ms", "decode_tps", "decode_cpu_ms")}
    return {**figures, "rss_mb": found["memory_mb"]["steady"], "kernel": found["kernel"]}


if __name__ == "__main__":
    kind, place, *numbers = sys.argv[1:]
    run = measure_torch if kind == "torch" else measure_ours
    print(json.dumps(run(Path(place), *(int(number) for number in numbers))))
