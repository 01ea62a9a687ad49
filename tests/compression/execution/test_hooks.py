# SPDX-License-Identifier: Apache-2.0
"""Layers are watched inside, and not afterwards, whatever happened."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanoquant_edge.compression.execution.hooks import watched


@pytest.mark.parametrize("before", [False, True])
def test_hooks_see_each_call_and_go(before: bool) -> None:
    layers = {"a": nn.Linear(3, 2), "b": nn.Linear(2, 4)}
    seen: list[tuple[str, list[int]]] = []

    def hook_of(name: str):
        return lambda _layer, arguments, *output: seen.append((name, [len(arguments), len(output)]))

    with watched(layers, hook_of, before):
        layers["b"](layers["a"](torch.ones(1, 3)))
    assert seen == [(name, [1, 0 if before else 1]) for name in "ab"]
    layers["a"](torch.ones(1, 3))
    assert len(seen) == 2


def test_hooks_go_after_an_error() -> None:
    layers = {"a": nn.Linear(3, 2)}
    with pytest.raises(RuntimeError), watched(layers, lambda _name: lambda *_arguments: None):
        layers["a"](torch.ones(1, 5))
    assert not layers["a"]._forward_hooks


def test_none_stays_where_not_all_could_be_set() -> None:
    layers = {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}

    def hook_of(name: str):
        if name == "b":
            raise KeyError(name)
        return lambda *_arguments: None

    with pytest.raises(KeyError), watched(layers, hook_of):
        pass
    assert not layers["a"]._forward_hooks
