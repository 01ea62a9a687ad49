# SPDX-License-Identifier: Apache-2.0
"""Nodes that contradict themselves, and the message each must be refused with; also runs as a script.

python -m tests.plugins.hostile LIBRARY      prints {case: message or null when nothing was refused}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np

from tests.plugins import one_node

__all__ = ["CASES", "attempt"]

L = one_node.make_layer(70, 40, 50)
HALF = one_node.make_layer(70, 40, 50, scale_kind=one_node.FLOAT16)

#: name -> (layer, part of the message)
CASES: dict[str, tuple[one_node.Layer, str]] = {
    "no in_features": (L.changed(in_features=None), "'in_features' is missing"),
    "no rank": (L.changed(rank=None), "'rank' is missing"),
    "no layout": (L.changed(layout=None), "'layout' is missing"),
    "float rank": (L.changed(rank=40.0), "'rank' is missing"),
    "rank 0": (L.changed(rank=0), "'rank' is 0"),
    "negative rank": (L.changed(rank=-40), "'rank' is -40"),
    "rank 2^31": (L.changed(rank=2**31), "'rank' is 2147483648"),
    "in_features 2^62": (L.changed(in_features=2**62), "'in_features' is 4611686018427387904"),
    "negative out_features": (L.changed(out_features=-(2**63)), "'out_features' is -9223372036854775808"),
    "flag 2": (L.changed(has_scale_mid=2), "'has_scale_mid' is 2"),
    "flag -1": (L.changed(has_bias=-1), "'has_bias' is -1"),
    "layout 2": (L.changed(layout=2), "layout 2 is not one"),
    "layout -1": (L.changed(layout=-1), "layout -1 is not one"),
    "rank larger than the words": (L.changed(rank=41), "v_packed is 40 x 3 words"),
    "rank largest": (L.changed(rank=2**31 - 1), "v_packed is 40 x 3 words"),
    "in_features past the words": (L.changed(in_features=97), "v_packed is 40 x 3 words"),
    "out_features larger": (L.changed(out_features=51), "u_packed is 50 x 2 words"),
    "v one word short": (L.with_weights(v_packed=L.weights["v_packed"][:, :2].copy()), "v_packed is 40 x 2 words"),
    "v one row short": (L.with_weights(v_packed=L.weights["v_packed"][:39].copy()), "v_packed is 39 x 3 words"),
    "u empty": (L.with_weights(u_packed=np.zeros((0, 2), np.int32)), "u_packed is 0 x 2 words"),
    "v flat": (L.with_weights(v_packed=L.weights["v_packed"].reshape(-1)), "v_packed has 1 dimensions"),
    "scale_in short": (L.with_weights(scale_in=np.ones(69, np.float32)), "scale_in has 69 entries"),
    "scale_mid short": (L.with_weights(scale_mid=np.ones(1, np.float32)), "scale_mid has 1 entries"),
    "scale_mid unused but long": (L.changed(has_scale_mid=0), "scale_mid has 40 entries"),
    "scale_out long": (L.with_weights(scale_out=np.ones(51, np.float32)), "scale_out has 51 entries"),
    "scale_out a matrix": (L.with_weights(scale_out=np.ones((50, 1), np.float32)), "scale_out has 2 dimensions"),
    "bias scalar": (L.with_weights(bias=np.array(1, np.float32)), "bias has 0 dimensions"),
    "bias short": (L.with_weights(bias=np.ones(49, np.float32)), "bias has 49 entries"),
}


def attempt(layer: one_node.Layer, library: str, *, weights_as_inputs: bool) -> str | None:
    """The error of making and running a session, or None."""
    try:
        model = one_node.make_model(layer, (1, 2), weights_as_inputs=weights_as_inputs)
        session = one_node.make_session(model, library)
        feeds = {"x": np.ones((1, 2, 70), np.float32)}
        if weights_as_inputs:
            feeds |= layer.weights
        session.run(None, feeds)
    except Exception as error:  # ONNX Runtime has a class for each status code
        return str(error)
    return None


def main(library: str) -> None:
    """Try every case twice: weights known when the session is made, and weights fed at run time."""
    seen: dict[str, str | None] = {}
    runs: dict[str, Callable[[one_node.Layer], str | None]] = {
        "constant": lambda layer: attempt(layer, library, weights_as_inputs=False),
        "fed": lambda layer: attempt(layer, library, weights_as_inputs=True),
    }
    for name, (layer, _) in CASES.items():
        for how, function in runs.items():
            seen[f"{name}, {how}"] = function(layer)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
