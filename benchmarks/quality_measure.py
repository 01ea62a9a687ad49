# SPDX-License-Identifier: Apache-2.0
"""What is measured of a model in the quality table, in one pass over each text's windows.

Perplexity is exp of the mean over windows of the mean next-token loss (docs/METHOD.md, section 3.2); KL (dense to
compressed) and agreement of the most likely token are over all positions of the first windows of the first corpus.
`code` is the share of next tokens that are the likeliest one on source code: modules of this Python's standard library.
Everything is float32; windows and positions are taken together as far as memory allows, which changes no definition.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.zero_shot import Tasks
from nanoquant_edge.compression.calibrate.text import read_text
from nanoquant_edge.validation.perplexity import head_logits

__all__ = ["CORPORA", "Measure", "WindowFigures", "corpus_windows", "source_code", "window_figures"]

#: Field of a row -> file.
CORPORA = {"ppl": "wikitext2-test.raw", "ppl2": "wikipedia-passages.txt"}
WINDOW, KL_WINDOWS, CODE_WINDOWS = 2048, 8, 16
#: Modules that every Python of the last ten years has, of different kinds.
_MODULES = ("argparse", "ast", "calendar", "csv", "dataclasses", "difflib", "heapq", "shutil", "textwrap", "zipfile")
#: Tokens of one forward pass and bytes of float32 logits, on a CPU and on a GPU.
_TOKENS = {"cpu": WINDOW, "cuda": 8 * WINDOW}
_LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


def corpus_windows(tokenizer: Any, config: Mapping[str, Any], text: str, count: int, window: int = WINDOW) -> Tensor:
    """The first windows of a text, tokenized once; the rest is dropped (docs/METHOD.md, section 3.2).

    Gemma's windows are BOS and window - 1 tokens each. Other models' begin where the last one ended, and what the
    tokenizer itself puts in front stands at the start of the text only.

    Returns:
        int64 (windows, window), as many as there are, up to `count`.
    """
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    if not str(config.get("model_type", "")).startswith("gemma"):
        count = min(count, len(ids) // window)
        return ids[: count * window].view(count, window)
    start = int(tokenizer.bos_token_id)
    ids = ids[1:] if int(ids[0]) == start else ids
    count = min(count, len(ids) // (window - 1))
    body = ids[: count * (window - 1)].view(count, window - 1)
    return torch.cat([torch.full((count, 1), start), body], 1)


def _states(model: Any, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows (some, length) on the model's device and the last states (some, length, hidden), batch by batch."""
    at_once = max(1, _TOKENS[model.device.type] // windows.shape[1])
    for part in windows.split(at_once):
        ids = part.to(model.device)
        yield ids, model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def source_code(folder: Path | None = None) -> str:
    """The text of some modules of a Python's standard library; of this Python's where no folder is given."""
    folder = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    files = [folder / f"{module}.py" for module in _MODULES]
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return text[: CODE_WINDOWS * WINDOW * 8]  # a token has about four letters


class WindowFigures(NamedTuple):
    """Perplexity; mean KL (dense || model) in nats; how often the likeliest token is the dense model's, and right."""

    ppl: float
    kl: float
    top1: float
    right: float


@torch.inference_mode()
def window_figures(model: Any, windows: Tensor, dense: Any = None, dense_states: Tensor | None = None) -> WindowFigures:
    """Perplexity and right tokens over windows, KL and agreement where the dense model's last states are known.

    Args:
        model: transformers causal language model.
        windows: int64 (count, length).
        dense: the dense model, for its head.
        dense_states: its last states (some, length, hidden) on the first windows; none leaves KL and agreement 0.
    """
    length = windows.shape[1]
    rows = max(1, _LOGIT_BYTES[model.device.type] // (4 * model.get_output_embeddings().weight.shape[0]))
    losses: list[Tensor] = []
    divergence = torch.zeros((), dtype=torch.float64, device=model.device)
    equal, right = (torch.zeros((), dtype=torch.int64, device=model.device) for _ in range(2))
    known = 0 if dense_states is None else len(dense_states)
    first = 0
    for ids, states in _states(model, windows):
        targets = torch.cat([ids[:, 1:], ids[:, :1]], 1).flatten()  # the last position's is not counted
        flat = states.flatten(0, 1)
        here = min(max(known - first, 0), len(ids)) * length
        wanted_states = None
        if dense_states is not None and here:
            wanted_states = dense_states[first : first + len(ids)].flatten(0, 1).to(model.device)
        found = torch.empty(len(flat), dtype=torch.float64, device=model.device)
        counted = torch.arange(len(flat), device=model.device) % length < length - 1
        for start in range(0, len(flat), rows):
            part = slice(start, start + rows)
            chances = head_logits(model, flat[part]).log_softmax(-1)
            found[part] = -chances.gather(1, targets[part, None])[:, 0].double()
            best = chances.argmax(-1)
            right += ((best == targets[part]) & counted[part]).sum()
            if wanted_states is not None and start < here:
                wanted = head_logits(dense, wanted_states[part]).log_softmax(-1)
                chances = chances[: len(wanted)]
                divergence += (wanted.exp() * (wanted - chances)).sum(dtype=torch.float64)
                equal += (wanted.argmax(-1) == best[: len(wanted)]).sum()
        losses.append(found.view_as(ids)[:, : length - 1].mean(1))
        first += len(ids)
    positions = max(1, known * length)
    ppl, shares = math.exp(float(torch.cat(losses).mean())), (float(divergence) / positions, int(equal) / positions)
    return WindowFigures(ppl, *shares, int(right) / max(1, len(windows) * (length - 1)))


class Measure:
    """The texts on which a model and its compressed forms are measured.

    Args:
        tokenizer: the model's.
        config: its config.json.
        texts: folder with the corpora and `zeroshot`.
        windows: of each corpus, at most.
        items: of each zero-shot set; 0 leaves them out.
    """

    def __init__(self, tokenizer: Any, config: Mapping[str, Any], texts: Path, windows: int, items: int) -> None:
        self.corpora = {
            name: corpus_windows(tokenizer, config, read_text(texts / file), windows) for name, file in CORPORA.items()
        }
        self.code = corpus_windows(tokenizer, config, source_code(), CODE_WINDOWS if windows else 0)
        self.tasks = Tasks(tokenizer, texts / "zeroshot", items)
        self._states: Tensor | None = None

    @torch.inference_mode()
    def dense_states(self, dense: Any) -> Tensor:
        """The dense model's last states on the windows that KL is taken over, float32 on the CPU; computed once."""
        if self._states is None:
            windows = self.corpora["ppl"][:KL_WINDOWS]
            self._states = torch.cat([states.float().cpu() for _, states in _states(dense, windows)])
        return self._states

    def dense(self, model: Any) -> dict[str, float]:
        """The dense model's own figures, `ppl_dense` and so on."""
        found = {name: round(window_figures(model, windows).ppl, 3) for name, windows in self.corpora.items()}
        found["code"] = round(window_figures(model, self.code).right, 4)
        return {f"{name}_dense": value for name, value in {**found, **self.tasks.accuracies(model)}.items()}

    def compressed(self, model: Any, dense: Any, states: Tensor) -> dict[str, float]:
        """Figures of a compressed model; `states` are the dense model's, and only its head is used."""
        first, second = self.corpora.values()
        found = window_figures(model, first, dense, states)
        figures = {"ppl": round(found.ppl, 3), "ppl2": round(window_figures(model, second).ppl, 3)}
        figures["code"] = round(window_figures(model, self.code).right, 4)
        return {**figures, **self.tasks.accuracies(model), "kl": round(found.kl, 4), "top1": round(found.top1, 4)}
