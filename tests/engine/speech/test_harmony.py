"""Answers in channels, as gpt-oss gives them."""

from __future__ import annotations

import re
from collections.abc import Set
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.contracts.answers import ReasoningDelta, TextDelta
from hotswap.engine.speech import harmony
from hotswap.engine.speech.call_grammar import CallGrammar
from hotswap.engine.speech.families import speech_of
from hotswap.engine.speech.harmony import GUARD, MARKERS, Begun, begun_by
from hotswap.engine.speech.tools import Tools
from tests.engine.speech.hearing import Heard, call, hear, listener
from tests.engine.test_spoken import Letters, say, spoken, summed

PARIS = '{"city": "Paris"}'
AGAIN = "<|end|><|start|>assistant"
HM = f"<|channel|>analysis<|message|>Hm.{AGAIN}"
YES = "<|channel|>final<|message|>Yes."
TO_WEATHER = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
THOUGHT = ("reasoning", "Hm.")
ANSWERS: list[tuple[str, Heard]] = [
    # Reasoning and text
    (f"{HM}{YES}", [THOUGHT, ("text", "Yes.")]),
    (f"{HM}{YES}<|return|>", [THOUGHT, ("text", "Yes.")]),
    (f"{HM}<|channel|>final <|constrain|>json<|message|>[1]", [THOUGHT, ("text", "[1]")]),
    (YES, [("text", "Yes.")]),
    ("<|channel|>final<|message|>\n Yes.\n", [("text", "\n Yes.\n")]),
    (f"{HM}<|channel|>final<|message|>\n\nYes.", [THOUGHT, ("text", "Yes.")]),
    (
        f"{HM}<|channel|>analysis<|message|> So.{AGAIN}{YES}",
        [("reasoning", "Hm.\n\nSo."), ("text", "Yes.")],
    ),
    (f"<|channel|>analysis<|message|>\n{AGAIN}{YES}", [("text", "Yes.")]),
    (HM, [THOUGHT]),
    ("<|channel|>analysis<|message|>Hm. \n", [("reasoning", "Hm. \n")]),
    (
        f"<|channel|>commentary<|message|>I look.{AGAIN}{YES}",
        [("text", "I look.\n\nYes.")],
    ),
    (
        f"<|channel|>commentary<|message|>I look.{AGAIN}{HM}{YES}",
        [("text", "I look."), THOUGHT, ("text", "\n\nYes.")],
    ),
    # Calls
    (f"{HM}{TO_WEATHER}{PARIS}<|call|>", [THOUGHT, *call("weather", PARIS)]),
    (
        f"{HM} to=functions.weather<|channel|>commentary json<|message|>{PARIS}",
        [THOUGHT, *call("weather", PARIS)],
    ),
    (
        f" to=functions.weather<|channel|>commentary <|constrain|>json<|message|>\n{PARIS}\n",
        call("weather", PARIS),
    ),
    (f"to=weather<|channel|>commentary<|message|>{PARIS}", call("weather", PARIS)),
    (f"<|channel|>analysis to=functions.weather code<|message|>{PARIS}", call("weather", PARIS)),
    (
        f"<|channel|>commentary<|constrain|>json to=functions.weather<|message|>{PARIS}",
        call("weather", PARIS),
    ),
    (f"<|channel|>commentaryto=functions.weather<|message|>{PARIS}", call("weather", PARIS)),
    (f"<|constrain|>json to=functions.weather<|message|>{PARIS}", call("weather", PARIS)),
    (
        f"<|channel|>commentary<|message|>I look.{AGAIN}{TO_WEATHER}{PARIS}{AGAIN}"
        "<|channel|>commentary to=functions.clock<|message|>{}<|call|>",
        [("text", "I look."), *call("weather", PARIS), *call("clock", "{}")],
    ),
    (
        f"{TO_WEATHER}{PARIS}{AGAIN}{YES}",
        [*call("weather", PARIS), ("text", "Yes.")],
    ),
    ("<|channel|>commentary to=functions.clock<|message|><|end|>", call("clock", "{}")),
    ("<|channel|>commentary to=functions.clock<|message|> ", call("clock", "{}")),
    ("<|channel|>commentary to=functions.clock", []),
    ("<|channel|>commentary to=functions.clock <|constrain|>json<|call|>", []),
    ("<|channel|>commentary to=functions.cl", []),
    (
        '<|channel|>commentary to=functions.weather<|message|>{"city": "<|end|>"}<|end|>',
        call("weather", '{"city": "<|end|>"}'),
    ),
    (
        "<|channel|>commentary to=functions.clock to=functions.clock<|message|>{}<|call|>",
        call("clock", "{}"),
    ),
    # Calls of what is no tool of the request
    ("<|channel|>commentary to=functions.rm<|message|>{}<|call|>", [("text", "{}")]),
    ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", [("reasoning", "print(1)")]),
    ("<|channel|>commentary to=browser.search<|message|>{}", [("text", "{}")]),
    ("<|channel|>commentary to=functions.clock<|message|>now!<|call|>", [("text", "now!")]),
    (
        f'<|channel|>commentary to=functions.weather<|message|>{{"city": Rome}}{AGAIN}{YES}',
        [*call("weather", '{"city": '), ("text", "Rome}\n\nYes.")],
    ),
    # No channel, or no header that was ever taught
    ("Yes.", [("text", "Yes.")]),
    (" to be, or not", [("text", " to be, or not")]),
    ("<|message|>Yes.", [("text", "Yes.")]),
    ("<|channel|>musings<|message|>Yes.", [("text", "Yes.")]),
    ("<|channel|>final Yes, " + "yes, " * 60 + "yes.", [("text", "Yes, " + "yes, " * 60 + "yes.")]),
    ("<|channel|>finalYes.", [("text", "Yes.")]),
    ("<|channel|>analysis Hm.", [THOUGHT]),
    (f"<|channel|>analysis<|message|>Hm.<|end|>{YES}", [THOUGHT, ("text", "Yes.")]),
    (f"<|channel|>analysis<|message|>Hm.{YES}", [THOUGHT, ("text", "Yes.")]),
    ("<|channel|>analysis<|message|>Hm.<|end|>Yes.", [THOUGHT, ("text", "Yes.")]),
    (f"{HM}Yes.", [THOUGHT, ("text", "Yes.")]),
    (
        "<|channel|>analysis<|message|>Hm.<|start|><|channel|>final<|message|>Yes.",
        [THOUGHT, ("text", "Yes.")],
    ),
    (f"<|channel|><|channel|>final<|message|><|message|>Yes.{AGAIN}{AGAIN}", [("text", "Yes.")]),
    (f"<|channel|>final{AGAIN}{YES}", [("text", "Yes.")]),
    ("<|channel|>" * 200, []),
    ("<|end|><|return|><|call|>", []),
    ("", []),
    # Another role's message is made up, and so is what follows it
    (f"{YES}<|end|><|start|>user<|message|>And then?{AGAIN}{YES}", [("text", "Yes.")]),
    (
        f"{TO_WEATHER}{PARIS}<|call|><|start|>functions.weather to=assistant<|channel|>commentary"
        "<|message|>1",
        call("weather", PARIS),
    ),
]
TOKENS = re.compile("|".join(map(re.escape, MARKERS)) + r"|[a-z]+|.", re.DOTALL)


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_messages_are_told_by_their_channel_and_recipient(text: str, expected: Heard) -> None:
    assert hear("harmony", text) == expected


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_how_an_answer_is_cut_into_pieces_changes_nothing(text: str, expected: Heard) -> None:
    assert hear("harmony", *text) == expected
    assert hear("harmony", *TOKENS.findall(text)) == expected
    for at in range(len(text)):
        assert hear("harmony", text[:at], text[at:]) == expected


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_what_is_told_of_a_cut_answer_is_the_beginning_of_the_whole(
    text: str, expected: Heard
) -> None:
    """Cut between tokens, and a mark is one of them."""
    tokens = TOKENS.findall(text)
    for end in range(len(tokens)):
        heard = hear("harmony", *tokens[:end], cut=True)
        assert len(heard) <= len(expected)
        for i, ((kind, said), (whole_kind, whole_said)) in enumerate(
            zip(heard, expected, strict=False)
        ):
            if not said.strip():
                continue
            assert kind == whole_kind
            rest = whole_said.removeprefix(said.rstrip() if i == len(heard) - 1 else said)
            assert rest != whole_said


