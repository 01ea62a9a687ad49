# SPDX-License-Identifier: Apache-2.0
"""The ctypes mirror of the CUDA kernels' C interface against the C compiler, and errors where there is no library."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.runtimes.cuda import binding as binding
from nanoquant_edge.runtimes.cuda import table_types
from nanoquant_edge.system import native

HEADERS = Path(__file__).resolve().parents[3] / "plugins" / "kernels"
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "nq_linear": binding.CLinear,
    "nq_cuda_pass": binding.CPass,
    "nq_cuda_device": binding.CDevice,
    "nq_cuda_cache": binding.CCache,
    "nq_cuda_attention": binding.CAttention,
    "nq_cuda_choice": binding.CChoice,
    "nq_cuda_table": table_types.CTable,
    "nq_cuda_embedding": table_types.CEmbedding,
    "nq_cuda_normalization": table_types.CNormalization,
    "nq_cuda_output": table_types.COutput,
    "nq_cuda_sampling": table_types.CSampling,
}
INCLUDED = ("nq_cuda.h", "nq_cuda_attention.h", "nq_cuda_table.h")
ENUMS = {
    "NQ_": (binding.Status, binding.CType, binding.Layout),
    "NQ_INPUT_": (binding.Input,),
    "NQ_PRECISION_": (binding.Precision,),
    "NQ_ALGORITHM_": (binding.Algorithm,),
    "NQ_NORM_": (table_types.Norm,),
}


def test_structures_and_constants_are_those_of_the_c_compiler(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = []
    for name, structure in STRUCTS.items():
        lines.append(f'printf("\\"{name}\\": %zu,\\n", sizeof({name}));')
        for field in structure._fields_:
            lines.append(f'printf("\\"{name}.{field[0]}\\": %zu,\\n", offsetof({name}, {field[0]}));')
            lines.append(f'printf("\\"{name}.{field[0]} size\\": %zu,\\n", sizeof((({name}*)0)->{field[0]}));')
    expected_constants = {}
    for prefix, enums in ENUMS.items():
        for member in (member for enum in enums for member in enum):
            word = f"LAYOUT_{member.name}" if isinstance(member, binding.Layout) else member.name
            expected_constants[prefix + word] = int(member)
    expected_constants["NQ_CUDA_MAX_GROUP"] = binding.MAX_GROUP
    expected_constants["NQ_CUDA_TILE_ROWS"] = binding.TILE_ROWS
    expected_constants["NQ_CUDA_TILE_COLUMNS"] = binding.TILE_COLUMNS
    lines += [f'printf("\\"{name}\\": %d,\\n", (int){name});' for name in expected_constants]
    source = tmp_path / "sizes.c"
    body = "\n  ".join(lines)
    includes = "".join(f'#include "{name}"\n' for name in INCLUDED)
    source.write_text(f"#include <stdio.h>\n{includes}int main(void) {{\n  {body}\n  return 0;\n}}\n")
    program = tmp_path / "sizes"
    subprocess.run([compiler, "-std=c11", f"-I{HEADERS}", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = json.loads("{" + printed.rstrip().rstrip(",") + "}")
    expected = dict(expected_constants)
    for name, structure in STRUCTS.items():
        expected[name] = ctypes.sizeof(structure)
        for field in structure._fields_:
            member = getattr(structure, field[0])
            expected[f"{name}.{field[0]}"] = member.offset
            expected[f"{name}.{field[0]} size"] = member.size
    assert found == expected


def test_every_field_of_the_headers_is_mirrored_in_order() -> None:
    text = "".join((HEADERS / name).read_text() for name in ("nq_kernels.h", *INCLUDED))
    text = re.sub(r"//[^\n]*", "", text)
    for name, structure in STRUCTS.items():
        body = re.search(r"typedef struct " + name + r" \{(.*?)\}", text, re.S)
        assert body is not None
        fields = [re.search(r"(\w+)(\[\w+\])?\s*$", part) for part in body[1].split(";") if part.strip()]
        assert [field[1] for field in fields if field] == [field[0] for field in structure._fields_]


def test_tile_words_pads_rows_to_16_and_columns_to_256() -> None:
    assert binding.tile_words(1, 1) == 128
    assert binding.tile_words(16, 256) == 128
    assert binding.tile_words(17, 257) == 4 * 128


def test_a_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(native.NATIVE_DIR_VARIABLE, str(tmp_path))
    binding.library.cache_clear()
    for call in (native.cuda_library_path, native.cuda_library_info, binding.library):
        with pytest.raises(NqEdgeError) as caught:
            call()
        assert caught.value.code == "NQ-NATIVE-MISSING"
        assert native.CUDA_LIBRARY_NAME in str(caught.value)
    monkeypatch.delenv(native.NATIVE_DIR_VARIABLE)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "system" / "native.py"))
    with pytest.raises(NqEdgeError, match=r"nvcc 12\.6 or newer"):
        native.cuda_library_path()


def test_a_foreign_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / native.CUDA_LIBRARY_NAME).write_bytes(b"not a library")
    monkeypatch.setenv(native.NATIVE_DIR_VARIABLE, str(tmp_path))
    binding.library.cache_clear()
    for call in (native.cuda_library_info, binding.library):
        with pytest.raises(NqEdgeError, match="cannot be used") as caught:
            call()
        assert caught.value.code == "NQ-NATIVE-MISSING"


def test_statuses_become_errors_with_the_librarys_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def nq_status_text(status: int) -> bytes:
            return {5: b"no kernel", 7: b"no workspace"}[status]

        @staticmethod
        def nq_cuda_error_text() -> bytes:
            return b"out of luck"

    monkeypatch.setattr(binding, "library", lambda: Library)
    binding.check(binding.Status.OK, "nothing")
    with pytest.raises(NqEdgeError, match=r"\[NQ-CUDA\] a pass failed: no kernel \(out of luck\)\."):
        binding.check(5, "a pass")
    with pytest.raises(NqEdgeError, match=r"a pass failed: no workspace\."):
        binding.check(7, "a pass")


def test_the_built_library_loads_without_a_gpu_and_describes_itself() -> None:
    binding.library.cache_clear()
    try:
        info = native.cuda_library_info()
    except NqEdgeError as error:
        pytest.skip(error.message)
    assert info["architectures"]
    assert all(name.isdigit() for name in info["architectures"])
    library = binding.library()
    assert library.nq_status_text(0) == b"ok"
    assert library.nq_cuda_tile_words(17, 257) == binding.tile_words(17, 257)
