"""What one rendering of a chat template may take, and what it has taken: steps, time, and text that
is paid for before or as it is made."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from jinja2.utils import Namespace

SMALL_CHARS = 4096
"""Texts up to here are not counted one by one: the steps to make many are."""
_STEPS_PER_LOOK = 32
_WIDEST = 10_000
"""Columns that text may be padded to, and the like."""
_LARGEST_BITS = 4096
"""Of a number."""
_HOLDERS = (list, tuple, dict)
_ITEM_CHARS = 8
"""What an item of a list counts for: its reference takes as much memory."""
_WIDE_FORMAT = re.compile(r"\d{5}|%[^a-zA-Z%]*\*|\{[^{}]*\{")
"""Widths that are large or given as values."""


class TemplateTooCostly(TemplateError):
    """A template did more than any honest one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """For one rendering."""

    steps: int = 1_000_000
    """Turns of loops, and calls."""
    chars: int = 100_000_000
    """Of all texts made on the way, the prompt included; copies count."""
    cpu_s: float = 2.0
    """Time on a processor, so that a busy machine fails nobody."""


class Meter:
    """What one rendering has taken."""

    def __init__(self, limits: TemplateLimits, values: Mapping[str, Any]) -> None:
        self.steps = 0
        self._limits = limits
        self._chars = 0
        self._deadline = time.thread_time() + limits.cpu_s
        self._values = values
        self._given: dict[int, int] = {}
        """What the things that were given take, by their ids."""
        self.nested = False
        """The template has put lists and the like, or long texts, into lists and the like. What was
        given are trees; what is put together need not be one, and may be far larger written out
        than it is."""

    def step(self) -> None:
        self.steps += 1
        if not self.steps % _STEPS_PER_LOOK:
            self._look()

    def _look(self) -> None:
        if self.steps > self._limits.steps:
            raise TemplateTooCostly("It takes too many steps.")
        if time.thread_time() > self._deadline:
            raise TemplateTooCostly("It takes too long.")

    def pay(self, chars: int) -> None:
        self._chars += chars
        if self._chars > self._limits.chars:
            raise TemplateTooCostly("It makes too much text.")

    def afford(self, chars: int) -> None:
        """That much text may be made."""
        if self._chars + chars > self._limits.chars:
            raise TemplateTooCostly("It makes too much text.")

    def pay_for(self, value: Any) -> None:
        """For something that was made."""
        if isinstance(value, str):
            self.pay(len(value))
        elif isinstance(value, _HOLDERS):
            self.pay(len(value) * _ITEM_CHARS)
            items: Iterable[Any] = value.values() if isinstance(value, dict) else value
            self.nested = self.nested or _any_large(items)

    def size(self, value: Any) -> int:
        """At least that of ``value`` written out, if it may be more than it takes now."""
        if isinstance(value, Namespace):
            raise TemplateTooCostly("It writes out what is no text.")
        if isinstance(value, str):
            return len(value)
        if not self.nested or not isinstance(value, _HOLDERS):
            return _ITEM_CHARS
        if not self._given:
            _note_sizes(self._values, self._given)
        size = 0
        todo: list[Any] = [value]
        while todo:
            self.step()
            item = todo.pop()
            known = self._given.get(id(item))
            if known is not None:
                size += known
            elif isinstance(item, _HOLDERS):
                size += _ITEM_CHARS
                todo += item
                todo += item.values() if isinstance(item, dict) else ()
            else:
                size += self.size(item)
            self.afford(size)
        return size


def _any_large(items: Iterable[Any]) -> bool:
    """Of a text of 1 MB in half a million words, one by one would take longer than all else."""
    if set(map(type, items)) <= {str}:
        return max(map(len, items), default=0) > _ITEM_CHARS
    return any(map(_is_large, items))


def _is_large(item: Any) -> bool:
    return len(item) > _ITEM_CHARS if isinstance(item, str) else isinstance(item, _HOLDERS)


def _note_sizes(value: Any, sizes: dict[int, int]) -> int:
    if isinstance(value, str):
        return len(value)
    size = _ITEM_CHARS
    if isinstance(value, Mapping):
        size += sum(_note_sizes(i, sizes) + _note_sizes(k, sizes) for k, i in value.items())
    elif isinstance(value, list | tuple):
        size += sum(_note_sizes(item, sizes) for item in value)
    else:
        return size
    sizes[id(value)] = size
    return size


SIZED_FILTERS = frozenset({"batch", "center", "indent", "slice", "string", "sum", "tojson"})
"""Filters whose result may be much larger than what they are given."""


def afford_filter(meter: Meter, name: str, *args: Any, **kwargs: Any) -> None:
    """Whether a call of one of `SIZED_FILTERS` can be afforded. Raises: TemplateTooCostly."""
    values = [value for value in args if not hasattr(value, "filters")]  # the environment may come
    given, others = values[0], [*values[1:], *kwargs.values()]
    widths = [value if type(value) is int else meter.size(value) for value in others]
    if name == "sum":
        if any(not isinstance(value, int | float | str | None) for value in others):
            raise TemplateTooCostly("It adds up what are no numbers.")
    elif any(width > _WIDEST for width in widths):
        raise TemplateTooCostly("It makes too much text.")
    size = meter.size(given)
    if name == "tojson" and not others:
        return
    if name == "indent":
        meter.afford(str(given).count("\n") * sum(widths))
    elif name == "tojson":
        meter.afford(size * max(1, sum(widths)))


def afford_product(meter: Meter, left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            meter.afford(len(many) * max(times, 0) * (1 if isinstance(many, str) else _ITEM_CHARS))
    if isinstance(left, int) and isinstance(right, int):
        _refuse_bits(left.bit_length() + right.bit_length())


def afford_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _refuse_bits(left.bit_length() * max(right, 0))


def _refuse_bits(bits: int) -> None:
    if bits > _LARGEST_BITS:
        raise TemplateTooCostly("It makes too large a number.")


def afford_format(meter: Meter, template: str, given: Any) -> None:
    if _WIDE_FORMAT.search(template):
        raise TemplateTooCostly("It makes too much text.")
    fields = template.count("%") + template.count("{")
    meter.afford(fields * (_WIDEST + meter.size(given)))


def _cost_of_join(meter: Meter, text: str, items: Iterable[Any] = ()) -> tuple[Any, ...]:
    parts = list(items)
    meter.afford(sum(map(meter.size, parts)) + len(text) * len(parts))
    return (parts,)


def cost_of_replace(meter: Meter, text: str, *args: Any) -> tuple[Any, ...]:
    if len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        meter.afford(len(text) + text.count(args[0]) * len(args[1]))
    return args


def _cost_of_padding(_meter: Meter, _text: str, *args: Any) -> tuple[Any, ...]:
    if any(isinstance(arg, int) and arg > _WIDEST for arg in args):
        raise TemplateTooCostly("It makes too much text.")
    return args


METHOD_COSTS: Mapping[str, Callable[..., tuple[Any, ...]]] = {
    "join": _cost_of_join,
    "replace": cost_of_replace,
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _cost_of_padding),
}
"""Methods of texts that can make much of little: whether that can be afforded, and what they are
given then, an iterable having been used up."""