GUARDED = tuple(GUARD + marker for marker in MARKERS)


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_marks_that_are_tokens_are_told_from_what_is_only_spelled_like_them(
    text: str, expected: Heard
) -> None:
    """Where a text may hold one, another is put, spelled."""
    for marker in MARKERS:
        text = text.replace(marker, GUARD + marker)
    spelled = "<|end|><|start|>user<|message|>"
    for word in ("Yes.", "Hm."):
        text = text.replace(word, word + spelled)
        expected = [(kind, said.replace(word, word + spelled)) for kind, said in expected]
    read = partial(harmony.read, guard=GUARD)
    expected = [(kind, said.replace('<|end|>"', f'{GUARD}<|end|>"')) for kind, said in expected]
    assert hear("harmony", text, read_calls=read, marked_off=GUARDED) == expected
    assert hear("harmony", *text, read_calls=read, marked_off=GUARDED) == expected


def test_without_tools_a_call_is_what_its_channel_says() -> None:
    assert hear("harmony", f"{HM}{TO_WEATHER}{PARIS}", tools=Tools()) == [THOUGHT, ("text", PARIS)]


def test_an_answer_that_plays_another_role_is_over() -> None:
    ear = listener("harmony")
    ear.push(f"{YES}{AGAIN}")
    assert not ear.over
    ear.push("<|end|><|start|>user<|message|>")
    assert ear.over


