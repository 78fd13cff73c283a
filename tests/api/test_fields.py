from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from hotswap.api.fields import Count, LogitBias, Probability, StopString, decode
from hotswap.errors import InvalidRequest


class A(Struct, tag_field="kind", tag="a"):
    size: Literal[1] | None = None


class B(Struct, tag_field="kind", tag="b"):
    size: Literal["small", "large"] | None = None


class Order(Struct):
    parts: str | list[A | B] | None = None
    named: dict[str, A | B] | None = None
    count: Count | None = None
    share: Probability | None = None
    name: str | None = None
    on: bool | None = None
    names: list[StopString] | None = None
    either: str | list[str] | None = None
    several: Annotated[list[int | list[int]], Meta(min_length=1)] | None = None
    anything: list[Any] | None = None
    more: dict[str, Any] | None = None
    mode: Literal["drain", "abort"] | None = None
    bias: LogitBias | None = None
    some: Annotated[float, Meta(gt=0, le=1)] | None = None
    large: Annotated[int, Meta(ge=-1, le=2**63 - 1)] | None = None
    least: Annotated[float, Meta(ge=0.5)] | None = None
    most: Annotated[int, Meta(le=2)] | None = None
    any: int | None = None
    mixed: Annotated[int, Meta(ge=1)] | str | None = None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": "7"}, "count: must be a whole number from 1 to 2147483647"),
        ({"count": 1.5}, "count: must be a whole number from 1 to 2147483647"),
        ({"count": 0}, "count: must be a whole number from 1 to 2147483647"),
        ({"count": 2**31}, "count: must be a whole number from 1 to 2147483647"),
        ({"share": "7"}, "share: must be a number from 0 to 1"),
        ({"share": 1.5}, "share: must be a number from 0 to 1"),
        ({"some": 0}, "some: must be a number above 0 and at most 1"),
        ({"some": 2}, "some: must be a number above 0 and at most 1"),
        ({"large": 2**63}, "large: must be a whole number from -1 to 9223372036854775807"),
        ({"large": 2**65}, "large: must be a whole number from -1 to 9223372036854775807"),
        ({"least": -1}, "least: must be a number of 0.5 or more"),
        ({"most": 3}, "most: must be a whole number of 2 or less"),
        ({"any": "x"}, "any: must be a whole number"),
        ({"mixed": []}, "mixed: must be a whole number or text"),
        ({"name": 7}, "name: must be text"),
        ({"on": 1}, "on: must be true or false"),
        ({"names": "x"}, "names: must be a list of texts"),
        ({"names": [""]}, "names[0]: must be text of length 1 or more"),
        ({"either": 7}, "either: must be text or a list of texts"),
        ({"parts": 7}, "parts: must be text or a list of objects whose kind is 'a' or 'b'"),
        ({"several": 7}, "several: must be a list of whole numbers or lists"),
        ({"several": []}, "several: must be a list of length 1 or more"),
        ({"anything": 7}, "anything: must be a list"),
        ({"more": []}, "more: must be an object"),
        ({"mode": "kill"}, "mode: 'kill' is not one of its values; it can be 'abort' or 'drain'"),
        (
            {"parts": [{"kind": "x"}]},
            "parts[0].kind: 'x' is not supported here; it can be 'a' or 'b'",
        ),
        (
            {"parts": [{"kind": "a"}, {"kind": "b", "size": "x"}]},
            "parts[1].size: 'x' is not one of its values; it can be 'large' or 'small'",
        ),
        (
            {"named": {"n": {"kind": "a", "size": 2}}},
            "named.n.size: 2 is not one of its values; it can be 1 or 'large' or 'small'",
        ),
        (
            {"bias": {"x": 1}},
            "bias: a key must be a whole number from 0 to 2147483647 (token id)",
        ),
        (
            {"bias": {"-1": 1}},
            "bias: a key must be a whole number from 0 to 2147483647 (token id)",
        ),
        ({"bias": {"7": 1, "50256": 101}}, "bias.50256: must be a number from -100 to 100"),
        ({"bias": {"7": "1"}}, "bias.7: must be a number from -100 to 100"),
        (
            {"parts": [{"kind": "image"}]},
            "parts[0].kind: 'image' is not supported: this model reads text only; "
            "it can be 'a' or 'b'",
        ),
        ([], "must be an object"),
        (
            {"mode": "x - at `$.share`"},
            "mode: 'x - at `$.share`' is not one of its values; it can be 'abort' or 'drain'",
        ),
    ],
)
def test_a_complaint_names_the_field_and_no_type_of_python(fields: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(fields, Order)
    assert raised.value.message == message
    assert raised.value.param == (message.partition(":")[0] if ":" in message else None)
