# SPDX-License-Identifier: Apache-2.0
"""What a loaded model says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.models.source import SourceModel
from tests.tiny import llama_config


def _source(**changes: Any) -> SourceModel:
    return SourceModel("m", None, None, llama_config(**changes), Path(), "")  # type: ignore[arg-type]


@pytest.mark.parametrize(("named", "expected"), [(None, 0), (0, 0), (1, 1), (319, 319)])
def test_the_start_token_is_the_models_bos(named: int | None, expected: int) -> None:
    assert _source(bos_token_id=named).start_token == expected


@pytest.mark.parametrize("named", [320, 151643, -1, 2**70, 1.0, "1", "x", True, [1], [], {}, "\ud800"])
def test_a_start_token_outside_of_the_vocabulary_is_refused(named: object) -> None:
    with pytest.raises(NqEdgeError, match=r"as bos_token_id, and the vocabulary has ids from 0 to 319") as caught:
        _ = _source(bos_token_id=named).start_token
    assert caught.value.code == "NQ-MODEL"
