from __future__ import annotations

from typing import Any

import pytest

from hotswap import values
from hotswap.values import Kind


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (values.whole(0), "8000", 8000),
        (values.number(0, 1), "0.5", 0.5),
        (values.size_bytes(), "2GiB", 2 * 2**30),
        (values.size_bytes(), "2 GB", 2 * 10**9),
        (values.size_bytes(), "500m", 500 * 10**6),
        (values.size_bytes(), "1.5kb", 1500),
        (values.size_bytes(), "0", 0),
        (values.duration_s(), "90", 90.0),
        (values.duration_s(), "5m", 300.0),
        (values.duration_s(), "1.5h", 5400.0),
        (values.duration_s(), "250ms", 0.25),
        (values.boolean(), "1", True),
        (values.boolean(), "Yes", True),
        (values.boolean(), "off", False),
        (values.several(values.whole(0)), "1, 2 3", (1, 2, 3)),
        (values.optional(values.whole(0)), "4", 4),
    ],
)
def test_text_is_read_as_its_kind(kind: Kind, text: str, value: Any) -> None:
    assert kind.read(text) == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (values.whole(1), True),
        (values.whole(1), 1.0),
        (values.whole(1), "1"),
        (values.whole(1), 0),
        (values.whole(1, 4), 5),
        (values.number(0), float("nan")),
        (values.number(0), float("inf")),
        (values.number(0), False),
        (values.number(0, above=True), 0),
        (values.number(0, 1), 1.5),
        (values.size_bytes(), -1),
        (values.size_bytes(), True),
        (values.size_bytes(), 1.5),
        (values.size_bytes(), "two"),
        (values.size_bytes(), 10**400),
        (values.size_bytes(), "9" * 400 + "GiB"),
        (values.size_bytes(), "9999999TiB"),
        (values.number(0), 10**400),
        (values.duration_s(), 10**400),
        (values.duration_s(), "9" * 400 + "h"),
        (values.duration_s(), -1),
        (values.duration_s(), "5 fortnights"),
        (values.duration_s(above_zero=True), 0),
        (values.boolean(), "true"),
        (values.boolean(), 1),
        (values.boolean(), None),
        (values.choice("a", "b"), "c"),
        (values.choice("a", "b"), ["a"]),
        (values.text(metavar="X"), ""),
        (values.text(metavar="X"), 3),
        (values.several(values.whole(1)), [1, "2"]),
    ],
)
def test_a_native_value_must_be_of_the_right_type_and_range(kind: Kind, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(a|one of|true|\d|more)"):
        kind.check(value)


def test_a_single_value_stands_for_a_list_of_one() -> None:
    assert values.several(values.text(metavar="X")).check("a") == ("a",)


def test_null_is_unset_only_where_that_is_allowed() -> None:
    assert values.optional(values.whole(1)).check(None) is None
    with pytest.raises(ValueError, match="whole number"):
        values.whole(1).check(None)
