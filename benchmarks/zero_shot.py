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

__all__ = ["SETS", "accuracies"]

#: One item: (context, continuation) pairs and the place of the right one; LAMBADA has one pair.
Item = tuple[list[tuple[str, str]], int]
_BATCH_TOKENS = 8192


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


@torch.inference_mode()
def _scores(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Log-likelihood of each continuation, and whether greedy decoding would have written it."""
    rows = []
    for context, continuation in pairs:
        before = tokenizer(context)["input_ids"]
        whole = tokenizer(context + continuation)["input_ids"]
        start = min(len(before), len(whole) - 1)
        rows.append((whole[-1024:], max(1, start - max(0, len(whole) - 1024))))
    found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
    while order:
        count = max(1, _BATCH_TOKENS // len(rows[order[-1]][0]))
        chosen, order = order[-count:], order[:-count]
        longest = max(len(rows[place][0]) for place in chosen)
        # Padding stands behind, where a causal model does not see it.
        ids = torch.tensor([rows[place][0] + [0] * (longest - len(rows[place][0])) for place in chosen])
        hidden = model.base_model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        cap = getattr(model.config, "final_logit_softcapping", None)
        for row, place in enumerate(chosen):
            tokens, start = rows[place]
            logits = model.get_output_embeddings()(hidden[row, start - 1 : len(tokens) - 1]).float()
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            target = torch.tensor(tokens[start:], device=logits.device)
            chances = logits.log_softmax(-1).gather(1, target[:, None])
            found[place] = (float(chances.sum()), bool((logits.argmax(-1) == target).all()))
    return found


def accuracies(model: Any, tokenizer: Any, folder: Path, items: int) -> dict[str, float]:
    """Accuracy on the first `items` of every set that lies in the folder.

    Args:
        model: transformers causal language model.
        tokenizer: its tokenizer.
        folder: with the files named above.
        items: of each set.
    """
    found = {}
    for name, read in SETS.items():
        try:
            chosen = read(folder)[:items]
        except FileNotFoundError:
            continue
        scores = iter(_scores(model, tokenizer, [pair for pairs, _ in chosen for pair in pairs]))
        right = 0
        for pairs, gold in chosen:
            here = [next(scores) for _ in pairs]
            right += here[0][1] if len(here) == 1 else here.index(max(here)) == gold
        found[name] = round(right / len(chosen), 4)
    return found
