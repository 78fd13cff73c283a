from __future__ import annotations

from typing import Any, Literal

import pytest
from msgspec import Struct

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
    more: dict[str, Any] | None = None
    mode: Literal["drain", "abort"] | None = None
    bias: LogitBias | None = None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": "7"}, "count: must be a whole number"),
        ({"count": 1.5}, "count: must be a whole number"),
        ({"count": 0}, "count: must be a whole number of 1 or more"),
        ({"count": 2**31}, "count: must be a whole number of 2147483647 or less"),
        ({"share": "7"}, "share: must be a number"),
        ({"share": 1.5}, "share: must be a number of 1 or less"),
        ({"name": 7}, "name: must be text"),
        ({"on": 1}, "on: must be true or false"),
        ({"names": "x"}, "names: must be a list"),
        ({"names": [""]}, "names[0]: must be text of length 1 or more"),
        ({"either": 7}, "either: must be text or a list"),
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
            "named[...].size: 2 is not one of its values; it can be 1 or 'large' or 'small'",
        ),
        ({"bias": {"x": 1}}, "bias: a key must be a whole number"),
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
