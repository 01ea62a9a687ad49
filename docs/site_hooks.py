# SPDX-License-Identifier: Apache-2.0
"""What mkdocs.yml leaves to code: a page for each verb, made from its own help, and links that leave docs/."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

__all__ = ["on_config", "on_files", "on_page_markdown", "verb_page"]

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)(?:#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Put the verbs' pages below their index."""
    pages = ["verbs/index.md", *({name: f"verbs/{name}.md"} for name, _ in _verbs())]
    config["nav"] = [{"Verbs": pages} if "Verbs" in entry else entry for entry in config["nav"]]
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are made from code: verbs, and CONTRIBUTING.md."""
    from mkdocs.structure.files import File

    pages = {"verbs/index.md": _verbs_page(), "contributing.md": _contributing()}
    pages |= {f"verbs/{name}.md": verb_page(name, command) for name, command in _verbs()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Links to what is not part of the guide (sources, the README) become plain words that name it."""
    folder = (Path(config["docs_dir"]) / page.file.src_uri).parent

    def named(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(config["docs_dir"]) and not target.is_dir():
            return link[0]
        if not target.is_relative_to(ROOT):
            return link[0]
        path = target.relative_to(ROOT).as_posix()
        return link[1] if path in link[1] else f"{link[1]} (`{path}`)"

    return _LINK.sub(named, markdown)


def _verbs() -> Iterator[tuple[str, click.Command]]:
    from nanoquant_edge.cli.app import VERBS, app

    context = click.Context(app)
    for name in VERBS:
        command = app.get_command(context, name)
        assert command is not None
        yield name, command


def _verbs_page() -> str:
    from nanoquant_edge.cli.app import VERBS

    rows = "".join(f"| [nq-edge {name}]({name}.md) | {text} |\n" for name, text in VERBS.items())
    return (
        "# Verbs\n\nEach page says what `nq-edge VERB --help` says. Mistakes end with one message, its code and exit "
        f"status 2 ([Troubleshooting](../ERRORS.md)).\n\n| verb | |\n| --- | --- |\n{rows}"
    )


def verb_page(name: str, command: click.Command, level: int = 1) -> str:
    """A verb's help as Markdown, its own verbs below it.

    Args:
        name: as it is typed after `nq-edge`.
        command: its click command.
        level: of its heading.
    """
    context = click.Context(command, info_name=f"nq-edge {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    text = [f"{'#' * level} {name}", "", f"    nq-edge {name} {usage}", "", _paragraphs(command.help or ""), ""]
    options = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    shown = [record for option in options if (record := option.get_help_record(context))]
    if shown:
        text += ["| option | |", "| --- | --- |"]
        text += [f"| `{flags}` | {_cell(words)} |" for flags, words in shown]
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            text += ["", verb_page(f"{name} {child}", found, level + 1)]
    return "\n".join(text) + "\n"


def _paragraphs(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text)).replace("\b ", "")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _contributing() -> str:
    """CONTRIBUTING.md, whose links start at the repository's root."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
