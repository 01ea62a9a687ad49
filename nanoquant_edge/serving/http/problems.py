# SPDX-License-Identifier: Apache-2.0
"""What a request is told when it cannot be answered: the error object of OpenAI's API, with the field's name.

https://platform.openai.com/docs/guides/error-codes/api-errors
"""

from __future__ import annotations

from typing import Any

from ...errors import NqEdgeError
from ..requests import BusyError

__all__ = ["Problem", "problem_of"]

#: Codes of `NqEdgeError` that blame the request, and the field that each is about; the rest blame the server.
_BLAME = {"NQ-PROMPT": None, "NQ-OPTION": None, "NQ-TEMPLATE": "messages", "NQ-GRAMMAR": "response_format"}


class Problem(Exception):
    """A refusal.

    Args:
        status: of the HTTP response.
        message: one sentence.
        param: the field that is wrong, such as "messages[0].role".
        code: stable word for programs.
        retry_after: seconds after which to try again.

    Example:
        >>> Problem(400, "temperature must be a number.", param="temperature").body()["error"]["param"]
        'temperature'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The error's type, by its status."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers beside it."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, round(self.retry_after)))}


def problem_of(error: Exception) -> Problem:
    """What a request is told when this was raised for it; nothing of the server's own paths or state.

    Example:
        >>> problem_of(NqEdgeError("NQ-PROMPT", "the prompt is empty.")).status
        400
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        status = 503 if error.closing else 429
        return Problem(status, error.message, code="busy", retry_after=error.retry_after_s)
    if isinstance(error, NqEdgeError) and error.code in _BLAME:
        message = f"{error.message} {error.hint}".strip() if error.code == "NQ-TEMPLATE" else error.message
        return Problem(400, message, param=_BLAME[error.code], code=error.code)
    if isinstance(error, NqEdgeError) and error.code == "NQ-MISSING":
        return Problem(501, error.message, code=error.code)
    if isinstance(error, NqEdgeError) and error.code == "NQ-MEMORY":
        return Problem(503, "there is too little memory for this request now.", code=error.code, retry_after=5)
    return Problem(500, "the server failed to answer; its log says why.", code="internal_error")