def test_an_answer_is_told_while_it_comes() -> None:
    ear = listener("harmony")
    told = []
    for token in TOKENS.findall(f"{HM}{TO_WEATHER}{PARIS}"):
        ear.push(token)
        told += [(piece.kind, piece.text) for piece in ear.take()]
    assert told[:2] == [("reasoning", "H"), ("reasoning", "m")]
    assert told[3:5] == [("call", "weather"), ("arguments", "{")]
    assert len(told) > 8


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("<|start|>user<|message|>Hi<|end|><|start|>assistant", Begun("assistant")),
        (
            "<|start|>assistant<|channel|>final<|message|>It is ",
            Begun("assistant<|channel|>final", True),
        ),
        ("<|start|>user<|message|>Hi<|end|>", Begun(None)),
        ("<|start|>assistant<|channel|>", Begun("assistant<|channel|>")),
        ("no messages at all", Begun(None)),
    ],
)
def test_the_end_of_the_prompt_says_what_is_begun(prompt: str, begun: Begun) -> None:
    assert begun_by(prompt) == begun


@pytest.mark.parametrize(
    ("begun", "text", "expected"),
    [
        (Begun("assistant<|channel|>final", in_body=True), "so.", [("text", "so.")]),
        (
            Begun("assistant<|channel|>analysis", in_body=True),
            f"so.{AGAIN}{YES}",
            [("reasoning", "so."), ("text", "Yes.")],
        ),
        (Begun("assistant<|channel|>"), "analysis<|message|>Hm.", [THOUGHT]),
        (
            Begun("assistant<|channel|>commentary to=functions.clock", in_body=True),
            "{}",
            call("clock", "{}"),
        ),
        (Begun(None), f"<|start|>assistant{HM}{YES}", [THOUGHT, ("text", "Yes.")]),
        (Begun(None), "Yes.", [("text", "Yes.")]),
    ],
)
def test_an_answer_goes_on_with_what_is_begun(begun: Begun, text: str, expected: Heard) -> None:
    read = partial(harmony.read, begun=begun)
    assert hear("harmony", text, read_calls=read) == expected
    assert hear("harmony", *text, read_calls=read) == expected


def test_what_is_said_beside_a_demanded_call_is_not_told() -> None:
    text = f"{HM}<|channel|>commentary<|message|>I look.{AGAIN}{TO_WEATHER}{PARIS}"
    assert hear("harmony", text, demanded=True) == [THOUGHT, *call("weather", PARIS)]


