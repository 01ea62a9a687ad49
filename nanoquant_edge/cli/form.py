# SPDX-License-Identifier: Apache-2.0
"""Options of verbs that hold a text to a form: --json-schema, --regex, --grammar."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import NqEdgeError

if TYPE_CHECKING:
    from ..serving.constraint import Grammar

__all__ = ["FORM", "form_options", "grammar_of"]

Command = TypeVar("Command", bound=Callable[..., Any])

#: Parameters that `form_options` adds.
FORM = ("json_schema", "regex", "grammar")
#: Larger than any grammar that is taken.
_MOST_BYTES = 2 << 20


def form_options(command: Command) -> Command:
    """Add --json-schema, --regex and --grammar to a command."""
    options = (
        click.option("--json-schema", help="Hold the text to a JSON schema: a file, or the schema itself."),
        click.option("--regex", help="Hold the text to a regular expression."),
        click.option("--grammar", help="Hold the text to a grammar (llguidance's Lark): a file."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def grammar_of(options: dict[str, Any]) -> Grammar | None:
    """The form that the options ask for; None for any text.

    Raises:
        NqEdgeError: NQ-OPTION for two forms at once, NQ-GRAMMAR for one that cannot be read.
    """
    from ..serving.constraint import Grammar

    given = {name: options[name] for name in FORM if options[name] is not None}
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise NqEdgeError("NQ-OPTION", f"{names} exclude each other.", "Pass one of them.")
    if "regex" in given:
        return Grammar.regex(given["regex"])
    if "grammar" in given:
        return Grammar.lark(_read(given["grammar"]))
    if "json_schema" in given:
        text = given["json_schema"]
        text = text if text.lstrip().startswith("{") else _read(text)
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NqEdgeError("NQ-GRAMMAR", f"the JSON schema is no JSON: {error}.") from error
        return Grammar.json_schema(schema)
    return None


def _read(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            data = file.read(_MOST_BYTES)
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NqEdgeError("NQ-GRAMMAR", f"cannot read {name}: {reason}.", "Pass a UTF-8 file.") from error
