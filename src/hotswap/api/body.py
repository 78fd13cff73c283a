"""Request bodies: read with a bound and a deadline, parsed as strict JSON."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from anyio import CancelScope, to_thread
from starlette.types import Message, Receive, Scope

from hotswap.api.errors import BodyTimedOut, ClientGone, UnsupportedMediaType
from hotswap.api.headers import ambiguous_length, announces_body, content_type, header
from hotswap.errors import InvalidJson, RequestTooLarge

MAX_BODY_BYTES = 8 << 20
MAX_DEPTH = 64
MAX_DISCARDED_BYTES = 4 << 20
MAX_LINGERED_BYTES = 64 << 20
PAUSE_S = 60.0
"""A client may be silent for this long in the middle of its body."""
SLOWEST_BYTES_PER_S = 8 << 10
"""And beside that no slower, or it would hold its place for hours with a byte a minute."""
_DISCARD_S = 1.0
_LINGER_S = 30.0
_SILENT_S = 5.0
"""Who sends nothing for so long has seen that he is refused, or does not care."""
_THREAD_FROM_BYTES = 256 << 10  # parsing more than this would hold up every stream
_EXACT_INTEGERS = 2**53  # beyond it a float no longer says which integer was meant
_ODD_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")

T = TypeVar("T")


class Incoming:
    """``receive``, remembering whether the request body has been read to its end.

    The kernel answers unread bytes with a reset, which takes away what the client has not read
    yet: our refusal. So what is left of a body is read in two goes. `discard` comes before the
    answer: it is enough for most bodies, whose connection then can be kept. `linger` comes after
    it: most HTTP clients send all of a body before they look for an answer.
    """

    def __init__(self, receive: Receive, scope: Scope) -> None:
        self._receive = receive
        self.complete = False
        self.announced = announces_body(scope)
        self.ambiguous = ambiguous_length(scope)

    async def __call__(self) -> Message:
        message = await self._receive()
        self._note(message)
        return message

    async def discard(self) -> None:
        """Read what is left of the body, within narrow bounds."""
        await self._read_on(MAX_DISCARDED_BYTES, _DISCARD_S)

    async def linger(self) -> None:
        """The same within wide ones."""
        await self._read_on(MAX_LINGERED_BYTES, _LINGER_S)

    async def skip(self) -> None:
        """Read whatever still comes, without a bound."""
        while not self.complete:
            await self()

    async def _read_on(self, most_bytes: int, most_s: float) -> None:
        size = 0
        ends = anyio.current_time() + most_s
        with CancelScope() as patience:
            while not self.complete and size <= most_bytes:
                patience.deadline = min(ends, anyio.current_time() + _SILENT_S)
                size += len((await self()).get("body", b""))

    def _note(self, message: Message) -> None:
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.complete = True


async def read_body(receive: Receive, scope: Scope, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The whole request body.

    Raises:
        RequestTooLarge: it is, or says that it will be, above ``limit_bytes``.
        BodyTimedOut: nothing came for `PAUSE_S`, or all of it too slowly.
        ClientGone: the client left before its end.
    """
    announced = header(scope, b"content-length")
    if announced.isdecimal() and int(announced[:20]) > limit_bytes:
        raise _too_large(limit_bytes)
    # One scope and its deadline moved: a scope for each message costs more than the message.
    with anyio.move_on_after(PAUSE_S) as pause:
        return await _whole_body(receive, limit_bytes, pause)
    # `fail_after` would look whether the deadline, which may have been moved since, has passed.
    raise BodyTimedOut(
        f"the request body came too slowly: nothing for {PAUSE_S:g} s, "
        f"or less than {SLOWEST_BYTES_PER_S} bytes per second"
    )


async def _whole_body(receive: Receive, limit_bytes: int, pause: CancelScope) -> bytes:
    chunks = bytearray()
    more = True
    begun = anyio.current_time()
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks += message.get("body", b"")
        if len(chunks) > limit_bytes:
            raise _too_large(limit_bytes)
        more = message.get("more_body", False)
        at_this_rate = begun + len(chunks) / SLOWEST_BYTES_PER_S
        pause.deadline = min(anyio.current_time(), at_this_rate) + PAUSE_S
    return bytes(chunks)


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request body is larger than {limit_bytes} bytes")


