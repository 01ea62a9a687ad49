# SPDX-License-Identifier: Apache-2.0
"""Compress a model for text of your own, and see where its bytes are.

    python examples/compress_your_text.py MODEL notes.txt checkpoint

Give as much text as you have, like what the model will see: 130 thousand tokens are used by `balanced`.
"""

import sys

from nanoquant_edge import compress

model, text, output = sys.argv[1:4]
preset = sys.argv[4] if len(sys.argv) > 4 else "balanced"
checkpoint = compress(model, output, bpw=1.0, recipe=preset, calibration=text)
print(f"{len(checkpoint.layers)} layers at {checkpoint.settings.true_bpw:.3f} bits per weight in {checkpoint.folder}")
