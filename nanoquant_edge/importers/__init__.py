# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other NanoQuant programs become ours."""
