"""What a request's head says. Names come in lower case, as ASGI has them."""

from __future__ import annotations

from starlette.types import Scope

_LENGTHS = frozenset((b"content-length", b"transfer-encoding"))


def header(scope: Scope, name: bytes) -> str:
    """The first header of that name; empty where there is none.

    Every request is asked several times, and Starlette's `Headers` costs more than the answer.
    """
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


def content_type(scope: Scope) -> str:
    return header(scope, b"content-type").partition(";")[0].strip().lower()


def is_anthropic(scope: Scope) -> bool:
    """The client says that it speaks Anthropic's API."""
    return bool(header(scope, b"anthropic-version"))


def announces_body(scope: Scope) -> bool:
    """One follows, as HTTP/1.1 tells it."""
    return any(name in _LENGTHS for name, _ in scope["headers"])


def ambiguous_length(scope: Scope) -> bool:
    """Two ways to tell where the body ends: the way to smuggle a request past a proxy."""
    return _LENGTHS.issubset(name for name, _ in scope["headers"])
