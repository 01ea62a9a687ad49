# SPDX-License-Identifier: Apache-2.0
"""One reader under atheris, guided by the package's own coverage.

    python -m tests.fuzz.entry TARGET CORPUS_FOLDER -runs=10000 -timeout=20 -rss_limit_mb=3000

Needs the package atheris (`pip install atheris`). A finding stops the run; libFuzzer leaves its script in the working
folder as crash-..., timeout-... or oom-..., which belongs in tests/data/fuzz/TARGET once it is mended.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

# An editable installation's finder comes first and hides the source from the instrumentation.
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]

with atheris.instrument_imports(include=["nanoquant_edge"]):
    from tests.fuzz.seeds import Yard
    from tests.fuzz.targets import TARGETS, make_targets

__all__ = ["main"]


def main() -> None:
    """Run libFuzzer over one target."""
    name = sys.argv[1]
    if name not in TARGETS:
        raise SystemExit(f"targets: {', '.join(TARGETS)}")
    warnings.simplefilter("ignore")
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="nq-fuzz-"))
    try:
        with atheris.instrument_imports(include=["nanoquant_edge"]):  # readers import what they need when they run
            target = make_targets(Yard(root / "yard"))[name]
            assert not target.attack(b"\x40"), "the honest file must be read"
        atheris.Setup([sys.argv[0], *sys.argv[2:]], target.attack)
        atheris.Fuzz()
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
