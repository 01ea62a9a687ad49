# SPDX-License-Identifier: Apache-2.0
"""`python -m nanoquant_edge` is `nq-edge`."""

from __future__ import annotations

import os
import sys

# `-m` puts the working folder in front of the library: a click.py that lies beside a model must not run.
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 (pathlib would be imported first)
if sys.path and sys.path[0] not in ("", _ROOT) and os.path.realpath(sys.path[0]) == os.path.realpath("."):
    del sys.path[0]

from .cli import main  # noqa: E402

if __name__ == "__main__":
    main()
