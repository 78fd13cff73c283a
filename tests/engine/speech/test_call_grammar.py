from __future__ import annotations

import json
import random
from typing import Any

import pytest

from hotswap.contracts.requests import Guide
from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.families import Family, Speech, family_of, speech_of
from hotswap.engine.speech.listener import Hearing, Listener
from hotswap.engine.speech.tools import Tools, tools_of
from tests.engine.speech.hearing import joined

pytestmark = pytest.mark.torch

TOOLS: Tools = tools_of(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "maxLength": 6},
                        "days": {"enum": [1, 2, 30]},
                        "unit": {"$ref": "#/$defs/unit"},
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                    "$defs": {"unit": {"type": "string", "enum": ["C", 'F"']}},
                },
            },
        },
        {
            "type": "function",
            "function": {
                "name": "clock",
                "parameters": {"type": "object", "additionalProperties": False},
            },
        },
    ]
)
TEMPLATES = {
    "hermes": "{{ tools }}<tool_call></tool_call>",
    "qwen-coder": "{{ tools }}<tool_call><function=",
    "llama": "{{ tools }}<|python_tag|>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "mistral, newer": "{{ tools }}[TOOL_CALLS][ARGS]",
    "deepseek": "{{ tools }}<｜tool▁calls▁begin｜>",
    "deepseek, older": "{{ tools }}<｜tool▁calls▁begin｜>```json",
    "phi": "{{ tools }}<|tool_call|>",
    "json": "{{ tools }}",
    "harmony": "{{ tools }}<|channel|>",
}
"""What is told by a template, in as few words as it takes."""


class Model:
    """A tokenizer with a family's markers, and what walks through a grammar with it."""

    def __init__(self, template: str, *, as_tokens: str) -> None:
        from tokenizers import AddedToken

        from hotswap.engine.decoding import Vocabulary
        from hotswap.engine.guide import Guides
        from tests.engine.checkpoints import tokenizer

        fast = tokenizer()
        family = family_of(template, set())
        if as_tokens != "text":
            special = as_tokens == "special"
            fast.add_tokens(
                [AddedToken(marker, special=special, normalized=False) for marker in family.markers]
            )
        self.vocabulary = Vocabulary(fast)
        self.speech: Speech = speech_of(
            template, {"tools"}, self.vocabulary.added, self.vocabulary.special
        )
        self.end = fast.eos_token_id
        self.way_out: list[int] = fast.encode("\n</parameter>", add_special_tokens=False)
        self.guides = Guides(fast, self.vocabulary, len(fast), frozenset({self.end}))

    @property
    def family(self) -> Family:
        assert self.speech.family is not None
        return self.speech.family

    def guide(self, tools: Tools, *, several: bool) -> Any:
        grammar = CallGrammar(self.speech.ids, several=several)
        source = grammar.source(self.family.write(grammar, tools))
        return self.guides.compile(Guide("grammar", source, "tool_choice"))

    def walk(self, guide: Any, dice: random.Random) -> str:
        """An answer of tokens drawn from all that may follow, to its end."""
        matcher, decoder = guide.matcher(), self.vocabulary.decoder(self.shown)
        text, planned = "", list[int]()
        for _ in range(2000):
            mask = matcher.allowed(frozenset({self.end}), may_end=True)
            tokens = [t for t in range(8 * len(mask)) if mask[t >> 3] >> (t & 7) & 1]
            if matcher.complete or (self.end in tokens and dice.random() < 0.5):
                break
            if not planned and dice.random() < 0.1:  # free text would go on and on
                planned = self.way_out.copy()
            token = planned.pop(0) if planned and planned[0] in tokens else None
            if token is None:
                planned.clear()
                token = dice.choice([t for t in tokens if t != self.end])
            text += decoder.push(token)
            matcher.advance(token)
            assert not matcher.failed
        else:
            pytest.fail("the answer has no end")
        return text + decoder.finish()

    def hear(self, text: str, tools: Tools, *, several: bool) -> Any:
        ear = Listener(Hearing(read_calls=self.family.read, tools=tools, parallel=several))
        ear.push(text)
        ear.finish()
        return joined(ear.take())

    @property
    def shown(self) -> frozenset[int]:
        return frozenset(self.speech.special.values())


