# SPDX-License-Identifier: Apache-2.0
"""The reference computed by PyTorch now: a dense model rebuilt from the checkpoint (see `dense`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import NqEdgeError
from ..formats.checkpoint import TABLE_FORMATS, Checkpoint, quantize_table
from ..formats.graph import block_output, linear_output
from ..models import family_of
from ..models.cached_step import cached_step
from .compare import next_token_loss
from .dense import dense_model
from .expected import ExpectedGreedy, ExpectedWindow
from .perplexity import chunked_logits

__all__ = ["TOP", "TorchReference"]

#: Likeliest tokens kept of each position.
TOP = 64
#: Bytes of inner values held or recorded; sets how many tokens they cover.
INNER_BYTES = 24 << 20
MAX_INNER_TOKENS = 64


class TorchReference:
    """See `Reference`. Holds the dense float32 model and one window's logits at a time.

    Args:
        checkpoint: what the bundle was exported from.
        threads: PyTorch's threads from here on; None leaves them.
        embedding: how the bundle stores its tables; tables that were rounded at export are rounded here as well, so
            that the comparison is about the computation.
    """

    origin = "torch"

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None, embedding: str = "") -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model: Any = dense_model(checkpoint.folder)
        if embedding in TABLE_FORMATS and not checkpoint.settings.tables:
            _round_tables(self.model, embedding)
        self.text = ""
        self.windows: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.inner_tokens = 0
        self._prompts: list[NDArray[np.int64]] = []
        self._new_tokens = 0
        self._layers = checkpoint.layers
        self._blocks = self.model.get_submodule(family_of(checkpoint.config).blocks)
        self._width = 4 * sum(checkpoint.shape(f"{name}.scale_out")[0] for name in checkpoint.layers)
        self._width += 4 * self.model.config.hidden_size * len(self._blocks)

    def use(
        self, windows: NDArray[np.int64], text: str, *, prompts: list[NDArray[np.int64]], new_tokens: int
    ) -> TorchReference:
        """Set what is compared: windows int64 (count, length), prompts int64 (p,) each."""
        self.windows, self.text = windows, text
        self._prompts, self._new_tokens = prompts, new_tokens
        fitting = max(4, min(MAX_INNER_TOKENS, INNER_BYTES // self._width))
        self.inner_tokens = min(fitting, windows.shape[1])
        return self

    def sample(self, count: int, length: int, seed: int) -> NDArray[np.int64]:
        """Windows that the model writes itself, drawn at temperature 1: int64 (count, length)."""
        generator = torch.Generator().manual_seed(seed)
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, vocabulary, (count, 1), generator=generator)
        past = None
        with torch.inference_mode():
            while ids.shape[1] < length:
                logits, past = cached_step(self.model, ids if past is None else ids[:, -1:], past)
                chances = logits[:, -1].float().softmax(-1)
                if not torch.isfinite(chances).all():
                    raise NqEdgeError("NQ-NUMERIC", "the reference's logits are not finite.", "Compress again.")
                ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
        return ids.numpy()

    def inner(self) -> dict[str, NDArray[np.float32]]:
        """Outputs of all compressed layers and blocks, in the order in which the model computes them."""
        values: dict[str, NDArray[np.float32]] = {}

        def keep(name: str) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                tensor = output[0] if isinstance(output, tuple) else output
                # One window; OPT's feed-forward layers work on rows without a batch.
                values[name] = tensor.flatten(0, -2).float().numpy()

            return hook

        modules = [(self.model.get_submodule(name), linear_output(name)) for name in self._layers]
        modules += [(block, block_output(index)) for index, block in enumerate(self._blocks)]
        handles = [module.register_forward_hook(keep(name)) for module, name in modules]
        try:
            with torch.inference_mode():
                ids = torch.from_numpy(self.windows[:1, : self.inner_tokens].copy())
                self.model.base_model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return values

    def window(self, index: int) -> ExpectedWindow:
        """Logits of one window, all positions."""
        row = self.windows[index]
        pieces, tops, ids, sums = [], [], [], []
        for _, logits in chunked_logits(self.model, torch.from_numpy(row.copy())[None]):
            top = logits[0].topk(min(TOP, logits.shape[-1]))
            tops.append(top.values.numpy())
            ids.append(top.indices.numpy())
            sums.append(logits[0].double().logsumexp(-1).numpy())
            pieces.append(logits[0].numpy())
        whole = np.concatenate(pieces)
        loss = next_token_loss(whole[:-1], row[1:]) / (len(row) - 1)
        top_ids, top_logits, log_sum = np.concatenate(ids), np.concatenate(tops), np.concatenate(sums)
        return ExpectedWindow(loss, top_ids, top_logits, log_sum, np.arange(len(row)), whole)

    def greedy(self) -> list[ExpectedGreedy]:
        """The likeliest continuation of each prompt, token by token with a cache."""
        return [self._continue(prompt) for prompt in self._prompts]

    def _continue(self, prompt: NDArray[np.int64]) -> ExpectedGreedy:
        tokens, gaps, past = [], [], None
        ids = torch.from_numpy(prompt.copy())[None]
        with torch.inference_mode():
            for _ in range(self._new_tokens):
                logits, past = cached_step(self.model, ids, past, last=1)
                top = logits[0, -1].float().topk(2)
                tokens.append(int(top.indices[0]))
                gaps.append(float(top.values[0] - top.values[1]))
                ids = top.indices[None, :1]
        return ExpectedGreedy(prompt, np.array(tokens, np.int64), np.array(gaps, np.float32))


def _round_tables(model: Any, kind: str) -> None:
    """Round embedding and head of a dense model as `export --embedding` rounds a 16-bit table."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(module.weight): module.weight for module in modules}
    for weight in tables.values():
        rounded = quantize_table(weight.detach().numpy(), kind).dense(np.float32)
        weight.data.copy_(torch.from_numpy(np.array(rounded)))
