# SPDX-License-Identifier: Apache-2.0
"""The cases of attention that every CUDA library must compute: odd lengths, pages, windows, caps, 8 bits, outliers.

python -m tests.plugins.attention_grid LIBRARY [NAME...]        all, or those whose names contain one of these
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from nanoquant_edge.runtimes.cuda.binding import CType
from tests.plugins.attention_cases import DTYPES, Case, Layout, Library, check_case

__all__ = ["CASES", "LARGE"]


def _one(case: Case, **changes: Any) -> list[Case]:
    """A case of one token a sequence both ways: fused, and append then attend_many."""
    changed = replace(case, new=(1,) * len(case.held), **changes)
    return [replace(changed, fused=True), changed]


def _both_types(cases: list[Case]) -> list[Case]:
    return [replace(case, type=kind) for case in cases for kind in DTYPES]


_PAGED, _PAGED_8 = Layout(page_tokens=16, capacity=96), Layout(8, page_tokens=16, capacity=96)
_RAGGED = Case((37, -1, 0, 64), (5, 2, 9, 17), cache=_PAGED)

#: what is compared, by name
CASES: dict[str, list[Case]] = {
    "one token at odd lengths": [
        Case((held,), (1,), cache=Layout(capacity=300), fused=True, seed=held)
        for held in (0, 1, 15, 16, 17, 31, 32, 33, 63, 127, 128, 129, 255, 299)
    ],
    "tokens at odd lengths": [
        Case((held,), (new,), cache=Layout(capacity=200), seed=held + new)
        for held, new in ((0, 1), (0, 2), (0, 31), (0, 65), (1, 63), (63, 2), (64, 64), (129, 17))
    ],
    "one token of several sequences": _both_types(
        [*_one(_RAGGED, norms=True), *_one(_RAGGED, norms=True, cache=_PAGED_8)]
    ),
    "ragged tokens": _both_types(
        [_RAGGED, replace(_RAGGED, cache=_PAGED_8), replace(_RAGGED, cache=Layout(capacity=96))]
    ),
    "sequences without new tokens": [Case((20, 31, 5), (3, 0, 1), cache=_PAGED)],
    "a cache that is full": [
        Case((94, 96, 10), (4, 1, 2), cache=_PAGED),
        *_one(Case((95, 96), (), cache=_PAGED)),
        *_one(Case((63, 64), (), cache=Layout(capacity=64))),
    ],
    "shared pages": [
        case
        for bits in (16, 8)
        for case in (
            Case((40, 33), (3, 20), cache=Layout(bits, page_tokens=16, capacity=64, shared=2)),
            *_one(Case((40, 33), (), cache=Layout(bits, page_tokens=16, capacity=64, shared=2))),
        )
    ],
    "head sizes": [
        case
        for dim in (16, 48, 64, 80, 96, 112, 128, 160, 256)
        for bits in (16, 8)
        for case in (
            Case((21,), (6,), head_dim=dim, cache=Layout(bits, capacity=48)),
            Case((21,), (1,), head_dim=dim, cache=Layout(bits, capacity=48), fused=True, type=CType.BFLOAT16),
        )
    ],
    "groups of heads": [
        case
        for heads in ((1, 1), (3, 1), (7, 1), (8, 1), (9, 1), (14, 2), (17, 1), (4, 4))
        for case in (
            Case((19, 2), (5, 3), heads=heads, cache=_PAGED),
            *_one(Case((35, 2), (), heads=heads, cache=_PAGED_8)),
        )
    ],
    "windows": [
        case
        for window in (1, 5, 16, 33, 64, 200)
        for case in (
            Case((70, 3), (9, 20), window=window, cache=_PAGED),
            *_one(Case((70, 3), (), window=window, cache=_PAGED_8)),
        )
    ],
    "soft caps": [
        case
        for bits in (16, 8)
        for case in (
            Case((20,), (9,), soft_cap=3.0, cache=Layout(bits)),
            Case((20,), (9,), soft_cap=50.0, window=12, cache=Layout(bits), head_dim=128),
            *_one(Case((20,), (), soft_cap=3.0, cache=Layout(bits))),
        )
    ],
    "no rotation": [Case((20,), (9,), rotary=False), *_one(Case((20,), (), rotary=False))],
    "outliers": _both_types(
        [
            case
            for bits in (16, 8)
            for case in (
                Case((20,), (30,), norms=True, outliers=True, cache=Layout(bits)),
                *_one(Case((50,), (), norms=True, outliers=True, cache=Layout(bits))),
            )
        ]
    ),
    "splits of a long context": [
        Case((1000,), (1,), heads=(2, 1), cache=Layout(capacity=1024), fused=True),
        Case((1000,), (1,), heads=(9, 1), cache=Layout(8, page_tokens=16, capacity=1024), fused=True),
        Case((2100,), (3,), heads=(2, 1), cache=Layout(capacity=2304)),
        Case((2100,), (3,), heads=(1, 1), head_dim=128, cache=Layout(8, page_tokens=16, capacity=2304), window=1500),
    ],
    "blocks with two tiles a warp": [
        Case((3,), (150,), heads=(8, 2), cache=Layout(page_tokens=32, capacity=160), compared=13),
        Case((3,), (150,), heads=(8, 2), cache=Layout(8, capacity=160), compared=13, window=40),
        Case((3,), (150,), heads=(6, 2), head_dim=96, cache=Layout(capacity=160), compared=13, type=CType.BFLOAT16),
        Case((3,), (150,), heads=(6, 2), head_dim=128, cache=Layout(capacity=160), compared=13),
    ],
}

#: sizes of real models, too long for an emulator
LARGE: dict[str, list[Case]] = {
    "llama-3.2-1b": [
        Case((0,), (1100,), heads=(32, 8), cache=Layout(page_tokens=128, capacity=1152), compared=91),
        *_one(Case((8191, 0), (), heads=(32, 8), cache=Layout(page_tokens=128, capacity=8192), type=CType.BFLOAT16)),
        *_one(Case((8000, 8191), (), heads=(32, 8), cache=Layout(8, page_tokens=128, capacity=8192))),
        Case((4000,), (40,), heads=(32, 8), cache=Layout(page_tokens=128, capacity=8192), compared=7),
    ],
    "qwen3-0.6b": [
        Case((0, 100), (1100, 77), heads=(16, 8), head_dim=128, cache=Layout(capacity=1200), norms=True, compared=91),
        *_one(Case((1151, -1, 5, 700), (), heads=(16, 8), head_dim=128, cache=Layout(capacity=1152), norms=True)),
    ],
    "gemma-3-270m": [
        Case(
            *((0,), (1300,)), heads=(4, 1), head_dim=256, cache=Layout(page_tokens=128, capacity=1408), window=512,
            norms=True, type=CType.BFLOAT16, compared=91,
        ),
        *_one(Case((3000,), (), heads=(4, 1), head_dim=256, cache=Layout(page_tokens=128, capacity=4096), window=512)),
    ],
}  # fmt: skip


def main(path: str, names: list[str]) -> int:
    """Run cases and print what they gave; the number of those that failed."""
    library, failed = Library(path), 0
    for name, cases in {**CASES, **LARGE}.items():
        if names and not any(part in name for part in names):
            continue
        for case in cases:
            try:
                check_case(library, case)
            except AssertionError as error:
                failed += 1
                print(f"FAILED {name}: {case}: {error}", flush=True)
        print(f"{name}: {len(cases)} cases", flush=True)
    print(f"{failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1], sys.argv[2:])))
