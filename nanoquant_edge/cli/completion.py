# SPDX-License-Identifier: Apache-2.0
"""`nq-edge completion`: the script with which a shell completes verbs, options, their values and file names."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script for SHELL that completes verbs, options, their values and file names when Tab is pressed.

    Put what it prints where the shell looks, and open a new shell. bash must be 4.4 or newer.

    \b
      bash  nq-edge completion bash > ~/.nq-edge.bash
            echo '. ~/.nq-edge.bash' >> ~/.bashrc
      zsh   nq-edge completion zsh > ~/.nq-edge.zsh
            echo '. ~/.nq-edge.zsh' >> ~/.zshrc     (after compinit)
      fish  mkdir -p ~/.config/fish/completions
            nq-edge completion fish > ~/.config/fish/completions/nq-edge.fish

    The shells' own folders serve as well:

    \b
      bash  ~/.local/share/bash-completion/completions/nq-edge, where the
            package bash-completion is installed
      zsh   a file called _nq-edge in a folder of fpath
    """
    from click.shell_completion import get_completion_class

    root = context.find_root()
    program = root.info_name or "nq-edge"
    # The variable that click looks into when the script calls the program: click.Command._main_shell_completion.
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, program, variable).source())
