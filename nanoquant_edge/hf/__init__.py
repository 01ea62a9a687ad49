# SPDX-License-Identifier: Apache-2.0
"""Importing this package teaches transformers to load NanoQuant checkpoints.

    import nanoquant_edge.hf
    model = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.float32)

Without the import, transformers finds no weights file it knows and stops. That is on purpose: it would otherwise skip
the unknown `quantization_config` with a log line and run with random weights in every compressed layer.
"""

from __future__ import annotations

from .quantizer import NanoQuantConfig, NanoQuantHfQuantizer

__all__ = ["NanoQuantConfig", "NanoQuantHfQuantizer"]
