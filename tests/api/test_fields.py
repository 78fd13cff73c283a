from __future__ import annotations

from typing import Any, Literal

import pytest
from msgspec import Struct

from hotswap.api.fields import Count, LogitBias, Probability, StopString, decode
from hotswap.errors import InvalidRequest


class Order(Struct):
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
        ({"mode": "kill"}, "mode: 'kill' is not one of its values"),
        ({"bias": {"x": 1}}, "bias: a key must be a whole number"),
        ([], "must be an object"),
        ({"mode": "x - at `$.share`"}, "mode: 'x - at `$.share`' is not one of its values"),
    ],
)
def test_a_complaint_names_the_field_and_no_type_of_python(fields: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(fields, Order)
    assert raised.value.message == message
    assert raised.value.param == (message.partition(":")[0] if ":" in message else None)
