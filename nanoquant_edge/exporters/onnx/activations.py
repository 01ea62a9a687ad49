# SPDX-License-Identifier: Apache-2.0
"""Activations of feed-forward networks and the soft cap, in basic operators."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .graph_builder import GraphBuilder

__all__ = ["decomposed_gelu_tanh", "scalar", "silu", "soft_cap"]


def scalar(g: GraphBuilder, number: float, dtype: ir.DataType) -> ir.Value:
    """A constant of one element in a floating type."""
    return g.initializer(f"constant.{dtype.name.lower()}.scalar.{number!r}", np.full(1, number, np.float32), dtype)


def silu(g: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """x * sigmoid(x)."""
    return g.node("Mul", [x, g.node("Sigmoid", [x], f"{name}.sigmoid")], f"{name}.silu")


def decomposed_gelu_tanh(g: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016, section 2).

    The polynomial is factored as x * (a + b x^2): where x^2 overflows float16, tanh still gets an infinity of x's sign.
    """
    assert x.dtype is not None
    a, b = math.sqrt(2 / math.pi), math.sqrt(2 / math.pi) * 0.044715
    cubic = g.node("Mul", [g.node("Mul", [x, x], f"{name}.square"), scalar(g, b, x.dtype)], f"{name}.cubic")
    inner = g.node("Mul", [x, g.node("Add", [cubic, scalar(g, a, x.dtype)], f"{name}.slope")], f"{name}.inner")
    share = g.node("Add", [g.node("Tanh", [inner], f"{name}.tanh"), scalar(g, 1.0, x.dtype)], f"{name}.share")
    half = g.node("Mul", [x, scalar(g, 0.5, x.dtype)], f"{name}.half")
    return g.node("Mul", [half, share], f"{name}.gelu")


def soft_cap(g: GraphBuilder, name: str, x: ir.Value, cap: float, output: str | None = None) -> ir.Value:
    """cap * tanh(x / cap) (Gemma 2 report, section 2)."""
    assert x.dtype is not None
    shrunk = g.node("Mul", [x, scalar(g, 1 / cap, x.dtype)], f"{name}.shrunk")
    return g.node("Mul", [g.node("Tanh", [shrunk], f"{name}.tanh"), scalar(g, cap, x.dtype)], name, output=output)
