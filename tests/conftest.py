# SPDX-License-Identifier: Apache-2.0
"""Tiny bundles, exported once for the tests of all packages that run them, and tokenizers of the two common kinds.

What makes them is imported when asked for: tests of the kernels run where the exporters' packages are not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before PyTorch and NumPy are loaded: on a busy machine, the threads of one tiny product wait for each other for
# longer than it takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Comparisons with PyTorch are about graphs, so that layers compute in float32 and limits are tight; what the kernels of
# each instruction set make of the same layers is tested in tests/plugins, by name.
os.environ.setdefault("NQ_CPU_ISA", "scalar")

if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # No clocks: they measure how busy the machine is. `--hypothesis-profile thorough` is for `make test-all`.
    clockless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("default", clockless, max_examples=50)
    settings.register_profile("thorough", clockless, max_examples=1000)
    settings.load_profile("default")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx
    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("runtime")
    export_onnx(tiny_checkpoint(folder / "checkpoint"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def portable_bundle(tiny_bundle: Path) -> Path:
    from nanoquant_edge.exporters.onnx import export_onnx

    folder = tiny_bundle.parent
    export_onnx(folder / "checkpoint", folder / "portable", portable=True)
    return folder / "portable"


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import write_tokenizer

    folder = tmp_path_factory.mktemp("byte_level")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def byte_fallback_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the Llama-2 kind: spaces as U+2581, unknown characters as bytes, BOS by the post-processor."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    from tests.tiny import TEXT

    folder = tmp_path_factory.mktemp("byte_fallback")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({c for c in TEXT if c.isascii() and c not in " \n"} | {"\u2581", "ö"})
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *letters, "\u2581t", "\u2581th", "he"])}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("h", "e")]
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    return folder


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of native libraries whose CUDA library computes on the processor (plugins/tests/stand_in)."""
    from nanoquant_edge.system.native import CUDA_LIBRARY_NAME, ORT_LIBRARY_NAME, ort_library_path
    from tests.plugins import builds

    try:
        built = builds.build("stand_in") / "tests" / "libnq_stand_in_cuda.so"
    except builds.Missing as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("native")
    (folder / CUDA_LIBRARY_NAME).symlink_to(built)
    (folder / ORT_LIBRARY_NAME).symlink_to(ort_library_path())
    return folder


@pytest.fixture
def stand_in(stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One invented GPU of 1 GiB in the place of what GPUs there are."""
    from nanoquant_edge.runtimes.cuda import binding
    from nanoquant_edge.system.native import NATIVE_DIR_VARIABLE

    monkeypatch.setenv(NATIVE_DIR_VARIABLE, str(stand_in_folder))
    binding.library.cache_clear()
    yield stand_in_folder
    binding.library.cache_clear()
