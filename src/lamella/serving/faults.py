"""How a refusal is told: in one line, and below /v1 in the form that clients of OpenAI's interface read."""

from collections.abc import Mapping

from fastapi import HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

__all__ = ["OPENAI", "Refusal", "problem", "told"]

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
