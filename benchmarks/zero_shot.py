# SPDX-License-Identifier: Apache-2.0
"""Zero-shot accuracy: the continuation with the largest log-likelihood, and LAMBADA's last word taken greedily.

Plain accuracy as lm-evaluation-harness calls `acc`: log-likelihoods are summed over the continuation, not divided by
its length. The files are JSON lines: `arc_easy` (query, choices, gold), `hellaswag_val_1000` (ctx, endings, label),
`piqa_valid` (goal, sol1, sol2, labels beside it), `winogrande` (context_options, continuation, gold: the context is
chosen), `lambada_openai` (context, continuation).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanoquant_edge.validation.perplexity import head_logits

__all__ = ["SETS", "Tasks"]

#: One item: (context, continuation) pairs and the place of the right one; LAMBADA has one pair.
Item = tuple[list[tuple[str, str]], int]
#: Ids of context and continuation, and where the continuation begins.
Row = tuple[list[int], int]
_LONGEST = 1024
#: Tokens of one forward pass and bytes of float32 logits, on a CPU and on a GPU.
_BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}
_LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _arc(folder: Path) -> list[Item]:
    rows = _lines(folder / "arc_easy.jsonl")
    return [([(f"{row['query']}\nAnswer:", f" {choice}") for choice in row["choices"]], row["gold"]) for row in rows]


def _hellaswag(folder: Path) -> list[Item]:
    rows = _lines(folder / "hellaswag_val_1000.jsonl")
    return [
        ([(f"{row['activity_label']}: {row['ctx']}", f" {ending}") for ending in row["endings"]], int(row["label"]))
        for row in rows
    ]


def _piqa(folder: Path) -> list[Item]:
    rows, labels = _lines(folder / "piqa_valid.jsonl"), (folder / "piqa_valid-labels.lst").read_text().split()
    return [
        ([(f"Question: {row['goal']}\nAnswer:", f" {row[name]}") for name in ("sol1", "sol2")], int(label))
        for row, label in zip(rows, labels, strict=True)
    ]


def _winogrande(folder: Path) -> list[Item]:
    rows = _lines(folder / "winogrande.jsonl")
    return [([(context, f" {row['continuation']}") for context in row["context_options"]], row["gold"]) for row in rows]


def _lambada(folder: Path) -> list[Item]:
    return [([(row["context"], f" {row['continuation']}")], 0) for row in _lines(folder / "lambada_openai.jsonl")]


SETS: dict[str, Callable[[Path], list[Item]]] = {
    "arc_easy": _arc,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "lambada": _lambada,
}


def _encoded(tokenizer: Any, pairs: list[tuple[str, str]]) -> list[Row]:
    """Ids of context and continuation together, and where the continuation begins; at most the last 1024 ids."""
    if not pairs:
        return []
    before = tokenizer([context for context, _ in pairs])["input_ids"]
    whole = tokenizer([context + continuation for context, continuation in pairs])["input_ids"]
    rows = []
    for context, ids in zip(before, whole, strict=True):
        start = min(len(context), len(ids) - 1) - max(0, len(ids) - _LONGEST)
        rows.append((ids[-_LONGEST:], max(1, start)))
    return rows


@torch.inference_mode()
def _scores(model: Any, rows: list[Row]) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation, and whether greedy decoding would have written it."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    budget = _BATCH_TOKENS[model.device.type]
    while order:
        count = max(1, budget // len(rows[order[-1]][0]))
        chosen, order = order[-count:], order[:-count]
        for place, score in zip(chosen, _batch(model, [rows[place] for place in chosen]), strict=True):
            found[place] = score
    return found


def _batch(model: Any, rows: list[Row]) -> list[tuple[float, bool]]:
    """Scores of some rows in one forward pass; the head sees only the positions that count."""
    longest = max(len(ids) for ids, _ in rows)
    # Padding stands behind, where a causal model does not see it.
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows]).to(model.device)
    spans = [(place, start, len(row)) for place, (row, start) in enumerate(rows)]
    owner = torch.tensor([place for place, start, end in spans for _ in range(start, end)]).to(model.device)
    spot = torch.tensor([position for _, start, end in spans for position in range(start, end)]).to(model.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[owner, spot - 1]
    target = ids[owner, spot]
    sums = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    wrong = torch.zeros(len(rows), dtype=torch.int64, device=model.device)
    step = max(1, _LOGIT_BYTES[model.device.type] // (4 * model.get_output_embeddings().weight.shape[0]))
    for first in range(0, len(owner), step):
        part = slice(first, first + step)
        logits = head_logits(model, hidden[part])
        chances = logits.log_softmax(-1).gather(1, target[part, None])[:, 0]
        sums.index_add_(0, owner[part], chances.double())
        wrong.index_add_(0, owner[part], (logits.argmax(-1) != target[part]).long())
    return list(zip(sums.tolist(), (wrong == 0).tolist(), strict=True))


class Tasks:
    """The sets that lie in a folder, tokenized once for all models that share the tokenizer.

    Args:
        tokenizer: transformers tokenizer.
        folder: with the files named above; sets that are not there are left out.
        items: of each set.
    """

    def __init__(self, tokenizer: Any, folder: Path, items: int) -> None:
        self._sets: dict[str, list[tuple[list[Row], int]]] = {}
        for name, read in SETS.items() if items else ():
            try:
                chosen = read(folder)[:items]
            except FileNotFoundError:
                continue
            rows = iter(_encoded(tokenizer, [pair for pairs, _ in chosen for pair in pairs]))
            self._sets[name] = [([next(rows) for _ in pairs], gold) for pairs, gold in chosen]

    def accuracies(self, model: Any) -> dict[str, float]:
        """Accuracy on every set of a transformers causal language model."""
        scores = iter(_scores(model, [row for sets in self._sets.values() for rows, _ in sets for row in rows]))
        found = {}
        for name, items in self._sets.items():
            right = 0
            for rows, gold in items:
                here = [next(scores) for _ in rows]
                right += here[0][1] if len(here) == 1 else here.index(max(here)) == gold
            found[name] = round(right / len(items), 4)
        return found
