# SPDX-License-Identifier: Apache-2.0
"""How models and training steps are run: one block, many processes, CUDA graphs, compute types, large vocabularies."""
