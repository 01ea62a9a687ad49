# SPDX-License-Identifier: Apache-2.0
"""Run a bundle with ONNX Runtime alone, without this package: what another language would do.

    nq-edge export checkpoint --to onnx --portable --output portable
    python examples/plain_onnxruntime.py portable 1 2 3

Takes token ids and prints the ids that follow them greedily. A portable bundle spells the compressed layers in standard
operators, which is slow; `docs/OPERATOR.md` says how to register the fast library with a session.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, ids = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
# Folding constants would unpack every layer to float32 while loading.
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), disabled_optimizers=["ConstantFolding"])
names = [entry.name for entry in session.get_outputs()]

# A cache for each layer's keys and values, [batch, heads, capacity, channels]; what comes back goes in again.
caches = {
    entry.name: np.zeros((1, entry.shape[1], len(ids) + 16, entry.shape[3]), np.float32)
    for entry in session.get_inputs()
    if entry.name.startswith("past_key_values.")
}
length, new = 0, ids
for _ in range(8):
    length += len(new)
    inputs = {
        "input_ids": np.array([new], np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "logits_indices": np.array([[len(new) - 1]], np.int64),
    }
    results = dict(zip(names, session.run(None, {**inputs, **caches}), strict=True))
    caches = {name: results[name.replace("past_key_values", "present")] for name in caches}
    new = [int(results["logits"][0, 0].argmax())]
    print(new[0])
