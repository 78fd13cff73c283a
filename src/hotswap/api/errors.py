"""The one table from errors to HTTP statuses, and the envelope that every failure wears."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from hotswap.api.headers import is_anthropic
from hotswap.contracts.progress import Progress
from hotswap.errors import (
    CheckpointRefused,
    ContextLengthExceeded,
    DeviceLost,
    DiskFull,
    DownloadFailed,
    EngineFailed,
    HotswapError,
    HubUnavailable,
    InsufficientMemory,
    InvalidApiKey,
    InvalidJson,
    InvalidRequest,
    MethodNotAllowed,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    ModelUnloaded,
    ModelUnusable,
    NotLoaded,
    NotPermitted,
    Overloaded,
    RequestTooLarge,
    RouteNotFound,
    ShuttingDown,
    SwapInProgress,
    Unavailable,
    WrongDownload,
)


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class BodyTimedOut(InvalidRequest):
    """The client stopped sending in the middle of its request body."""

    code = "request_timeout"


class ResponseNotFound(HotswapError):
    """It was never kept, or has made way for others."""

    code = "response_not_found"


class ClientGone(Exception):
    """The client has left or takes nothing any more: there is nobody to answer."""


STATUS: Mapping[type[HotswapError], int] = {
    HotswapError: 500,
    InvalidRequest: 400,
    InvalidJson: 400,
    ContextLengthExceeded: 400,
    BodyTimedOut: 408,
    UnsupportedMediaType: 415,
    NotLoaded: 400,
    InvalidApiKey: 401,
    NotPermitted: 403,
    RouteNotFound: 404,
    ModelNotFound: 404,
    ResponseNotFound: 404,
    MethodNotAllowed: 405,
    RequestTooLarge: 413,
    CheckpointRefused: 422,
    ModelUnusable: 422,
    Overloaded: 429,
    Unavailable: 503,
    ModelLoading: 503,
    SwapInProgress: 503,
    ModelUnloaded: 503,
    EngineFailed: 503,
    DeviceLost: 503,
    ShuttingDown: 503,
    InsufficientMemory: 503,
    ModelLoadFailed: 503,
    DownloadFailed: 503,
    HubUnavailable: 504,
    WrongDownload: 502,
    DiskFull: 507,
}

Envelope = Callable[[HotswapError, Progress | None], dict[str, Any]]

_log = logging.getLogger(__name__)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_RETRY_AFTER_MAX_S = 60  # the openai package ignores waits above 120 s


def status_of(error: HotswapError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def envelope(error: HotswapError, loading: Progress | None = None) -> dict[str, Any]:
    """The body of a failure. ``loading`` tells a client that is to come back what it waits for."""
    status = status_of(error)
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = error.param if isinstance(error, InvalidRequest) else None
    body: dict[str, Any] = {
        "error": {"message": error.message, "type": kind, "param": param, "code": error.code}
    }
    if loading is not None and is_temporary(status):
        body["loading"] = {
            "model": loading.model,
            "state": loading.stage,
            "progress": loading.value,
            "eta_seconds": loading.eta_s,
        }
    return body


def anthropic_envelope(error: HotswapError, _: Progress | None = None) -> dict[str, Any]:
    """Of ``/v1/messages``, what lies below it, and whatever else Anthropic's clients ask for."""
    status = status_of(error)
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_envelope(error: HotswapError, _: Progress | None = None) -> dict[str, Any]:
    """Of the routes below ``/api/``."""
    return {"error": error.message}


def envelope_on(path: str) -> Envelope:
    """How failures look to the clients that a path is for."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic_envelope
    return ollama_envelope if path.startswith("/api/") else envelope


def envelope_for(scope: Scope) -> Envelope:
    """How failures look to the client of a request: one that says it is Anthropic's is taken at
    its word."""
    return anthropic_envelope if is_anthropic(scope) else envelope_on(scope["path"])


def error_headers(error: HotswapError) -> dict[str, str]:
    status = status_of(error)
    if status == 401:
        return {"www-authenticate": "Bearer"}
    if not is_temporary(status):
        return {}
    wait_s = 5.0 if error.retry_after_s is None else error.retry_after_s
    return {"retry-after": str(min(max(math.ceil(wait_s), 1), _RETRY_AFTER_MAX_S))}


def error_response(
    scope: Scope,
    error: HotswapError,
    loading: Progress | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a request that failed."""
    return Response(
        msgspec.json.encode(envelope_for(scope)(error, loading)),
        status_code=status_of(error),
        headers={**error_headers(error), **(headers or {})},
        media_type="application/json",
    )


def is_temporary(status: int) -> bool:
    return status in (429, 503)


def presentable(raised: Exception, request_id: str) -> HotswapError:
    """What a client may know of ``raised``. What nobody foresaw is logged, and only there."""
    leaf = leaf_of(raised)
    if isinstance(leaf, HotswapError):
        return leaf
    _log.error("request %s failed unexpectedly", request_id, exc_info=leaf)
    return HotswapError(f"internal error; the server's log has it under request {request_id}")


def leaf_of(raised: Exception) -> Exception:
    """The exception that matters in what a task group raised: ours before any other."""
    leaves = list(_leaves(raised))
    ours = [leaf for leaf in leaves if isinstance(leaf, HotswapError)]
    return (ours or leaves)[0]


def _leaves(raised: Exception) -> list[Exception]:
    if not isinstance(raised, ExceptionGroup):
        return [raised]
    return [leaf for inner in raised.exceptions for leaf in _leaves(inner)]
