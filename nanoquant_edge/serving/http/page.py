# SPDX-License-Identifier: Apache-2.0
"""The page at /: one file, and the headers that keep it from loading or telling anything elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Page", "read_page"]

_FILE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Page:
    """The page.

    Attributes:
        content: HTML.
        headers: what goes with it.
    """

    content: bytes
    headers: dict[str, str]


def read_page() -> Page:
    """Read the page; only the script and the style that stand in it may run, and they reach this server alone."""
    content = _FILE.read_bytes()
    script, style = (_hashes(content, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(content, headers)


def _hashes(content: bytes, tag: bytes) -> str:
    """What a content security policy calls the inline elements of a tag."""
    found = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)
