# SPDX-License-Identifier: Apache-2.0
"""Every verb of an installed nq-edge, called outside of the source tree: python .ci/every_verb.py INPUTS NQ_EDGE

INPUTS is a folder that `--inputs` wrote with the source tree's Python; NQ_EDGE is the command of another environment,
which holds the wheel and its extras [cpu], [compress] and [export] alone. A verb that is not in the list below fails,
so that a new one cannot be forgotten.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "The quick brown fox"

#: Verb -> the calls of it, run in this order in an empty folder; {inputs} is the folder of the inputs.
CALLS = {
    "doctor": [["doctor"]],
    "devices": [
        ["devices"],
        ["devices", "show", "orin-nano-8gb"],
        ["devices", "fit", "{inputs}/model", "--device", "this"],
    ],
    "compress": [
        ["compress", "{inputs}/model", "--preset", "quick", "--calibration", "{inputs}/text.txt", "--output", "made"]
    ],
    "import": [["import", "{inputs}/official.pt", "--base", "{inputs}/model", "--output", "imported"]],
    "inspect": [["inspect", "made"], ["inspect", "imported"]],
    # What was imported has random factors, which make rounding a hundred times larger from layer to layer.
    "export": [["export", "made", "--to", "onnx", "--output", "bundle"]],
    "validate": [["validate", "bundle", "--against", "made", "--text", "{inputs}/text.txt", "--windows", "16"]],
    "generate": [["generate", "bundle", "--prompt", PROMPT, "--max-new-tokens", "8"]],
    # Without a terminal the end of the input, which is empty, ends it.
    "chat": [["chat", "bundle"]],
    # It needs an extra that is not installed here, and serves until it is told to end; tests/serving runs it.
    "serve": [["serve", "--help"]],
    "bench": [["bench", "bundle", "--lengths", "16", "--new-tokens", "8"]],
    "build": [["build", "bundle", "--target", "jetson-orin-nano-8gb", "--output", "board"]],
    "deploy": [["deploy", "bundle", "--device", "raspberry-pi-5", "--output", "folder"]],
    "completion": [["completion", "bash"]],
    # The demo fetches a model and takes minutes; `make demo` runs it in the source tree.
    "demo": [["demo", "--help"]],
}


def write_inputs(folder: Path) -> None:
    """A tiny dense model, the factors of an official checkpoint of it, and a text."""
    import torch

    from tests.compression.support import dense_folder
    from tests.importers.test_conversion import Foreign, official_state
    from tests.tiny import TEXT

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dense_folder(folder / "model")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.save(official_state(Foreign(model, mid=False)), folder / "official.pt")
    (folder / "text.txt").write_text(TEXT * 60, encoding="utf-8")


def verbs(command: str, folder: Path) -> list[str]:
    """The verbs that the command's own help lists."""
    shown = subprocess.run([command, "--help"], cwd=folder, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^  ([a-z]+)  ", shown.partition("Verbs:")[2], re.MULTILINE)


def main(inputs: Path, command: str) -> int:
    """Run every call in a fresh folder; the exit status."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        missing = sorted(set(verbs(command, Path(folder))) - set(CALLS))
        if missing:
            print(f"no call of {', '.join(missing)} is listed in .ci/every_verb.py")
            return 1
        for verb, calls in CALLS.items():
            for call in calls:
                words = [command, *(word.format(inputs=inputs) for word in call)]
                start = time.monotonic()
                done = subprocess.run(
                    words,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=600,
                )
                said = done.stdout + done.stderr
                good = done.returncode == 0 and not any(word in said for word in ("Traceback", "Warning"))
                print(f"{'ok    ' if good else 'FAILED'} {time.monotonic() - start:5.1f} s  nq-edge {' '.join(call)}")
                if not good:
                    failed.append(verb)
                    print(done.stdout[-3000:], done.stderr[-3000:], f"exit status {done.returncode}", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1] == "--inputs":
        write_inputs(Path(sys.argv[2]).resolve())
    else:
        sys.exit(main(Path(sys.argv[1]).resolve(), str(Path(sys.argv[2]).absolute())))
