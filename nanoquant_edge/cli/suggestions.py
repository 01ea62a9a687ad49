# SPDX-License-Identifier: Apache-2.0
"""What a misspelt verb probably means."""

from __future__ import annotations

import click

__all__ = ["SuggestingGroup"]


class SuggestingGroup(click.Group):
    """A group of verbs that names the nearest ones when it is asked for one that it lacks."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of a command line; a usage error, status 2, where there is none."""
        verbs = self.list_commands(ctx)
        if args and args[0] not in verbs and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0].lower(), verbs, n=3, cutoff=0.5)
            ctx.fail(f"there is no verb {args[0]!r}. " + (f"Did you mean {' or '.join(near)}?" if near else ""))
        return super().resolve_command(ctx, args)
