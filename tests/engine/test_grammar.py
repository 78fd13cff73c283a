"""Guides as grammars: what is refused before anything is compiled."""

from __future__ import annotations

import json

import pytest

from hotswap.contracts.requests import Guide
from hotswap.engine.grammar import Preamble, grammar_of
from hotswap.errors import InvalidRequest

MARKERS = {"<think>": 7, "</think>": 8}


def parts(kind: str, source: str, preamble: Preamble | None = None) -> list[dict[str, object]]:
    guide = Guide(kind, source, "guide")  # type: ignore[arg-type]
    found: list[dict[str, object]] = json.loads(grammar_of(guide, preamble, MARKERS))["grammars"]
    return found


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "((((a{100}){100}){100}){100})", "more than 10000 characters"),
        ("regex", "a" * 20_000, "larger than 16384 bytes"),
        ("regex", "\ud800", "half a character"),
        ("json_schema", '{"type":', "not JSON"),
        ("json_schema", "[" * 100_000, "nested too deeply"),
        ("json_schema", "[1]", "not an object"),
        ("json_schema", "false", "not an object"),
        ("json_schema", '{"minimum": 1e999}', "number that JSON cannot have"),
        ("json_schema", '{"title": "' + "a" * 140_000 + '"}', "larger than 131072 bytes"),
        ("json_schema", '{"items": {"pattern": "(a{200}){200}"}}', "more than 10000 characters"),
        ("json_schema", '{"patternProperties": {"(a{200}){200}": {}}}', "more than 10000"),
        ("choice", "[]", "list of texts"),
        ("choice", '{"a": 1}', "list of texts"),
        ("choice", '["a", 1]', "list of texts"),
        ("choice", '["\\ud800"]', "half a character"),
        ("grammar", "\n".join(f'r{i}: "a"' for i in range(600)), "more than 500 rules"),
        ("grammar", 'start: "/" /(a{200}){200}/', "more than 10000 characters"),
        ("grammar", 'start: x{1000000}\nx: "a"', "repeats something more than 10000 times"),
        ("grammar", 'start: (("a" | "b"){1000}){1000}', "repeats something more than 10000 times"),
        ("grammar", "start: X\nX: Y{0,200}\nY: /a{90}/", "repeats something more than 10000 times"),
        ("grammar", 'start: %json {"minItems": 1000000}', "minItems is more than 250000"),
        ("grammar", 'start: %json {"pattern": "(a{200}){200}"}', "more than 10000 characters"),
        ("grammar", "start: %json " + '{"items":' * 100_000, "larger than 65536 bytes"),
        ("grammar", "start: %json " + '{"a":' * 12_000, "nested too deeply"),
        ("json_schema", '{"items": {"maxLength": 1000000}}', "maxLength is more than 250000"),
        ("json_schema", '{"minProperties": 1e6}', "minProperties is more than 250000"),
    ],
)
def test_what_is_too_much_or_no_guide_is_refused_by_name(
    kind: str, source: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        parts(kind, source)
    assert caught.value.param == "guide"


def test_a_schema_cannot_choose_how_it_is_enforced() -> None:
    [_, part] = parts("json_schema", '{"type": "object", "x-guidance": {"lenient": true}}')
    schema = part["json_schema"]
    assert isinstance(schema, dict)
    assert schema["x-guidance"]["lenient"] is False
    assert schema["x-guidance"]["whitespace_flexible"] is False


def test_a_marker_that_is_a_token_is_asked_for_by_its_id_and_another_is_spelled() -> None:
    [first, _] = parts("regex", "a", Preamble("</think>", "<think>"))
    assert "thought: TEXT <[8]>" in str(first["lark_grammar"])
    assert "(<[7]> thought BREAK)?" in str(first["lark_grammar"])
    [first, _] = parts("regex", "a", Preamble("[/T]"))
    assert r"thought[lazy]: /(.|\n)*\x{5b}\x{2f}T\x{5d}/" in str(first["lark_grammar"])


@pytest.mark.parametrize(
    ("source", "schema"),
    [
        ('start: %json {"type": "object"}', {"type": "object"}),
        ("start: %json { }", {}),
        ('start: %json {"x-guidance": {"lenient": true}}', {}),
        (
            'start: %json {"properties": {"minLength": {"const": 1}}}',
            {"properties": {"minLength": {"const": 1}}},
        ),
        ('start: "%json {" // %json {', None),
    ],
)
def test_a_schema_within_a_grammar_is_enforced_as_one_alone(
    source: str, schema: dict[str, object] | None
) -> None:
    [_, part] = parts("grammar", source)
    text = str(part["lark_grammar"])
    if schema is None:
        assert text == source
        return
    found = json.loads(text.removeprefix("start: %json "))
    assert found.pop("x-guidance")["whitespace_flexible"] is False
    assert found == schema


def test_words_that_ask_for_nothing_are_left_out() -> None:
    """The library refuses some of them."""
    schema = {
        "uniqueItems": False,
        "properties": {"a": {"items": {"uniqueItems": False}}, "uniqueItems": {"type": "string"}},
        "anyOf": [{"uniqueItems": False, "type": "object"}, {"uniqueItems": True}],
    }
    [_, part] = parts("json_schema", json.dumps(schema))
    found = part["json_schema"]
    assert isinstance(found, dict)
    del found["x-guidance"]
    assert found == {
        "properties": {"a": {"items": {}}, "uniqueItems": {"type": "string"}},
        "anyOf": [{"type": "object"}, {"uniqueItems": True}],
    }
