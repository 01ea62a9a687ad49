# SPDX-License-Identifier: Apache-2.0
"""The `nq-edge` command. One file a verb, imported only when that verb is called, so that `--help` is instant.

A new verb is a line of `app.VERBS` and a file of its name with a click command called `command`; what tries every verb
(tests/cli/test_failures.py, .ci/every_verb.py) asks for a call of it.
"""

from __future__ import annotations

from .app import main

__all__ = ["main"]
