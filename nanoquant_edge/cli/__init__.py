# SPDX-License-Identifier: Apache-2.0
"""The `nq-edge` command. One file a verb, imported only when that verb is called, so that `--help` is instant."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