async def read_object(receive: Receive, scope: Scope, parse: Callable[[dict[str, Any]], T]) -> T:
    """Read a JSON object and turn it into a ``T``; large ones in a thread.

    The content type is not asked for: ``curl -d`` says that JSON is a form.
    """
    if content_type(scope) == "multipart/form-data":
        raise UnsupportedMediaType("this route takes JSON, not multipart/form-data")
    body = await read_body(receive, scope)
    if len(body) < _THREAD_FROM_BYTES:
        return parse(parse_object(body))
    return await to_thread.run_sync(lambda: parse(parse_object(body)))


def parse_object(body: bytes) -> dict[str, Any]:
    """``body`` as a JSON object, by the letter of the standard and within bounds.

    Numbers without a fraction become integers however they are written, because JSON knows no
    difference and some clients send ``"n": 1.0``.

    Raises:
        InvalidJson: its ``param`` is the path of the value that is at fault, where one is.
    """
    numbers = _Numbers()
    try:
        text = body.decode()
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_float=numbers.read,
            parse_constant=numbers.refuse_constant,
        )
    except UnicodeDecodeError:
        raise InvalidJson(
            "the body is not valid UTF-8: it must be JSON as plain text, neither compressed nor in "
            "another encoding"
        ) from None
    except json.JSONDecodeError as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # int() refuses thousands of digits
        raise InvalidJson("the body holds a number out of range") from None
    if not isinstance(value, dict):
        raise InvalidJson("the body must be a JSON object")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    if numbers.refused:
        raise _at_fault(value)
    if _ODD_ESCAPE.search(text) and not all(map(_is_carried, _strings(value))):
        raise _at_fault(value)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidJson(f"the key {twice[:200]!r} appears twice in one object")
    return found


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands in an object where a number is that cannot be."""

    reason: str


_OUT_OF_RANGE = _Refused("a number is out of range")
_CONSTANTS = {
    name: _Refused(f"{name} is not valid JSON") for name in ("NaN", "Infinity", "-Infinity")
}


class _Numbers:
    """Reads the numbers of one body. Only in the whole object a refused one has a name, so it is
    left in there."""

    __slots__ = ("refused",)

    def __init__(self) -> None:
        self.refused = False

    def read(self, text: str) -> int | float | _Refused:
        value = float(text)
        if not math.isfinite(value):
            self.refused = True
            return _OUT_OF_RANGE
        return int(value) if value.is_integer() and abs(value) < _EXACT_INTEGERS else value

    def refuse_constant(self, name: str) -> _Refused:
        self.refused = True
        return _CONSTANTS[name]


def _too_deep() -> InvalidJson:
    return InvalidJson(f"the body is nested deeper than {MAX_DEPTH} levels")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [inner for outer in level for inner in _children(outer) if _is_container(inner)]
    return depth


def _strings(value: Any) -> Iterator[str]:
    """All of them, keys too."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            yield item
        elif _is_container(item):
            todo.extend(_children(item))
            todo.extend(item if isinstance(item, dict) else ())


def _is_carried(text: str) -> bool:
    """Not so what JSON can escape but UTF-8 cannot carry, and NUL."""
    return _fault_of(text) is None


def _fault_of(value: Any) -> str | None:
    if isinstance(value, _Refused):
        return value.reason
    if not isinstance(value, str):
        return None
    if "\0" in value:
        return "a string holds the character NUL"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "a string holds half of a surrogate pair"
    return None


def _at_fault(value: Any) -> InvalidJson:
    """Names the first value in ``value`` that cannot be, as `hotswap.api.fields.decode` would;
    there is one. A key that cannot be is told as a fault of its object."""
    path, reason = _first_fault(value) or ("", "the body is not valid JSON")
    path = path.removeprefix(".")[:200]
    return InvalidJson(f"{path}: {reason}" if path else reason, param=path or None)


def _first_fault(value: Any) -> tuple[str, str] | None:
    """Where it is from here, and what. No deeper than `MAX_DEPTH` calls."""
    if reason := _fault_of(value):
        return "", reason
    if isinstance(value, dict):
        if reason := next(filter(None, map(_fault_of, value)), None):
            return "", reason
        steps = ((f".{key}", inner) for key, inner in value.items())
    elif isinstance(value, list):
        steps = ((f"[{index}]", inner) for index, inner in enumerate(value))
    else:
        return None
    return next(
        ((step + found[0], found[1]) for step, inner in steps if (found := _first_fault(inner))),
        None,
    )


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list)


def _children(container: Any) -> Iterator[Any]:
    return iter(container.values() if isinstance(container, dict) else container)
