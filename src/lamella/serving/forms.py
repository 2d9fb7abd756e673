"""The bodies and the forms that requests send.

Only forms of parts are read: other forms have no bound on their memory.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import HTTPException, Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as StarletteHTTPException

__all__ = ["JSON", "MULTIPART", "content_of", "form_of", "media_type"]

JSON, MULTIPART = "application/json", "multipart/form-data"


def media_type(request: Request) -> str:
    """Return the media type of a request's body, without its parameters; "" if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _unreadable() -> HTTPException:
    return HTTPException(400, "the body of the request cannot be read; send it again")


async def content_of(request: Request) -> bytes:
    """Read the body of a request.

    Raises:
        HTTPException: 400, the client has left; or one of the gate.
    """
    try:
        return await request.body()
    except StarletteHTTPException:
        raise
    except Exception as error:  # the client has left
        raise _unreadable() from error


@asynccontextmanager
async def form_of(
    request: Request, *, files: int = 1000, fields: int = 1000, field_bytes: int = 1 << 20
) -> AsyncIterator[FormData]:
    """Read the form of a request. Its files are closed at the end of the context.

    Args:
        request: the request; the form is empty if its body is none of parts.
        files: the largest number of files.
        fields: the largest number of other fields.
        field_bytes: the size of a field that is no file.

    Raises:
        HTTPException: 400, the form cannot be read, or has more than that; or one of the gate.
    """
    if media_type(request) != MULTIPART:
        yield FormData()
        return
    try:
        form = await request.form(max_files=files, max_fields=fields, max_part_size=field_bytes)
    except StarletteHTTPException:
        raise
    except Exception as error:  # whatever else a body makes its parser raise, or the disk that it goes to
        raise _unreadable() from error
    try:
        yield form
    finally:
        await form.close()
