# SPDX-License-Identifier: Apache-2.0
"""Dispatch: verb names and one-line helps here, everything else in the verb's own file."""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import signal
import sys
import threading
import warnings
from typing import Any, NoReturn

import click

from ..errors import NqEdgeError, first_line
from . import streams
from .suggestions import SuggestingGroup

__all__ = ["main"]

#: verb -> one-line help. The verb's file is cli/<verb>.py (with "_cmd" after a name Python reserves) and its click
#: command is called `command`.
VERBS = {
    "compress": "Compress a model to about B bits per weight.",
    "import": "Read a checkpoint of the official code or of arelath/NanoQuant.",
    "inspect": "Show a checkpoint's layers, ranks, true bits per weight and where its bytes are.",
    "export": "Write a bundle that a device runs, from a checkpoint.",
    "build": "Build a TensorRT engine for a GPU or a board.",
    "validate": "Prove that a bundle computes what PyTorch computed.",
    "generate": "Generate text with a bundle.",
    "chat": "Talk with a bundle in the terminal.",
    "serve": "Serve a bundle over HTTP: OpenAI's text APIs, and a page to chat on.",
    "bench": "Measure a bundle on this machine: speed, memory, and how near to the floor it is.",
    "devices": "List devices; say whether a model fits one and how fast it will be.",
    "deploy": "Write all that a board needs to run a bundle into one folder.",
    "doctor": "Say what is here, what is missing, and what to do about it.",
    "completion": "Print the script that lets bash, zsh or fish complete verbs and options.",
    "demo": "Run the whole path on SmolLM2-135M and print what came out.",
}


#: Set to 1, it lets the traceback of an error of the system or of a library through, for reports.
TRACEBACK_VARIABLE = "NQ_EDGE_TRACEBACK"


class _LazyGroup(SuggestingGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        file = f"{cmd_name}_cmd" if keyword.iskeyword(cmd_name) else cmd_name
        _limit_threads()
        module = importlib.import_module(f"nanoquant_edge.cli.{file}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:  # of a file: click would take it for the end of the user's input, and say "Aborted!"
            raise NqEdgeError("NQ-SYSTEM", f"an input ends too early: {first_line(error)}.") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"nq-edge {version('nanoquant-edge')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def app() -> None:
    """Compress language models to about one bit per weight, export them, run them, and prove them right."""


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Whatever an input, the system or a library causes becomes one message and exit status 2.

    A mistake of this package keeps its traceback.

    Args:
        arguments: command line without the program's name; None takes the process's own.
    """
    streams.prepare()
    # PyTorch's OpenMP threads spin while they wait. On a machine that does anything else, they then take each other's
    # cores: factorization ran 6 times slower beside one busy process (docs/notes/cpu.md). Read when the library loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _hush_libraries()
    _end_on_sigterm()
    try:
        try:
            return app.main(args=arguments, prog_name="nq-edge", standalone_mode=True)
        except SystemExit:
            streams.finish()
            raise
    except BaseException as error:
        _end(error)


def _limit_threads() -> None:
    """Let OpenMP and the BLAS libraries start no more threads than the quota of a container has processors for.

    They see the affinity by themselves, and not the quota: their threads would be stopped in the middle of each step.
    Done once a verb is known, so that `--help` need not read what the quota is.
    """
    from ..system.cgroup import processor_quota
    from ..system.processors import default_threads

    if processor_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(default_threads()))


def _hush_libraries() -> None:
    """Keep what libraries say to programmers from users; `python -W default` or PYTHONWARNINGS shows it again."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"nanoquant_edge\.")


def _end(error: BaseException) -> NoReturn:
    """End the program as an error asks for."""
    from ..system.error_messages import explained

    streams.abandon(sys.stdout)
    said = None if os.environ.get(TRACEBACK_VARIABLE) else explained(error)
    if said is None:
        raise error
    with contextlib.suppress(OSError):
        click.echo(f"nq-edge: [{said.code}] {said.message}\n  {said.hint}", err=True)
    streams.abandon(sys.stderr)
    sys.exit(2)


def _end_on_sigterm() -> None:
    """Let SIGTERM, which service managers send, unwind: models are closed, scratch folders go; status 128 + 15."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
