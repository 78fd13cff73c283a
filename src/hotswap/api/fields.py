"""Typed decoding of JSON objects, shared by the dialects. ``null`` is unset everywhere."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from hotswap.api.alternatives import alternatives, list_items, number_range
from hotswap.errors import InvalidRequest

T = TypeVar("T")

INT32_MAX = 2**31 - 1
_TEN_YEARS_S = 3.2e8

Count = Annotated[int, Meta(ge=1, le=INT32_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX, title="token id")]
Probability = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(ge=-_TEN_YEARS_S, le=_TEN_YEARS_S)]
_DURATION_PATTERN = r"^[-+]?([0-9]{1,8}(\.[0-9]{1,12})?|([0-9]{1,3}(\.[0-9]*)?(ns|us|ms|s|m|h))+)$"
Duration = Annotated[str, Meta(extra_json_schema={"pattern": _DURATION_PATTERN})]
"""As `duration_s` takes it; the pattern only describes it."""
LogitBias = Annotated[
    dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=1024, extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
]

# The last place: before it a value of the client's may stand.
_LOCATED = re.compile(r"(?P<what>.*) - at (?:`key` in )?`\$\.?(?P<path>.*)`$", re.DOTALL)
_ANY_ENTRY = "[...]"
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_NO_CHOICE = re.compile(r"Invalid (?P<literal>enum )?value (?P<value>.*)", re.DOTALL)
_NO_MATCH = re.compile(r"Expected `[^`]*` matching regex '(?P<pattern>.*)'")
_EXPECTED = re.compile(
    r"Expected `(?P<types>[^`]*)`"
    r"(?:, got .*|(?P<length> of length)? (?P<side>[<>]=?) (?P<limit>\S+))?"
)
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
}
NO_TEXT = frozenset(
    {"audio", "document", "file", "image", "image_url", "input_audio", "input_file"}
    | {"input_image", "input_video", "video", "video_url"}
)
"""What dialects call parts that are something else."""
_DURATION_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def decode(fields: Any, into: type[T]) -> T:
    """``fields`` as a ``into``, nothing coerced.

    Raises:
        InvalidRequest: its ``param`` is the path of the field, ``messages[0].content``.
    """
    try:
        return msgspec.convert(fields, into, strict=True, str_keys=True)
    except msgspec.ValidationError as error:
        raise _named(str(error), fields, into) from None


def _named(complaint: str, fields: Any, into: type) -> InvalidRequest:
    located = _LOCATED.match(complaint)
    what, path = (located["what"], located["path"]) if located else (complaint, "")
    shown = _entry(complaint, fields, into, path) if _ANY_ENTRY in path else path
    choice = _NO_CHOICE.fullmatch(what)
    if missing := _MISSING.match(what):
        param = ".".join(filter(None, (shown, missing["field"])))
        return InvalidRequest(f"{param}: required, but missing", param=param)
    if unknown := _UNKNOWN.match(what):
        param = ".".join(filter(None, (shown, unknown["field"][:200])))
        return InvalidRequest(f"{param}: unknown field", param=param)
    is_key = " - at `key` in " in complaint
    if choice:
        what = _not_among(choice, alternatives(into, fields, path))
    else:
        allowed = number_range(into, fields, path, key=is_key)
        what = _in_words(what, allowed, list_items(into, fields, path))
    if is_key:
        what = f"a key {what}"
    return InvalidRequest(f"{shown}: {what}" if shown else what, param=shown or None)


def _entry(complaint: str, fields: Any, into: type, path: str) -> str:
    """``path`` to an entry of a mapping, which msgspec does not name, with its key; without it
    where the mapping is no field of the whole."""
    name, _, rest = path.partition(_ANY_ENTRY)
    mapping = fields.get(name) if isinstance(fields, dict) else None
    for key, value in mapping.items() if isinstance(mapping, dict) else ():
        try:
            msgspec.convert({name: {key: value}}, into, strict=True, str_keys=True)
        except msgspec.ValidationError as error:
            if str(error) == complaint:
                return f"{name}.{key[:200]}{rest}"
    return f"{name}{rest}"


def _not_among(choice: re.Match[str], values: tuple[str, ...]) -> str:
    # Else it is what tells kinds of parts, tools and the like from each other.
    fault = "is not one of its values" if choice["literal"] else "is not supported here"
    if choice["value"].strip("'") in NO_TEXT:
        fault = "is not supported: this model reads text only"
    told = f"; it can be {' or '.join(values)}" if values else ""
    return f"{choice['value'][:200]} {fault}{told}"


def _in_words(complaint: str, allowed: str, items: str) -> str:
    """What msgspec complains about, without the names of Python's types.

    Args:
        allowed: which numbers may be there; msgspec tells of the bound that was passed only.
        items: what a list there is a list of.
    """
    if pattern := _NO_MATCH.fullmatch(complaint):
        return f"must be text that matches {pattern['pattern']}"
    expected = _EXPECTED.fullmatch(complaint)
    if expected is None:
        return complaint[:1].lower() + complaint[1:]
    of = f" of {items}" if items and not expected["limit"] else ""
    names = {**_KINDS, "array": f"a list{of}"}
    kinds = [names.get(kind, kind) for kind in expected["types"].split(" | ") if kind != "null"]
    bound = ""
    if allowed and kinds in (["a number"], ["a whole number"]):
        bound = f" {allowed}"
    elif expected["limit"]:
        bound = f" of {'length ' if expected['length'] else ''}{float(expected['limit']):.15g}"
        bound += " or more" if expected["side"] == ">=" else " or less"
    return f"must be {' or '.join(kinds)}{bound}"


def duration_s(value: float | str, param: str) -> float:
    """Seconds of a number, or of a duration as Ollama writes it: ``"5m"``, ``"1h30m"``, ``"-1"``.

    Raises:
        InvalidRequest
    """
    seconds = _written_duration_s(value) if isinstance(value, str) else float(value)
    if seconds is None or abs(seconds) > _TEN_YEARS_S:
        raise InvalidRequest(f'{param}: expected seconds or a duration such as "5m"', param=param)
    return seconds


def _written_duration_s(text: str) -> float | None:
    sign = -1.0 if text.startswith("-") else 1.0
    unsigned = text.removeprefix("-").removeprefix("+")
    if re.fullmatch(r"\d{1,12}(?:\.\d{1,12})?", unsigned):
        return sign * float(unsigned)
    parts = _DURATION_PART.findall(unsigned)
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        return None
    return sign * sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