def check(tool: str, arguments: str) -> None:
    given = json.loads(arguments)
    if tool == "clock":
        assert given == {}
        return
    assert tool == "weather"
    assert isinstance(given.pop("city"), str)
    assert given.pop("days", 1) in (1, 2, 30)
    assert given.pop("unit", "C") in ("C", 'F"')
    assert not given


@pytest.mark.parametrize("as_tokens", ["text", "added", "special"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_all_that_a_grammar_lets_through_is_heard_as_calls(template: str, as_tokens: str) -> None:
    model = Model(template, as_tokens=as_tokens)
    dice = random.Random(template)
    for several, tools in ((True, TOOLS), (False, TOOLS), (False, TOOLS.only("clock"))):
        guide = model.guide(tools, several=several)
        for _ in range(6):
            text = model.walk(guide, dice)
            heard = model.hear(text, tools, several=several)
            assert heard, text
            assert {kind for kind, _ in heard} == {"call", "arguments"}, text
            for (_, tool), (_, arguments) in zip(heard[::2], heard[1::2], strict=True):
                check(tool, arguments)
                assert tool in tools.names
            if not several:
                assert len(heard) == 2


@pytest.mark.parametrize("as_tokens", ["text", "special"])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "harmony"])
def test_where_a_schema_and_calls_may_both_be_it_is_one_of_them(name: str, as_tokens: str) -> None:
    from tests.engine.checkpoints import tokenizer

    model = Model(TEMPLATES[name], as_tokens=as_tokens)
    if name != "qwen-coder":  # there, texts are in quotes
        model.way_out = tokenizer().encode('"', add_special_tokens=False)
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    grammar = CallGrammar(model.speech.ids, several=False, among_json=True)
    calls = grammar.source(model.family.write(grammar, TOOLS.loose()))
    json_guide = Guide("json_schema", json.dumps(schema), "response_format")
    guide = model.guides.compile(json_guide, None, calls)
    dice, seen = random.Random(name), set[str]()
    for _ in range(40):
        text = model.walk(guide, dice)
        heard = model.hear(text, TOOLS, several=False)
        if heard[0][0] == "text":
            assert json.loads(text)["n"] in (1, 2)
        else:
            (_, tool), (_, arguments) = heard
            assert json.loads(arguments) == {} or tool == "weather"
        seen.add(heard[0][0])
    assert seen == {"text", "call"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "hermes",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n'
            '</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        ),
        (
            "qwen-coder",
            "<tool_call>\n<function=weather>\n<parameter=city>\na <b>\n\n</parameter>\n"
            "<parameter=days>\n30\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            "llama",
            '{"name": "weather", "parameters": {"city": "Rome"}}; '
            '{"name": "clock", "parameters": {}}',
        ),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "clock", "arguments": {}}, '
            '{"name": "weather", "arguments": {"city": ""}}]',
        ),
        ("mistral, newer", '[TOOL_CALLS]clock[ARGS]{}[TOOL_CALLS]weather[ARGS]{"city": "x"}'),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
            "<｜tool▁calls▁end｜>",
        ),
        (
            "deepseek, older",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        ("phi", '<|tool_call|>[{"name": "clock", "arguments": {}}]<|/tool_call|>'),
        ("json", '{"name": "clock", "arguments": {}}'),
        ("harmony", "<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{}"),
    ],
)
def test_a_grammar_lets_through_what_the_family_says(template: str, text: str) -> None:
    from tests.engine.checkpoints import tokenizer

    model = Model(TEMPLATES[template], as_tokens="text")
    matcher = model.guide(TOOLS, several=True).matcher()
    for token in tokenizer().encode(text, add_special_tokens=False):
        mask = matcher.allowed(frozenset(), may_end=False)
        assert mask[token >> 3] >> (token & 7) & 1, f"{token} in {text}"
        matcher.advance(token)
    assert matcher.accepting
