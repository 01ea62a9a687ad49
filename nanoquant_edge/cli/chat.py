# SPDX-License-Identifier: Apache-2.0
"""`nq-edge chat`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import NqEdgeError
from .arguments import InputPath
from .form import form_options, grammar_of
from .opening import OPENING, opening_options
from .paths import check_kind
from .streams import note

__all__ = ["command"]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@click.command("chat")
@click.argument("model", type=InputPath())
@click.option("--system", help="System message.")
@click.option("--greedy", is_flag=True, help="Always take the most likely token.")
@click.option("--temperature", type=float, help="By default this and the others are as the model's author set them.")
@click.option("--top-k", type=int, help="Keep the K most likely tokens.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens of mass P.")
@click.option("--min-p", type=float, help="Drop tokens below P times the likeliest.")
@click.option("--repetition-penalty", type=float, help="Above 1 avoids repetition.")
@click.option("--seed", type=int, help="Equal seeds give equal answers.")
@click.option("-n", "--max-new-tokens", type=int, default=1024, show_default=True, help="Most tokens of an answer.")
@form_options
@click.option(
    "--draft",
    default="ngram",
    show_default=True,
    help="Guess tokens ahead where that pays: ngram (from earlier text), a smaller model, or none.",
)
@opening_options
@click.option("--max-context", type=int, help="Most tokens of the conversation.")
@click.option("--verify", is_flag=True, help="Check every file's SHA-256 first.")
def command(model: Path, **options: Any) -> None:
    """Talk with MODEL, a checkpoint or a bundle.

    /help lists the commands. Ctrl-C stops an answer, and leaves where there is none.

    Without a terminal every line of the input is a message, and the answers are all that is printed.
    """
    from ..runtimes import OpenOptions, Target
    from ..runtimes.generation_config import adjusted
    from ..serving.chat import ChatOptions, ChatSession
    from ..serving.opening import open_model
    from .chat_terminal import Terminal, converse

    changes = {name: options[name] for name in _SAMPLING if options[name] is not None}
    if options["greedy"] and changes.get("temperature"):
        raise NqEdgeError("NQ-OPTION", "--greedy and --temperature exclude each other.", "Pass one of them.")
    if options["greedy"]:
        changes["temperature"] = 0.0
    grammar = grammar_of(options)
    opening = OpenOptions(**{name: options[name] for name in (*OPENING, "max_context")})
    check_kind(model, "bundle", "engine", "checkpoint", code="NQ-BUNDLE")
    target = Target.of(model, opening, verify=True if options["verify"] else None, tell=note)
    for remark in target.remarks(opening):
        note(remark)
    with open_model(target, opening, draft=options["draft"]) as opened:
        if opened.chat_template is None:
            raise NqEdgeError("NQ-TEMPLATE", "the bundle has no chat template.", "Use nq-edge generate.")
        chosen = ChatOptions(
            sampling=adjusted(opened.settings.sampling, changes),
            system=options["system"],
            max_new_tokens=options["max_new_tokens"],
            grammar=grammar,
        )
        converse(ChatSession(opened, chosen), Terminal(opened.settings.name))
