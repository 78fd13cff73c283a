"""The scanner of JSON in pieces, beside Python's own parser."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.engine.speech.json_text import JsonScanner
from tests.work import LINEAR, growth

PIECES = [
    *(
        '{"a"',
        ":",
        ",",
        "{",
        "}",
        "[",
        "]",
        '"',
        '"b"',
        "\\",
        "\\n",
        "\\u00e9",
        "\\u12",
        "\\x",
        " ",
        "\n",
    ),
    *(
        "1",
        "0",
        "-",
        ".5",
        "e",
        "E+1",
        "12",
        "01",
        "true",
        "tru",
        "false",
        "null",
        "NaN",
        "\t",
        "é",
        "x",
    ),
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def scanned(*parts: str) -> tuple[str, str, str]:
    """What became of a text: done, failed or open; what was taken, and what is left."""
    scanner = JsonScanner()
    taken, parts_left = "", list(parts)
    while parts_left and not scanner.done and not scanner.failed:
        part = parts_left.pop(0)
        at = scanner.scan(part, 0)
        taken += scanner.taken()
        parts_left[:0] = [part[at:]] if at < len(part) else []
    state = "done" if scanner.done else "failed" if scanner.failed else "open"
    return state, taken, "".join(parts_left)


@given(texts, st.integers(0, 40))
def test_it_takes_what_python_takes_and_nothing_else(text: str, cut: int) -> None:
    state, taken, left = scanned(text)
    assert scanned(text[:cut], text[cut:]) == (state, taken, left)
    if state == "done":
        json.loads(taken)
        return
    for end in range(len(text) + 1):  # no beginning of it is a value, but a number may go on
        try:
            value = json.loads(text[:end], strict=False)
        except ValueError:
            continue
        assert isinstance(value, int | float)
        assert not isinstance(value, bool)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
    st.sampled_from([None, 1]),
    st.text(" \n,}]", max_size=3),
)  # fmt: skip
def test_a_value_ends_where_it_ends(value: object, indent: int | None, behind: str) -> None:
    written = json.dumps(value, indent=indent)
    state, taken, left = scanned(f"{written} {behind}")
    assert state == "done"
    assert taken == written
    assert left == f" {behind}"


@pytest.mark.parametrize("unit", ["[", '{"a":', '"\\n', "1", "[1,", '"\n', "[[]", "-", " ", '["",'])
@pytest.mark.slow
def test_four_times_the_text_is_about_four_times_the_work(unit: str) -> None:
    def scan(text: str) -> None:
        scanner = JsonScanner()
        for at in range(0, len(text), 7):
            scanner.scan(text[at : at + 7], 0)
            scanner.taken()
            if scanner.done or scanner.failed:
                return

    assert growth(scan, unit * 3_000, unit * 12_000) < LINEAR
