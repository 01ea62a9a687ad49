# SPDX-License-Identifier: Apache-2.0
"""Block reconstruction ends with the states that the dense model's head is given, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanoquant_edge.compression.sequence import reconstruct_blocks
from nanoquant_edge.models.loading import load_model
from tests.compression.support import even_importances, family_folder, short_run, teacher_of
from tests.families import FAMILY_CONFIGS


@pytest.mark.parametrize("name", [*FAMILY_CONFIGS])
def test_the_states_are_what_the_dense_head_is_given(tmp_path: Path, name: str) -> None:
    ids = torch.randint(3, 320, (3, 24), generator=torch.Generator().manual_seed(1))
    shortest = {"admm_steps": 1, "fp_epochs": 0, "ste_epochs": 0, "kd_epochs": 0}
    with load_model(family_folder(tmp_path / "m", name)) as source:
        model = source.model.requires_grad_(False)
        layers = {n: model.get_submodule(n) for n in source.family.layer_names(source.decoder.num_layers)}
        importances, ranks = even_importances(layers), dict.fromkeys(layers, 32)
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            run = short_run(dtype, **shortest)
            found[dtype] = reconstruct_blocks(source, ids, importances=importances, ranks=ranks, run=run).states
            assert found[dtype].dtype == dtype
        wanted = teacher_of(model, ids)
        # Windows go through a block together here and through the model one by one: float32 rounding.
        torch.testing.assert_close(found[torch.float32], wanted, rtol=1e-4, atol=1e-5)
        assert (found[torch.bfloat16].float() - wanted).norm() < 0.03 * wanted.norm()
        # Nothing but the head, and the cap that the loss knows, comes after them.
        cap = getattr(model.config, "final_logit_softcapping", None)
        logits = model.get_output_embeddings()(found[torch.float32])
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-3, atol=1e-4)
