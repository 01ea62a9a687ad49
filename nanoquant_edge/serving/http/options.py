# SPDX-License-Identifier: Apache-2.0
"""How a server listens and what it bears; checked when made, before anything is loaded."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from ...errors import NqEdgeError
from ...runtimes.options import check_whole

__all__ = ["ServeOptions"]

#: Shorter keys can be guessed.
_LEAST_KEY = 16


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server listens.

    Attributes:
        host: address to listen at. Other machines reach any but a loopback address, which needs `api_key`.
        port: 0 takes a free one.
        api_key: clients send it as `Authorization: Bearer KEY`; None asks for none.
        origins: web pages of other origins that may use the server ("https://example.org", or "*").
        max_body: most bytes of a request.
        max_requests: most requests in work at once, waiting ones included; more are told to come again.
        body_s: seconds until the body must be there.
        drain_s: seconds that texts in work may take after SIGTERM.

    Raises:
        NqEdgeError: NQ-OPTION for a value out of its range, NQ-SERVE for an address that needs a key.

    Example:
        >>> ServeOptions(port=8080).loopback
        True
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    max_body: int = 4 << 20
    max_requests: int = 256
    body_s: float = 30.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        check_whole("port", self.port, low=0, high=65535)
        check_whole("max_body", self.max_body, low=1 << 10, high=1 << 30)
        check_whole("max_requests", self.max_requests, low=1, high=1 << 16)
        for name in ("body_s", "drain_s"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value <= 86400):
                raise NqEdgeError("NQ-OPTION", f"{name} must be a number from 0 to 86400, got {value!r}.")
        if self.api_key is not None and (
            len(self.api_key) < _LEAST_KEY or not self.api_key.isascii() or not self.api_key.isprintable()
        ):
            raise NqEdgeError(
                "NQ-SERVE",
                f"the API key must be at least {_LEAST_KEY} printable ASCII characters.",
                "Make one: openssl rand -hex 24",
            )
        if self.api_key is None and not self.loopback:
            raise NqEdgeError(
                "NQ-SERVE",
                f"{self.host} can be reached from other machines, and there is no API key.",
                "Put a key into a file and pass --api-key-file, or listen at 127.0.0.1.",
            )

    @property
    def loopback(self) -> bool:
        """Whether only programs of this machine reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
