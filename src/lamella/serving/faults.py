"""How faults are told: in one line, and below /v1 in the form that clients of OpenAI's interface read."""

from collections.abc import Mapping

from fastapi import HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

from lamella.common.checks import first_line

__all__ = ["OPENAI", "Refusal", "problem", "reason", "told"]

OPENAI = "/v1/"
"""The beginning of the paths of OpenAI's interface."""


class Refusal(HTTPException):
    """The refusal of a request of OpenAI's interface.

    Args:
        status: of HTTP.
        detail: one line.
        param: the field that is at fault.
        code: a word for programs, such as "context_length_exceeded".
    """

    def __init__(self, status: int, detail: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, detail)
        self.param, self.code = param, code


def problem(path: str, error: StarletteHTTPException) -> JSONResponse:
    """Return the answer to a request that is refused.

    Args:
        path: of the request.
        error: the reason.
    """
    return JSONResponse(told(path, error), error.status_code, error.headers)


def told(path: str, error: StarletteHTTPException) -> Mapping[str, object]:
    """Return the content of such an answer; arguments are those of `problem`."""
    if not path.startswith(OPENAI):
        return {"detail": error.detail}
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    own = (error.param, error.code) if isinstance(error, Refusal) else (None, None)
    return {"error": {"message": error.detail, "type": kind, "param": own[0], "code": own[1]}}


def reason(error: Exception) -> str:
    """Return an error as one line: its own where it was written for people, and otherwise with the name of its type."""
    line = first_line(error)
    return line if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"
