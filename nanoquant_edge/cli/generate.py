# SPDX-License-Identifier: Apache-2.0
"""`nq-edge generate`: write text with a model, to standard output as it comes; figures go to standard error."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NqEdgeError
from .arguments import InputPath
from .form import form_options, grammar_of
from .opening import OPENING, opening_options
from .paths import check_kind
from .streams import echo_json, note

if TYPE_CHECKING:
    from ..runtimes import Generator
    from ..runtimes.mask import TokenMask
    from ..serving.constraint import Grammar

__all__ = ["command"]

#: No guesses; see `serving.opening`, which help must not load.
NO_DRAFT = "none"
#: Larger than any context that fits a model; a wrong file is noticed before it is tokenized.
MAX_PROMPT_BYTES = 64 << 20


@click.command("generate")
@click.argument("model", type=InputPath())
@click.option(
    "-p",
    "--prompt",
    help="The prompt. Without it and without --prompt-file it is asked for, or read from standard input.",
)
@click.option("--prompt-file", type=InputPath(), help="Read the prompt from a UTF-8 file.")
@click.option("--chat", is_flag=True, help="Pass the prompt through the model's chat template.")
@click.option("--system", help="System message of the chat (implies --chat).")
@click.option("-n", "--max-new-tokens", type=int, default=256, show_default=True, help="Most new tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Keep the K most likely tokens; 0 keeps all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Keep the likeliest tokens of mass P.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Drop tokens below P times the likeliest.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1 avoids repetition.")
@click.option("--seed", type=int, help="Equal seeds give equal text.")
@click.option("--stop", multiple=True, help="End the text before this string; may be given several times.")
@form_options
@click.option(
    "--draft",
    default=NO_DRAFT,
    show_default=True,
    help="Guess tokens ahead: ngram (from prompt and text), a smaller model, or none. The text stays the same.",
)
@opening_options
@click.option("--max-context", type=int, help="Most tokens of prompt and text together.")
@click.option("--verify", is_flag=True, help="Check every file's SHA-256 first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def command(model: Path, **options: Any) -> None:
    """Generate text with MODEL, a checkpoint or a bundle.

    The text goes to standard output as it comes, a line of figures to standard error.
    """
    from ..runtimes import Generator, OpenOptions, SamplingConfig, Target

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling = SamplingConfig(**{name: options[name] for name in names})
    opening = OpenOptions(**{name: options[name] for name in (*OPENING, "max_context")})
    check_kind(model, "bundle", "engine", "checkpoint", code="NQ-BUNDLE")
    prompt = _read_prompt(options["prompt"], options["prompt_file"])
    grammar = grammar_of(options)
    chat = options["chat"] or options["system"] is not None
    target = Target.of(model, opening, verify=True if options["verify"] else None, tell=note)
    for remark in target.remarks(opening):
        note(remark)
    show = _hide if options["as_json"] else _show
    if options["draft"] != NO_DRAFT:
        from .generate_drafted import Wanted, write_drafted

        asked = {name: options[name] for name in ("system", "max_new_tokens", "stop")}
        wanted = Wanted(prompt=prompt, chat=chat, sampling=sampling, grammar=grammar, **asked)
        result = write_drafted(target, opening, wanted=wanted, draft=options["draft"], show=show)
    else:
        with Generator.open(target, opening, chat=chat) as generator, contextlib.ExitStack() as held:
            run = generator.stream(
                [{"role": "user", "content": prompt}] if chat else prompt,
                system=options["system"],
                max_new_tokens=options["max_new_tokens"],
                sampling=sampling,
                stop=options["stop"],
                mask=None if grammar is None else _mask(generator, grammar, held),
            )
            for piece in run:
                show(piece)
        assert run.result is not None  # the loop above used the run up
        result = run.result
    if options["as_json"]:
        echo_json(result.to_dict())
        return
    click.echo()
    click.echo(
        f"{result.prompt_tokens} + {len(result.ids)} tokens ({result.finish_reason}) · "
        f"prefill {result.prefill_tps:.1f} tokens/s · decode {result.decode_tps:.1f} tokens/s · "
        f"first token {result.ttft_s:.2f} s · peak {result.peak_memory_mb:.0f} MB · kernel {result.kernel}",
        err=True,
    )


def _show(piece: str) -> None:
    click.echo(piece, nl=False)
    sys.stdout.flush()


def _hide(piece: str) -> None:
    """Shows nothing: JSON holds the whole text."""


def _mask(generator: Generator, grammar: Grammar, held: contextlib.ExitStack) -> TokenMask:
    """What holds the text to its form.

    Raises:
        NqEdgeError: NQ-GRAMMAR for a form that cannot be used, NQ-MISSING without llguidance.
    """
    from ..serving.constraint import Constrainer

    constrainer = Constrainer(generator.tokenizer, generator.backend.vocab_size, generator.eos_ids)
    held.callback(constrainer.close)
    return constrainer.mask(grammar)


def _read_prompt(prompt: str | None, path: Path | None) -> str:
    """The prompt from the option, the file or standard input.

    Raises:
        NqEdgeError: NQ-OPTION for both at once, NQ-PROMPT for a file that is unreadable, too large or not UTF-8.
    """
    if prompt is not None and path is not None:
        raise NqEdgeError("NQ-OPTION", "--prompt and --prompt-file exclude each other.", "Pass one of them.")
    if prompt is not None:
        return prompt
    if path is None and sys.stdin is None:
        raise NqEdgeError("NQ-PROMPT", "there is no prompt: standard input is closed.", "Pass --prompt.")
    if path is None and sys.stdin.isatty():
        asked: str = click.prompt("prompt", err=True)
        return asked
    try:
        with open(path, "rb") if path is not None else click.open_file("-", "rb") as file:  # noqa: PTH123
            data = file.read(MAX_PROMPT_BYTES + 1)
        if len(data) > MAX_PROMPT_BYTES:
            raise NqEdgeError("NQ-PROMPT", f"the prompt has more than {MAX_PROMPT_BYTES >> 20} MiB.")
        return bytes(data).decode("utf-8")
    except OSError as error:
        raise NqEdgeError("NQ-PROMPT", f"cannot read {path}: {error.strerror}.", "Check --prompt-file.") from error
    except UnicodeDecodeError as error:
        raise NqEdgeError("NQ-PROMPT", f"the prompt is not UTF-8 ({error.reason}).", "Convert it.") from error
