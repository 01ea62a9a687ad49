# SPDX-License-Identifier: Apache-2.0
"""Everything that lies on a disk: checkpoints, bundles, tokenizer files, graphs and their names. Needs no PyTorch."""
