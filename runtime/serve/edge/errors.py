"""Errors as clients see them: JSON with a code for programs and a sentence for people."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi import HTTPException as FastAPIError
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

LOGGER = logging.getLogger("vmla.serve")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk and of an exhausted quota."""


class ApiError(FastAPIError):
    """A request that is refused; FastAPI's own kind of error, which it lets through while it reads a body."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        """`status` of HTTP; after `retry_after` seconds it may be worth another try."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        super().__init__(status, message, headers)
        self.code, self.message = code, message

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        return {"error": {"code": self.code, "message": self.message}}


def not_found(what: str) -> ApiError:
    """The refusal of a request for something that does not exist."""
    return ApiError(404, "not_found", f"there is no such {what}")


def busy(message: str, *, retry_after: int = 5) -> ApiError:
    """The refusal of a request that may succeed later."""
    return ApiError(429, "busy", message, retry_after=retry_after)


def invalid(message: str) -> ApiError:
    """The refusal of a request that asks for something impossible."""
    return ApiError(422, "invalid_request", message)


def sentence_of(errors: Any) -> str:
    """The first of pydantic's complaints about a body, as one sentence without the values that were sent."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    reason = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


def answer(error: ApiError) -> JSONResponse:
    """The HTTP response that reports `error`."""
    return JSONResponse(error.body, status_code=error.status_code, headers=error.headers)


def install(app: FastAPI) -> None:
    """Make `app` report every error as JSON."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return answer(invalid(sentence_of(error.errors())))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed", 416: "range_not_satisfiable"}
    code = codes.get(error.status_code, "invalid_request")
    refused = ApiError(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    response = answer(refused)
    response.headers.update(error.headers or {})
    return response


async def _system(request: Request, error: Exception) -> JSONResponse:
    return answer(api_error(error, request.url.path))


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return answer(ApiError(400, "hung_up", "the request is incomplete"))  # the client has gone


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return answer(api_error(error, request.url.path))


def api_error(error: Exception, where: str) -> ApiError:
    """The answer to a request to the path `where` that failed unexpectedly; the log has the whole `error`."""
    if isinstance(error, OSError) and error.errno in FULL:
        LOGGER.error("no room on disk", extra={"fields": {"path": where, "reason": str(error)}})
        return ApiError(507, "disk_full", "the server has no room on its disk", retry_after=60)
    LOGGER.error("unexpected", extra={"fields": {"path": where}}, exc_info=error)
    return ApiError(500, "internal", "something went wrong on the server; its log says what")
