# SPDX-License-Identifier: Apache-2.0
"""The server: OpenAI's text APIs over HTTP (extra `[serve]`: starlette and uvicorn).

A request passes `guard` (host, key, size, room), is read by `bodies`, becomes requests of the scheduler (`completions`,
`chats`, `responses`) and comes back through `texts` as JSON or as server-sent events. `app` has the paths.
"""

from __future__ import annotations

from .app import make_app
from .options import ServeOptions
from .run import serve

__all__ = ["ServeOptions", "make_app", "serve"]
