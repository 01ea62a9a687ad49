# SPDX-License-Identifier: Apache-2.0
"""`nq-edge serve`: OpenAI's text APIs for a bundle, and a page to chat on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NqEdgeError
from .arguments import InputPath
from .opening import OPENING, Command, opening_options
from .paths import check_kind
from .streams import note

if TYPE_CHECKING:
    from ..serving.model import Writes

__all__ = ["command"]

#: Holds the API key where no file does.
KEY_VARIABLE = "NQ_EDGE_API_KEY"
_MOST_KEY_BYTES = 4096


def _patient(command: Command) -> Command:
    """The opening options of a program that shares the processor with its own clients: threads that wait sleep.

    With two threads on two busy cores, one client got 64 tokens a second so, and 17 from threads that spin.
    """
    return opening_options(command, spin=False)


@click.command("serve")
@click.argument("model", type=InputPath())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; others need an API key.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option("--api-key-file", type=InputPath(), help=f"File with the API key; otherwise {KEY_VARIABLE} holds it.")
@click.option("--cors", "origins", multiple=True, help="Web pages that may use the server, such as https://a.org.")
@click.option("--name", "names", multiple=True, help="What clients call the model; may be given several times.")
@click.option("--slots", type=int, default=4, show_default=True, help="Texts that are written at once.")
@click.option("--queue", type=int, default=64, show_default=True, help="Most requests that wait; more get a 429.")
@click.option(
    "--prefixes",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of kept beginnings of texts: read at the start if it is there, written at the end.",
)
@click.option("--cache-tokens", type=int, help="Most tokens whose keys and values are kept, over all slots.")
@click.option(
    "--draft",
    default="ngram",
    show_default=True,
    help="Guess tokens ahead where that pays: ngram (from earlier text), a smaller model, or none.",
)
@click.option("--max-body", type=int, default=4, show_default=True, help="Largest request, MiB.")
@click.option("--drain", type=float, default=30.0, show_default=True, help="Seconds to finish texts after SIGTERM.")
@_patient
@click.option("--max-context", type=int, help="Most tokens of prompt and text together.")
@click.option("--verify", is_flag=True, help="Check every file's SHA-256 first.")
def command(model: Path, **options: Any) -> None:
    """Serve MODEL, a checkpoint or a bundle, over HTTP.

    /v1/chat/completions, /v1/completions and /v1/responses are as in the API of OpenAI; at / is a page to chat on.

    docs/SERVING.md has examples. SIGTERM finishes what is being written and ends.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        from ..system.extras import install_command

        raise NqEdgeError("NQ-MISSING", f"{missing[0]} is not installed.", f"Run: {install_command('serve')}")
    from ..runtimes import OpenOptions, Target
    from ..serving import SchedulerOptions
    from ..serving.http import ServeOptions, serve
    from ..serving.opening import open_model

    listening = ServeOptions(
        host=options["host"],
        port=options["port"],
        api_key=_api_key(options["api_key_file"]),
        origins=options["origins"],
        max_body=options["max_body"] << 20,
        drain_s=options["drain"],
    )
    scheduling = SchedulerOptions(queue=options["queue"], cache_tokens=options["cache_tokens"])
    opening = OpenOptions(**{name: options[name] for name in (*OPENING, "max_context")})
    check_kind(model, "bundle", "engine", "checkpoint", code="NQ-BUNDLE")
    target = Target.of(model, opening, verify=True if options["verify"] else None, tell=note)
    for remark in target.remarks(opening):
        note(remark)
    kept: Path | None = options["prefixes"]
    opened = open_model(
        target,
        opening,
        slots=options["slots"],
        scheduling=scheduling,
        names=options["names"],
        draft=options["draft"],
    )
    with opened:
        if kept is not None and kept.exists():
            _load_prefixes(opened.writer, kept)
        name = opened.settings.name
        serve(opened, listening, lambda address: click.echo(f"{name} is served at {address}", err=True))
        if kept is not None:
            opened.writer.save_prefixes(kept)


def _load_prefixes(writer: Writes, path: Path) -> None:
    """Take what an earlier server kept; a file of another model is no reason not to serve."""
    try:
        click.echo(f"{writer.load_prefixes(path)} tokens of earlier texts are kept from {path}", err=True)
    except NqEdgeError as error:
        note(f"{error.message} It will be written anew.")


def _api_key(path: Path | None) -> str | None:
    """The key, from the file or the environment.

    Raises:
        NqEdgeError: NQ-SERVE when the file cannot be read, or holds none.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        with path.open("rb") as file:
            key = file.read(_MOST_KEY_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise NqEdgeError("NQ-SERVE", f"cannot read the API key in {path}: {error.strerror}.") from error
    if not key:
        raise NqEdgeError("NQ-SERVE", f"{path} holds no API key.", "Make one: openssl rand -hex 24")
    return key
