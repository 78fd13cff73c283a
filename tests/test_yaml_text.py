from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.config import parse_yaml
from hotswap.errors import InvalidRequest
from tests.work import LINEAR, growth


def test_a_plain_mapping_is_read() -> None:
    text = "model: a\nmax_model_len: 4096\nmodels:\n  b: {aliases: [c, d], kept: true}\n"
    assert parse_yaml(text, "f") == {
        "model": "a",
        "max_model_len": 4096,
        "models": {"b": {"aliases": ["c", "d"], "kept": True}},
    }


@pytest.mark.parametrize("text", ["", b"", "# nothing\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping(text: str | bytes) -> None:
    assert parse_yaml(text, "f") == {}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a\n- b\n", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("a: &x 1\nb: *x\n", "anchors are not allowed"),
        ("a: *x\n", "aliases are not allowed"),
        ("<<: {a: 1}\n", "merge keys are not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", "tags are not allowed"),
        ("a: !!str 1\n", "tags are not allowed"),
        ("a: 1\na: 2\n", "'a' is there twice"),
        ("a:\n  b: 1\n  b: 2\n", "'b' is there twice"),
        ("1: a\n", "keys must be text"),
        ("? [a]\n: b\n", "keys must be text"),
        ("a: .nan\n", "is not a number"),
        ("a: [-.inf]\n", "is not a number"),
        ("a: {" * 21, "nested deeper than 20"),
        ("[" * 100_000, "nested deeper than 20"),
        ("a: [1\n", "cannot be read"),
        ("a: 2024-13-45\n", "cannot be read"),
        ("a: '" + "x" * 262_144 + "'", "longer than 256 kB"),
        (b"a: \xff\xfe\n", "cannot be read"),
        ("a: \x00\n", "cannot be read"),
        ("--- {}\n--- {}\n", "cannot be read"),
        ("a: 0x" + "f" * 5000, "too many digits"),
        ("a: 0b" + "1" * 5000, "too many digits"),
        ("a: " + "9" * 5000, "too many digits"),
        ("a: 1" + ":59" * 500, "too many digits"),
        ("a: 1" + ":59" * 500 + ".5", "too many digits"),
    ],
)
def test_what_only_an_attacker_or_an_accident_would_write_is_refused(
    text: str | bytes, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=complaint) as raised:
        parse_yaml(text, "the file")
    assert raised.value.message.startswith("the file ")
    assert "\n" not in raised.value.message


def test_the_complaint_names_the_line() -> None:
    with pytest.raises(InvalidRequest, match="line 2"):
        parse_yaml("a: 1\nb: *x\n", "f")


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_a_mapping_or_refused(text: str | bytes) -> None:
    try:
        value = parse_yaml(text, "f")
    except InvalidRequest:
        return
    assert all(isinstance(key, str) for key in value)


PIECES = [
    *("a", "b", "a: 1", "- ", "? ", ": ", "{", "}", "[", "]", ",", "|", ">", "'", '"', "\\", "#"),
    *(
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        " ",
        "&x",
        "*x",
        "!!str",
        "!",
        "%YAML 1.1\n",
        "---",
        "...",
        "<<:",
    ),
    *("1", "1e5", ".5", "1:30", "0x1f", "0b1", ".nan", "null", "yes", "2024-01-01", "=", "~", "é"),
    *("\u2028", "\x85", "\ufeff", "\U0001f525", "\x7f"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_what_looks_like_yaml_is_a_mapping_of_plain_data_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        value = parse_yaml(text, "f")
        json.dumps(value, default=str, allow_nan=False)  # dates are plain enough
        assert all(isinstance(key, str) for key in value)


@pytest.mark.parametrize(
    "made",
    [
        lambda n: "".join(f"k{i}: {i}\n" for i in range(n // 8)),
        lambda n: "a: [" + "1," * (n // 2) + "1]",
        lambda n: "a: {" + ",".join(f"k{i}: x" for i in range(n // 8)) + "}",
        lambda n: "a: '" + "x\n " * (n // 3) + "'",
        lambda n: 'a: "' + "\\x41" * (n // 4) + '"',
        lambda n: "a: |\n" + "  x\n" * (n // 4),
        lambda n: "a: " + "x " * (n // 2),
        lambda n: "# x\n" * (n // 4) + "a: 1",
        lambda n: "\n" * n + "a: 1",
        lambda n: "a: " + "? " * (n // 2),
        lambda n: "a: " + "9" * n,
        lambda n: "a: 1" + ":5" * (n // 2),
        lambda n: "a: " + "-" * n,
        lambda n: "a:" * (n // 2),
        lambda n: "&" * n,
        lambda n: "%" * n,
        lambda n: "a: '" + "'" * n,
    ],
)
@pytest.mark.slow
def test_four_times_the_text_is_about_four_times_the_work(made: Callable[[int], str]) -> None:
    def parse(text: str) -> None:
        try:
            parse_yaml(text, "f")
        except InvalidRequest:
            return

    assert growth(parse, made(1_000), made(4_000), tries=2) < LINEAR
