# SPDX-License-Identifier: Apache-2.0
"""The one exception that users see, and the catalogue of its codes.

A code is stable: scripts may match on it. Every code raised anywhere in the package is listed in `CATALOGUE` with
its usual cause and what to do, so that the error documentation can be made from the code. What the system or a library
raises (an OSError, for example) becomes such an error in `system.error_messages`.
"""

from __future__ import annotations

__all__ = ["CATALOGUE", "NqEdgeError", "first_line", "printable"]

#: code -> (cause, what to do)
CATALOGUE: dict[str, tuple[str, str]] = {
    "NQ-ARCH": (
        "The model's architecture is not one that this version compresses or exports.",
        "Use a supported family; the message lists them.",
    ),
    "NQ-MODEL": (
        "The model folder or file is missing, incomplete or not what it claims to be.",
        "Download it again and pass a Hugging Face folder or a .gguf file.",
    ),
    "NQ-HUB": (
        "The model hub cannot be reached, or does not give the model.",
        "Check the id and the network; a model that is in a folder needs no hub.",
    ),
    "NQ-CKPT": (
        "The checkpoint is truncated, foreign, or its tensors contradict its configuration.",
        "Run `nq-edge compress` again, or copy the checkpoint again.",
    ),
    "NQ-BUNDLE": (
        "The bundle is missing a file, or its manifest is not valid.",
        "Copy the whole bundle folder again, or run `nq-edge export` again.",
    ),
    "NQ-HASH": (
        "A bundle file differs from what the manifest recorded.",
        "Copy the file again, or run `nq-edge export` again.",
    ),
    "NQ-TOKENIZER": (
        "tokenizer.json is missing or cannot be read.",
        "Put the model's tokenizer.json beside the weights.",
    ),
    "NQ-CALIBRATION": (
        "The calibration text is missing or too short for the windows asked for.",
        "Pass a longer text with --calibration, or fewer or shorter windows.",
    ),
    "NQ-TEXT": (
        "The validation text cannot be read, or is too short for the windows asked for.",
        "Pass a longer UTF-8 text with --text, or ask for fewer or shorter windows.",
    ),
    "NQ-REFERENCE": (
        "There is nothing to validate the bundle against, or its recorded reference is not valid.",
        "Pass --against CHECKPOINT; add --record to store the reference in the bundle.",
    ),
    "NQ-NUMERIC": (
        "A weight, an activation or a loss is not finite.",
        "Check the source model; lower the learning rate if it happened while tuning.",
    ),
    "NQ-BUSY": (
        "Too many requests wait already, or the server is going away.",
        "Try again after the time that the message names.",
    ),
    "NQ-OPTION": (
        "An option has a value outside its range.",
        "Use a value in the range that the message names.",
    ),
    "NQ-OUTPUT": (
        "The output path exists already, or cannot be written.",
        "Choose another --output, or pass --overwrite.",
    ),
    "NQ-RESUME": (
        "An interrupted compression left its state beside the output, or that state belongs to another run.",
        "Continue it with --resume and the same options, or delete the state to start anew.",
    ),
    "NQ-BACKEND": (
        "The installed runtime cannot run this bundle: another version, another backend, or another number type.",
        "Install a version that the message names, or export again for this device.",
    ),
    "NQ-PROMPT": (
        "The prompt, or the prompt with the tokens asked for, does not fit the model or the key/value cache.",
        "Shorten the prompt, ask for fewer tokens, or raise the context limit.",
    ),
    "NQ-PREFIX": (
        "The file of kept prefixes is damaged, or was written for another model.",
        "Delete it; it is written anew.",
    ),
    "NQ-TEMPLATE": (
        "The chat template is missing, not valid, or exceeded its limits of time and size.",
        "Use a model with a chat template, or pass a plain prompt.",
    ),
    "NQ-GRAMMAR": (
        "A JSON schema, regular expression or grammar is not valid, not supported, or too complex.",
        "Simplify it; docs/SERVING.md says what is supported.",
    ),
    "NQ-SERVE": (
        "The server cannot start as asked for: its address, its key, or a file that it needs.",
        "See the message; `nq-edge serve --help` has the options.",
    ),
    "NQ-MISSING": ("An optional package is not installed, or is too old.", "Install the extra that the message names."),
    "NQ-NATIVE-MISSING": (
        "The native library with the operator's kernels is not installed, or cannot be loaded.",
        "Install a built wheel, or build it with CMake as the message says.",
    ),
    "NQ-CUDA": (
        "There is no usable NVIDIA GPU, or a CUDA kernel failed or does not exist for this GPU or shape.",
        "Check the driver with nvidia-smi; build the kernels for this GPU, or use the CPU.",
    ),
    "NQ-ENGINE": (
        "The TensorRT engine is truncated, was built by another TensorRT, or failed while it ran.",
        "Build it again with `nq-edge build`, with the TensorRT that is installed where it runs.",
    ),
    "NQ-PLUGIN": (
        "The TensorRT plugin library is not the one that the engine was built with, or cannot be registered.",
        "Build the engine again with the installed plugin, or install the nanoquant-edge that built it.",
    ),
    "NQ-TRUST": (
        "Loading the bundle would run machine code that lies in the bundle.",
        "Pass --trust-bundle-code if you trust whoever made it, or build the engine without embedded code.",
    ),
    "NQ-MEMORY": (
        "The GPU or this machine has too little free memory for the model, its key/value cache and its buffers.",
        "End other programs, use a smaller batch, context or --capacity, or a machine with more memory.",
    ),
    "NQ-SYSTEM": (
        "The operating system or a library refused something: a file, an output, a limit, an input that is nested too "
        "deeply.",
        "See the message. If the input is sound, run again with NQ_EDGE_TRACEBACK=1 and report what it shows.",
    ),
    "NQ-TARGET": (
        "The target is not known, or this machine cannot build for it.",
        "Name a target of the list, or build on the device itself.",
    ),
    "NQ-FIT": (
        "The model does not fit the target's memory, or its build does not fit this machine's memory or disk.",
        "Use a smaller --capacity, --batch or model, or another target.",
    ),
    "NQ-DEPLOY": (
        "No deployment folder can be made: for this device, with these libraries, or without its wheels.",
        "See the message; --no-wheels and --no-native leave those parts to the board.",
    ),
    "NQ-OPERATOR": (
        "A model file is not valid ONNX, or one of its NanoQuantLinear nodes breaks the operator's schema.",
        "Export the model again; do not use a file from a source you do not trust.",
    ),
    "NQ-PATH": ("A file name leaves the folder it belongs to.", "Do not use this file: it may be hostile."),
}

#: Characters of a message that are shown.
_LONGEST = 2000


class NqEdgeError(Exception):
    """An error with a stable code, its cause in one sentence, and the next step.

    Args:
        code: a key of `CATALOGUE`.
        message: what went wrong, with the offending value.
        hint: what to do about it; defaults to the catalogue's advice.
    """

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        if code not in CATALOGUE:
            raise ValueError(f"error code {code!r} is not in the catalogue")
        super().__init__(message)
        self.code = code
        self.message = printable(message)
        self.hint = CATALOGUE[code][1] if hint is None else printable(hint)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message} {self.hint}"


def first_line(error: BaseException) -> str:
    """What a library said, without the control characters a damaged file can bring into it."""
    lines = str(error).strip().splitlines()
    return printable((lines[0] if lines else type(error).__name__)[:300].rstrip("."))


def printable(text: str) -> str:
    """Text that a terminal can show: damaged files bring control characters, lone surrogates and endless names.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a?[2Jb'
    """
    shown = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}..."
