from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.engine.speech.families import FAMILIES, PLAIN, family_of, speech_of
from hotswap.engine.speech.tools import tools_of
from tests.engine.speech.hearing import TOOLS, Heard, call, family, hear, listener
from tests.work import LINEAR, growth

PARIS = '{"city": "Paris"}'
NASTY = json.dumps(
    {"city": 'a "}</tool_call>[/TOOL_CALLS]<｜tool▁call▁end｜>{[\\', "n": [{}, [1.5e-3]]}
)
ESCAPED = '{"city": "Z\\u00fcrich \\ud83d\\ude80 \\n", "now": true, "days": null}'
SPEECH: dict[str, Callable[[str, str], str]] = {
    "hermes": lambda n, a: f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>',
    "llama": lambda n, a: f'{{"name": "{n}", "parameters": {a}}}',
    "mistral": lambda n, a: f"[TOOL_CALLS]{n}[ARGS]{a}",
    "deepseek": lambda n, a: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{a}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>"
    ),
    "phi": lambda n, a: f'<|tool_call|>[{{"name": "{n}", "arguments": {a}}}]<|/tool_call|>',
    "json": lambda n, a: f'{{"name": "{n}", "arguments": {a}}}',
    "harmony": lambda n, a: (
        f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{a}<|call|>"
    ),
}
"""How each family calls a tool."""
AMONG_TEXT = [name for name in SPEECH if name != "harmony"]
"""Families whose calls stand in a text, after reasoning between marks."""
FORMS: list[tuple[str, str, Heard]] = [
    ("hermes", '<tool_call>{"arguments": {}, "name": "clock"}</tool_call>', call("clock", "{}")),
    ("hermes", '<tool_call>\n{"name": "clock"}\n</tool_call>', call("clock", "{}")),
    ("hermes", '<tool_call>{"name": "clock", "arguments": null}', call("clock", "{}")),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": 1}", "id": [1]}</tool_call>',
        call("weather", '{"city": 1}'),
    ),
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "clock"}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>\nDone.\n',
        [
            ("text", "Let me see.\n"),
            *call("clock", "{}"),
            *call("weather", PARIS),
            ("text", "Done.\n"),
        ],
    ),
    (
        "qwen-coder",
        'I look.\n<tool_call>\n<function=weather>\n<parameter=city>\nNew\n"York"\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n<parameter=now>\nTrue\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
        [
            ("text", "I look.\n"),
            *call("weather", '{"city": "New\\n\\"York\\"", "days": 3, "now": true}'),
            *call("clock", "{}"),
        ],
    ),
    (
        "qwen-coder",
        "<function=weather><parameter=days>three</parameter></function>",
        call("weather", '{"days": "three"}'),
    ),
    (
        "qwen-coder",
        "<function=weather>\n<parameter=city>\nRome\n</parameter>\nand then?",
        [*call("weather", '{"city": "Rome"}'), ("text", "and then?")],
    ),
    (
        "llama",
        f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {PARIS}}}; '
        '{"name": "clock", "parameters": {}}',
        [*call("weather", PARIS), *call("clock", "{}")],
    ),
    (
        "llama",
        f'I call.<|python_tag|>{{"name": "weather", "parameters": {PARIS}}}',
        [("text", "I call."), *call("weather", PARIS)],
    ),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}, {{"name": "clock"}}]',
        [*call("weather", PARIS), *call("clock", "{}")],
    ),
    (
        "mistral",
        f"Well.[TOOL_CALLS]weather_map[CALL_ID]abc123DEF[ARGS]{{}}[TOOL_CALLS]weather{PARIS}",
        [("text", "Well."), *call("weather_map", "{}"), *call("weather", PARIS)],
    ),
    (
        "deepseek",
        f"Ok.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{PARIS}\n"
        "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [("text", "Ok.\n"), *call("weather", PARIS), *call("clock", "{}")],
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [*call("clock", "{}"), *call("weather", PARIS)],
    ),
    (
        "phi",
        f'<|tool_call|>[{{"name": "weather", "arguments": {PARIS}}}, {{"name": "clock"}}]'
        "<|/tool_call|>",
        [*call("weather", PARIS), *call("clock", "{}")],
    ),
    ("phi", 'functools[{"name": "clock", "arguments": {}}]', call("clock", "{}")),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.weather_map <|constrain|>json<|message|>{}<|end|>"
        "<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{}<|call|>",
        [("text", "I look."), *call("weather_map", "{}"), *call("clock", "{}")],
    ),
    (
        "json",
        f'[{{"name": "weather", "arguments": {PARIS}}},\n{{"name": "clock", "arguments": {{}}}}]',
        [*call("weather", PARIS), *call("clock", "{}")],
    ),
]
MALFORMED = [
    ("hermes", '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>'),
    ("hermes", "<tool_call>\nclock()\n</tool_call>"),
    ("hermes", '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
    ("hermes", "<tool_call>{'name': 'clock'}</tool_call>"),
    ("hermes", '<tool_call>{"name": 1}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
    ("hermes", "a <tool_ca or <<tool_call< <tool_call"),
    ("qwen-coder", "<tool_call>\n<function=rm>\n</function>\n</tool_call>"),
    ("qwen-coder", "<function=two words><function=" + "x" * 400 + ">"),
    ("llama", '{"city": "Paris"} is what you asked for.'),
    ("llama", '<|python_tag|>brave_search.call(query="x")'),
    ("llama", 'For example: {"name": "clock", "parameters": {}}'),
    ("llama", '{"name": "rm", "parameters": {}}'),
    ("mistral", "[TOOL_CALLS]rm[ARGS]{}"),
    ("mistral", "[TOOL_CALLS][1, 2]"),
    ("mistral", "[TOOL_CALLS]clock[ARGS]now"),
    ("deepseek", "<｜tool▁calls▁begin｜>clock()<｜tool▁calls▁end｜>"),
    ("deepseek", "<｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
    ("phi", "<|tool_call|>{}<|/tool_call|>"),
    ("phi", "functools[1]"),
    ("json", '[1, {"name": "clock"}]'),
    ("json", '{"name": "clock", "mood": "good"}'),
]
ALL = [(name, text) for name, text, _ in FORMS] + MALFORMED


@pytest.mark.parametrize(("name", "text", "expected"), FORMS)
def test_each_family_says_calls_in_its_way(name: str, text: str, expected: Heard) -> None:
    assert hear(name, text) == expected


@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize("arguments", [PARIS, NASTY, ESCAPED, "{}", '{"a":{"b":[{}]}}'])
def test_arguments_come_as_they_were_written(name: str, arguments: str) -> None:
    assert hear(name, SPEECH[name]("weather", arguments)) == call("weather", arguments)


@pytest.mark.parametrize(("name", "text"), MALFORMED)
def test_what_is_no_call_after_all_is_text(name: str, text: str) -> None:
    assert hear(name, text) == [("text", text)]


@pytest.mark.parametrize(("name", "text"), ALL)
def test_how_the_text_is_cut_into_pieces_changes_nothing(name: str, text: str) -> None:
    whole = hear(name, text)
    assert hear(name, *text) == whole
    for at in range(len(text)):
        assert hear(name, text[:at], text[at:]) == whole


@pytest.mark.parametrize(("name", "text"), ALL)
def test_an_answer_may_end_anywhere(name: str, text: str) -> None:
    """What is told up to there is the beginning of what the whole would have told, unless it is
    text that would have become a call."""
    whole = hear(name, text)
    for end in range(len(text)):
        heard = hear(name, *text[:end])
        for (kind, said), (whole_kind, whole_said) in zip(heard, whole, strict=False):
            if kind != whole_kind:
                assert kind == "text"
                assert said.strip() in text
                break
            if kind != "text":
                assert whole_said.startswith(said)


@pytest.mark.parametrize(("name", "text"), ALL)
def test_nothing_of_a_call_that_is_cut_is_text(name: str, text: str) -> None:
    """What is told up to there is the beginning of what the whole would have told."""
    whole = hear(name, text)
    for end in range(len(text)):
        heard = hear(name, *text[:end], cut=True)
        for (kind, said), (whole_kind, whole_said) in zip(heard, whole, strict=False):
            assert kind == whole_kind
            assert whole_said.startswith(said)
        assert len(heard) <= len(whole)


def test_a_call_that_is_cut_before_its_first_argument_is_not_one_without_any() -> None:
    assert hear("qwen-coder", "<function=weather>\n<para", cut=True) == call("weather", "{")


@pytest.mark.parametrize("name", ["llama", "json"])
@pytest.mark.parametrize(
    "text",
    [
        '{"id": 7, "type": "report", "arguments": {"for": "a thing',
        ' {"type": "object", ',
        '{"arguments": [{"a": 1}, ',
        '{"id": 7, "name"',
        '{"id": 7, "name": "Pe',
    ],
)
def test_an_answer_in_json_that_is_cut_is_text_where_no_tool_is_named(name: str, text: str) -> None:
    assert hear(name, *text, cut=True) == [("text", text)]
    assert hear(name, f"<think>Hm.</think>{text}", cut=True)[-1] == ("text", text.lstrip())
    assert hear(name, text, cut=True, demanded=True) == []


@pytest.mark.parametrize("name", ["llama", "json"])
@pytest.mark.parametrize(
    "text", ['{"na', '{"name": "clo', '{"id": 7, "name": "clock"', '{"id": 7, "name": "clock", "id']
)
def test_json_that_is_cut_is_no_text_where_it_begins_like_a_call(name: str, text: str) -> None:
    assert hear(name, *text, cut=True) == []
    if name == "llama":
        assert hear(name, f'<|python_tag|>{{"id": 7, {text[1:]}', cut=True) == []


def test_reasoning_that_is_cut_within_its_mark_does_not_show_it() -> None:
    assert hear(None, "<think>Hm.</thi", cut=True) == [("reasoning", "Hm.")]
    assert hear(None, "<thi", cut=True) == []


@pytest.mark.parametrize("name", [*AMONG_TEXT, "qwen-coder"])
def test_where_a_call_is_demanded_nothing_else_is_said(name: str) -> None:
    assert hear(name, " \n", demanded=True) == []
    assert hear(name, '<tool_call>{"na', demanded=True) == []
    assert hear(name, "<think>Hm.</think>x", demanded=True) == [("reasoning", "Hm.")]


@pytest.mark.parametrize("name", [*AMONG_TEXT, "qwen-coder"])
@given(data=st.data())
def test_nothing_is_lost_and_nothing_told_twice(name: str, data: st.DataObject) -> None:
    words = ["{", "}", '"', "name", '"name": "clock"', ":", ",", " ", "\n", "x", "\\", "[", "]"]
    words += [SPEECH["hermes"]("clock", "{}"), *family(name).markers, "<function=", "clock>"]
    words += ["<parameter=", "</parameter>", "functools[", "<think>", "</think>"]
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=25)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    heard = hear(name, *parts)
    assert heard == hear(name, text)
    rest = text
    for kind, said in heard:  # all that is told is there, in this order
        if kind in ("text", "reasoning"):
            found = rest.find(said)
            assert found >= 0
            rest = rest[found + len(said) :]
    if not any(kind == "call" for kind, _ in heard) and "<think>" not in text:
        assert heard == ([("text", text)] if text else [])


@pytest.mark.parametrize("name", SPEECH)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_json_object_can_be_arguments(name: str, value: Any) -> None:
    for ascii_only in (True, False):
        arguments = json.dumps({"value": value}, ensure_ascii=ascii_only)
        assert hear(name, *SPEECH[name]("clock", arguments)) == call("clock", arguments)


@pytest.mark.parametrize(
    "value",
    ["1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "[" * 5000, "[1e999]", '{"a": 1e999}'],
)
def test_a_value_that_json_cannot_hold_is_a_string(value: str) -> None:
    text = f"<function=weather>\n<parameter=days>\n{value}\n</parameter>\n</function>"
    [(_, name), (_, arguments)] = hear("qwen-coder", text)
    assert name == "weather"
    assert json.loads(arguments, parse_constant=pytest.fail) == {"days": value}


def test_arguments_are_told_while_they_come() -> None:
    ear = listener("hermes")
    ear.push('<tool_call>\n{"name": "weather", "arguments": {"ci')
    assert [(p.kind, p.text) for p in ear.take()] == call("weather", '{"ci')
    ear.push('ty": "Par')
    assert [(p.kind, p.text) for p in ear.take()] == [("arguments", 'ty": "Par')]


def test_line_breaks_in_strings_come_out_as_json_has_them() -> None:
    heard = hear("hermes", SPEECH["hermes"]("weather", '{"city":\n"a\nb\tc"}'))
    assert heard == call("weather", '{"city":\n"a\\u000ab\\u0009c"}')
    assert json.loads(heard[1][1]) == {"city": "a\nb\tc"}


def test_a_call_that_breaks_off_keeps_what_it_has_and_the_rest_is_text() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call>'
    assert hear("hermes", *text) == [
        *call("weather", '{"city": '),
        ("text", "Paris}}</tool_call>"),
    ]


def test_after_a_broken_call_others_are_heard() -> None:
    good = SPEECH["hermes"]("clock", "{}")
    assert hear("hermes", f"<tool_call>oops {good}") == [
        ("text", "<tool_call>oops "),
        *call("clock", "{}"),
    ]


@pytest.mark.parametrize("name", SPEECH)
def test_where_one_call_is_allowed_nothing_is_told_after_it(name: str) -> None:
    say = SPEECH[name]
    text = say("weather", PARIS) + "\n" + say("clock", "{}") + " and more"
    ear = listener(name, parallel=False)
    ear.push(text)
    assert ear.over
    assert hear(name, *text, parallel=False) == call("weather", PARIS)


HOSTILE = {
    "marker": "<tool_call>",
    "begun": '<tool_call>{"name": "clock", ',
    "brackets": '<tool_call>{"name": "clock", "arguments": {"a": ' + "[" * 50,
    "quotes": '<tool_call>{"name": "' + '\\"' * 20,
    "spaces": "<tool_call>" + " \n" * 20,
    "almost": "<tool_cal",
    "tags": "<function=<parameter=</parameter>",
    "lists": "[TOOL_CALLS][{[TOOL_CALLS]clock",
    "sharp": "<",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function",
    "phi": "functools[<|tool_call|>[",
    "think": "<think></think",
    "harmony": "<|channel|>analysis<|message|>",
    "headers": "<|end|><|start|>assistant<|channel|>commentary to=functions.",
    "channels": "<|channel|><|constrain|>",
    "text": "word ",
}


@pytest.mark.parametrize("name", [f.name for f in (*FAMILIES, PLAIN)])
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_work_grows_with_the_text_and_no_faster(name: str, kind: str) -> None:
    """Counted in characters that are looked at again: what a listener holds unread is short."""
    unit = HOSTILE[kind]
    for start in ("", "<think>", unit[: len(unit) // 2]):
        ear = listener(name)
        longest = 0
        for _ in range(120):
            for at in range(0, len(unit), 7):
                ear.push((start if at == 0 else "") + unit[at : at + 7])
                ear.take()
                longest = max(longest, len(ear._reader._text) - ear._reader._at)
        assert longest < 400


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.slow
def test_four_times_the_text_is_about_four_times_the_work(kind: str) -> None:
    def hear_all(text: str) -> None:
        for name in ("hermes", "qwen-coder", "mistral", "llama", "harmony"):
            hear(name, text)
            hear(name, *(text[at : at + 5] for at in range(0, len(text), 5)))

    unit = HOSTILE[kind]
    small, large = (unit * (length // len(unit)) for length in (3_000, 12_000))
    assert growth(hear_all, small, large, tries=2) < LINEAR


@pytest.mark.parametrize(
    ("template", "added", "name"),
    [
        ("{{ tools }}<tool_call>{{ '</tool_call>' }}", (), "hermes"),
        ("{{ tools }}<tool_call><function=x>", (), "qwen-coder"),
        ("{{ tools }}[TOOL_CALLS]", (), "mistral"),
        ("{{ tools }}", ("<|python_tag|>", "<|eot_id|>"), "llama"),
        ("{{ tools }}<｜tool▁calls▁begin｜>", ("<|python_tag|>",), "deepseek"),
        ("{{ tools }}", ("<|tool_call|>",), "phi"),
        ("{{ tools }}", ("<tool_call>", "</tool_call>"), "hermes"),
        ("{{ tools }}<|start|>assistant<|channel|>final<|message|>", (), "harmony"),
        ("{{ tools }}", ("<|start|>", "<|channel|>", "<|message|>"), "harmony"),
        ("{{ tools }}<tool_call>", ("<|channel|>",), "hermes"),
        ("{{ tools }}", (), "json"),
    ],
)
def test_the_template_tells_the_family_or_else_the_vocabulary(
    template: str, added: tuple[str, ...], name: str
) -> None:
    assert family_of(template, set(added)).name == name


def test_a_template_without_tools_has_no_family() -> None:
    speech = speech_of("{{ messages }}<tool_call>", {"messages"}, {}, set())
    assert speech.summary() == {"tools": False, "thinking": False, "family": None}


def test_only_markers_that_would_leave_no_text_are_asked_for() -> None:
    added = {"[TOOL_CALLS]": 5, "[ARGS]": 6, "[INST]": 7, "[THINK]": 8}
    speech = speech_of("{{ tools }}[TOOL_CALLS]", {"tools"}, added, {5, 7, 8})
    assert speech.special == {"[TOOL_CALLS]": 5, "[THINK]": 8}
    assert speech.ids == {"[TOOL_CALLS]": 5, "[ARGS]": 6, "[THINK]": 8}
    assert speech.thinking is False, "its template says nothing of it"


def test_tools_are_read_as_they_are_sent() -> None:
    assert [tool.name for tool in TOOLS] == ["weather", "weather_map", "clock"]
    assert TOOLS["weather"].types_of("days") == {"integer"}
    assert TOOLS["weather"].types_of("mood") == set()


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"enum": [1, "a", None]}, {"integer", "string", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "number"}, {"$ref": "#/$defs/more"}]}, {"number", "array"}),
        ({"$ref": "#/$defs/round"}, set()),
        ({"$ref": "#/nowhere/at/all"}, set()),
        ({}, set()),
        (True, set()),
    ],
)
def test_a_parameters_types_are_found_in_its_schema(schema: Any, types: set[str]) -> None:
    defs = {"more": {"type": "array"}, "round": {"$ref": "#/$defs/round"}}
    function = {"name": "f", "parameters": {"properties": {"p": schema}, "$defs": defs}}
    assert tools_of([{"function": function}])["f"].types_of("p") == types


@pytest.mark.parametrize(
    "parameters", [None, {}, {"type": "object"}, {"type": "object", "properties": {}}]
)
def test_a_tool_that_names_no_parameters_has_none(parameters: Any) -> None:
    function = {"name": "f", "parameters": parameters}
    assert tools_of([{"function": function}])["f"].parameters == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"properties": {"p": {}}},
        {"$ref": "#/$defs/p", "$defs": {"p": {"type": "object"}}},
        {"type": ["object", "null"]},
    ],
)
def test_a_tools_parameters_are_what_it_names(parameters: Any) -> None:
    function = {"name": "f", "parameters": parameters}
    assert tools_of([{"function": function}])["f"].parameters == parameters
