# SPDX-License-Identifier: Apache-2.0
"""docs/ERRORS.md, made from the catalogue of codes: `python docs/errors_page.py > docs/ERRORS.md`."""

from __future__ import annotations

import textwrap

from nanoquant_edge.errors import CATALOGUE

__all__ = ["errors_page"]

_INTRODUCTION = """\
# Error codes

Whatever a user can cause ends with one message, `nq-edge: [CODE] what went wrong`, a second line with the next step,
exit status 2, and nothing half written. From Python it is `nanoquant_edge.NqEdgeError` with `code`, `message` and
`hint`. Codes are stable: scripts may match on them. The message names the offending file, option or value; this page
says what a code means in general.

Made from the code by `python docs/errors_page.py > docs/ERRORS.md`; a test compares the two.
"""


def errors_page() -> str:
    """The page, Markdown."""

    def wrapped(text: str) -> str:
        return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)

    entries = [
        f"\n## {code}\n\n{wrapped(cause)}\n\n{wrapped(f'**What to do:** {remedy}')}\n"
        for code, (cause, remedy) in sorted(CATALOGUE.items())
    ]
    return _INTRODUCTION + "".join(entries)


if __name__ == "__main__":
    print(errors_page(), end="")
