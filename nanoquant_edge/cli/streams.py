# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error of the command, which may be closed, full, or of an encoding that lacks a letter."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

import click

__all__ = ["abandon", "echo_json", "finish", "note", "prepare"]


def prepare() -> None:
    """Make the standard streams fit to be written to.

    A closed one is opened on nothing, so that no model file that is opened later gets its number and what a library
    prints there. A letter that the output's encoding lacks is written as a question mark.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # takes the lowest free number: this one
        if number and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", "") in ("strict", "surrogateescape"):
            reconfigure(errors="replace")


def finish() -> None:
    """Write what is still held back, while an error can be told.

    Raises:
        OSError: the disk is full, or whoever read the output is gone.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon(stream: TextIO | None) -> None:
    """Let what cannot be written go, so that Python's own flush at the end does not fail once more."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
    except ValueError:  # closed in the meantime
        pass


def note(text: str) -> None:
    """Say something that is no result, on standard error."""
    click.echo(f"note: {text}", err=True)


def echo_json(value: Any, indent: int | None = None) -> None:
    """Print JSON, with its letters as they are where the output's encoding has them, and escaped where it has not."""
    import json

    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    click.echo(text)