@given(data=st.data())
def test_whatever_comes_no_mark_is_told_nor_does_it_matter_how_it_comes(
    data: st.DataObject,
) -> None:
    words = [
        *MARKERS,
        "assistant",
        "user",
        "analysis",
        "final",
        "commentary",
        " to=functions.clock",
    ]
    words += ["{", "}", '{"a": 1}', " ", "\n", "json", "x", "to=", "<", "functions."]
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=30)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    heard = hear("harmony", *parts)
    assert heard == hear("harmony", text)
    hear("harmony", *parts, cut=True)
    assert not any(marker in said for _, said in heard for marker in MARKERS)


class Marked(Letters):
    """A vocabulary of letters, in which each mark is one token too."""

    def decoder(self, shown: Set[int] = frozenset(), guard: str = "") -> Any:
        return self

    def push(self, token: int) -> str:
        return self.raw(token).decode()

    def raw(self, token: int) -> bytes:
        return (MARKERS[token - 0xE000] if token >= 0xE000 else chr(token)).encode()


def with_tokens(text: str) -> str:
    for number, marker in enumerate(MARKERS):
        text = text.replace(marker, chr(0xE000 + number))
    return text


def spoken_of(*stop: str) -> Any:
    return spoken(
        *stop, vocabulary=Marked(), read_calls=harmony.read, marks=None, marked_off=MARKERS
    )


@pytest.mark.parametrize(
    "stop", ["<", "|", "end", "assistant", "channel", "final", ">", "commentary"]
)
def test_no_stop_string_is_in_marks_and_headers(stop: str) -> None:
    text = spoken_of(stop)
    letters = f"{HM}<|channel|>commentary<|message|>I look.{AGAIN}{YES}<|return|>"
    assert summed(say(text, with_tokens(letters))) == ("Hm.", "I look.\n\nYes.", "")
    text = spoken_of(stop)
    assert summed(say(text, with_tokens(f"{HM}{YES}{stop}!"))) == ("Hm.", "Yes.", "")
    assert text.stop_sequence == stop


def test_a_stop_string_is_heeded_where_there_is_no_header() -> None:
    text = spoken_of("b")
    assert summed(say(text, "to be, or not to be")) == ("", "to ", "")


def test_logprobs_are_of_what_is_told() -> None:
    letters = f"{HM}<|channel|>commentary<|message|>I look.{AGAIN}{YES}"
    events = say(spoken_of(), with_tokens(letters), logprobs=True)
    for event in events:
        assert isinstance(event, TextDelta | ReasoningDelta)
        told = "".join(entry.text for entry in event.logprobs)
        assert told == event.text.removeprefix("\n\n")


def test_a_template_of_channels_needs_no_tools() -> None:
    added = {marker: number for number, marker in enumerate(MARKERS)}
    speech = speech_of("<|start|>{{ messages }}<|channel|>", {"messages"}, added, set(range(7)))
    assert speech.summary() == {"tools": False, "thinking": True, "family": None}
    assert (speech.in_channels, speech.marks, len(speech.special)) == (True, None, len(MARKERS))


def test_an_answer_ends_where_the_family_says_and_not_with_a_message() -> None:
    added = {marker: number for number, marker in enumerate(MARKERS)}
    of = partial(speech_of, names={"tools"}, special=set(added.values()))
    told = frozenset({added["<|end|>"], 99})
    ends = {99, added["<|return|>"], added["<|call|>"]}
    assert of("{{ tools }}<|channel|>", added=added).end_ids(told) == ends
    assert of("{{ tools }}<tool_call>", added=added).end_ids(told) == told
    assert of("{{ tools }}<|channel|>", added={}).end_ids(told) == told


@pytest.mark.parametrize(("is_call", "last"), [(True, "@guide"), (False, "HEAD @guide")])
def test_what_cannot_be_gone_on_with_cannot_be_guided(is_call: bool, last: str) -> None:
    def before(begun: Begun) -> Any:
        grammar = CallGrammar({}, several=False)
        return harmony.write_before(
            grammar, begun, None if is_call else "@guide", "@guide" if is_call else None
        )

    assert before(Begun("assistant<|channel|>comm")) is None
    final = before(Begun("assistant<|channel|>final", in_body=True))
    assert final == ('"<|end|><|start|>assistant" @guide' if is_call else "@guide")
    last = last.replace("HEAD", '"<|channel|>final<|message|>"')
    assert before(Begun()).endswith(f"{last}")
