"""Kinds of settings: how each is written in text and in YAML or JSON, and what is allowed.

Text (flags, environment) is turned into a native value first; native values are checked
strictly, so that ``max_model_len: true`` and ``port: "8000"`` in a file are mistakes, not 1 and
8000.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False}
_BOOLEANS |= {"no": False, "off": False, "": False}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    ``check`` takes a native value and gives back the canonical one; ``read`` takes text. Both
    raise ValueError with what would have been right ("a whole number from 1 to 64").
    """

    check: Callable[[Any], Any]
    native: Callable[[str], Any] = str
    metavar: str | None = None
    """None: a switch, which takes no value on the command line."""
    many: bool = False

    def read(self, text: str) -> Any:
        try:
            value = self.native(text)
        except ValueError:
            value = text  # `check` says what would have been right
        return self.check(value)


def whole(low: int, high: int | None = None, metavar: str = "N") -> Kind:
    def check(value: Any) -> int:
        fits = isinstance(value, int) and not isinstance(value, bool)
        if not fits or value < low or (high is not None and value > high):
            raise ValueError(f"a whole number {_bounds(low, high)}")
        return int(value)

    return Kind(check, int, metavar)


def number(
    low: float, high: float | None = None, *, above: bool = False, metavar: str = "X"
) -> Kind:
    """``above``: ``low`` itself is not allowed."""

    def check(value: Any) -> float:
        if not _is_number(value) or value < low or (above and value == low):
            raise ValueError(f"a number {_bounds(low, high, above)}")
        if high is not None and value > high:
            raise ValueError(f"a number {_bounds(low, high, above)}")
        return float(value)

    return Kind(check, float, metavar)


def duration_s(*, above_zero: bool = False) -> Kind:
    """Seconds; as a number, or as text with a unit ("5m")."""
    expected = f"{'more than 0' if above_zero else '0 or more'} seconds, such as 90 or 5m"

    def check(value: Any) -> float:
        if isinstance(value, str) and (written := _DURATION.fullmatch(value.strip())):
            value = float(written[1]) * _SECONDS[written[2].lower()]
        if not _is_number(value) or value < 0 or (above_zero and value == 0):
            raise ValueError(expected)
        return float(value)

    return Kind(check, float, "S")


_MOST_BYTES = 2**60


def size_bytes(low: int = 0) -> Kind:
    """Bytes; as a number, or as text with a unit ("2GiB" is 2 * 2**30, "2GB" is 2 * 10**9)."""
    expected = f"{low} or more bytes, such as 2GiB, 500MB or 1000000"

    def check(value: Any) -> int:
        if isinstance(value, str) and (written := _SIZE.fullmatch(value.strip())):
            base = 1024 if written[3] else 1000
            value = int(float(written[1]) * base ** " kmgt".index(written[2].lower() or " "))
        fits = isinstance(value, int) and not isinstance(value, bool)
        if not fits or not low <= value <= _MOST_BYTES:
            raise ValueError(expected)
        return int(value)

    return Kind(check, int, "BYTES")


def text(*, metavar: str, pattern: str = r".+", expected: str = "a text") -> Kind:
    shape = re.compile(pattern, re.DOTALL)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not shape.fullmatch(value):
            raise ValueError(expected)
        return value

    return Kind(check, str, metavar)


def choice(*names: str) -> Kind:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return str(value)

    return Kind(check, str, "{" + ",".join(names) + "}")


def boolean() -> Kind:
    def native(written: str) -> bool:
        if written.strip().lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[written.strip().lower()]

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return Kind(check, native)


def several(item: Kind, separator: str = r"[,\s]+") -> Kind:
    """A tuple of ``item``; a single one stands for itself, text is split at ``separator``."""

    def native(written: str) -> list[Any]:
        return [item.native(part) for part in re.split(separator, written) if part]

    def check(value: Any) -> tuple[Any, ...]:
        parts = value if isinstance(value, list | tuple) else [value]
        try:
            return tuple(item.check(part) for part in parts)
        except ValueError as error:
            raise ValueError(f"a list, each {error}") from None

    return Kind(check, native, item.metavar, many=True)


def optional(kind: Kind) -> Kind:
    """``kind``, or null for unset."""

    def check(value: Any) -> Any:
        return None if value is None else kind.check(value)

    return Kind(check, kind.native, kind.metavar)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # hundreds of digits
        return False


def _bounds(low: float, high: float | None, above: bool = False) -> str:
    if high is not None:
        return f"{'above' if above else 'from'} {low} {'up ' if above else ''}to {high}"
    return f"above {low}" if above else f"of {low} or more"
