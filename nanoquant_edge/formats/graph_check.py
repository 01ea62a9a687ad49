# SPDX-License-Identifier: Apache-2.0
"""What a graph from a stranger may hold, decided before any runtime sees it.

ONNX lets a tensor name a file anywhere in a model: in initializers, in attributes of every kind, sparse, inside of
functions and of graphs in nodes. ONNX Runtime 1.23 follows such names to files outside of the folder and, by a marker,
to addresses of memory. Loops need not end, functions that call each other twice double with each level, and
com.microsoft::EPContext loads what it likes. A graph that this package wrote needs none of that, so that what is
allowed is listed and everything else is refused.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import NqEdgeError
from .graph import DATA_FILE, DOMAIN, LINEAR_OP, OPERATORS
from .onnx_file import MAX_MODEL_BYTES, ModelSummary, Part, parts

__all__ = ["ALLOWED_OPERATORS", "check_graph"]

_STANDARD = """
    Abs Add And Attention BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Concat Constant
    Cos CumSum Div Equal Erf Exp Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual Identity
    LayerNormalization Less LessOrEqual Log MatMul Max Mean Min Mod Mul Neg Not Or Pow RMSNormalization Range
    Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape RotaryEmbedding Round ScatterElements ScatterND
    Shape Sigmoid Sign Sin Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh TensorScatter Transpose Unsqueeze Where
    Xor
"""
_MICROSOFT = """
    FastGelu Gelu GroupQueryAttention RotaryEmbedding SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization
"""
#: Domain -> operators: arithmetic, shapes and attention. None of them runs another graph, reads a file or repeats.
ALLOWED_OPERATORS = {
    "": frozenset(_STANDARD.split()),
    "ai.onnx": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
    DOMAIN: frozenset(OPERATORS),
}
#: Graphs of the largest models have twenty thousand nodes, the function some thirty.
_MOST_NODES, _MOST_FUNCTION_NODES = 200_000, 500
_INITIALIZER = ("model", "graph", "tensor", "location")
_BODY = ("model", "function")


def check_graph(model: bytes, files: Collection[str] = (DATA_FILE,)) -> ModelSummary:
    """Refuse a model that holds anything but a decoder's graph and, at most, our operator's body.

    Args:
        model: content of model.onnx.
        files: that may hold its initializers, in the model's own folder.

    Returns:
        What it holds.

    Raises:
        NqEdgeError: NQ-OPERATOR naming what is not allowed; NQ-PATH for a file in another folder, NQ-BUNDLE for one
            that is not among `files`, and for what is no model.
    """
    if len(model) > MAX_MODEL_BYTES:
        raise NqEdgeError("NQ-BUNDLE", f"model.onnx has {len(model)} bytes; a graph without its weights has fewer.")
    nodes = functions = body = 0
    summary = ModelSummary()
    for part in parts(model):
        summary.add(part)
        path, kind = part.path, part.path[-1]
        if kind == "node":
            nodes, body = nodes + 1, body + (path[:2] == _BODY)
            _check_node(part)
        elif kind == "function":
            functions += 1
            if (part.domain, part.name) != (DOMAIN, LINEAR_OP):
                raise _refusal(f"a function {_called(part)}")
        elif kind in ("training", "sparse"):
            raise _refusal(f"{kind} data")
        elif kind == "graph" and path != ("model", "graph"):
            raise _refusal("a graph inside of a node")
        elif kind == "location":
            _check_location(part, files)
    if nodes > _MOST_NODES or body > _MOST_FUNCTION_NODES or functions > 1:
        raise _refusal(f"{nodes} nodes, {body} of them in {functions} functions")
    return summary


def _check_node(part: Part) -> None:
    domain, inside = part.domain, part.path[:2] == _BODY
    if part.name not in ALLOWED_OPERATORS.get(domain, ()) or (inside and domain not in ("", "ai.onnx")):
        raise _refusal(f"the operator {_called(part)}" + (" in a function" if inside else ""))


def _check_location(part: Part, files: Collection[str]) -> None:
    """The key and value of one entry; of a key that comes twice, each counts."""
    if part.path != _INITIALIZER:
        raise _refusal("data outside of the file for something that is no initializer")
    key, value = part.name, part.domain
    if key != "location":
        return
    if not value or any(letter in value for letter in "/\\*:") or value in (".", ".."):
        raise NqEdgeError("NQ-PATH", f"the model reads {value[:200]!r}, which is no file of its own folder.")
    if value not in files:
        raise NqEdgeError("NQ-BUNDLE", f"the model needs {value[:200]!r}, which the manifest does not list.")


def _called(part: Part) -> str:
    return f"{part.domain[:100]}::{part.name[:100]}"


def _refusal(what: str) -> NqEdgeError:
    return NqEdgeError(
        "NQ-OPERATOR", f"the model holds {what}, which no bundle needs.", "Do not use it: it may be hostile."
    )
