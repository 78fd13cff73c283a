from __future__ import annotations

import re
from collections.abc import Set
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.contracts.answers import GenerationEvent, ReasoningDelta, TextDelta, ToolCallDelta
from hotswap.engine.drawing import Draw
from hotswap.engine.speech.listener import Hearing
from hotswap.engine.spoken import SpokenText
from tests.engine.speech.hearing import THINK, TOOLS, family

CALL = '<tool_call>\n{"name": "clock", "arguments": {"a": 1}}\n</tool_call>'


class Letters:
    """A vocabulary in which every token is one character; those of ``special`` are seen only when
    they are asked for."""

    def __init__(self, special: str = "") -> None:
        self._special = special
        self._shown: Set[int] = frozenset()

    def decoder(self, shown: Set[int] = frozenset(), guard: str = "") -> Any:
        assert not guard
        letters = Letters(self._special)
        letters._shown = shown
        return letters

    def push(self, token: int) -> str:
        hidden = chr(token) in self._special and token not in self._shown
        return "" if hidden else chr(token)

    def finish(self) -> str:
        return ""

    def raw(self, token: int) -> bytes:
        return chr(token).encode()


def spoken(*stop: str, vocabulary: Letters | None = None, echo: str = "", **hearing: Any) -> Any:
    given = {"marks": THINK, "read_calls": family("hermes").read, "tools": TOOLS, **hearing}
    return SpokenText(2, cast(Any, vocabulary or Letters()), Hearing(**given), stop, echo)


def say(
    text: Any, letters: str, *, logprobs: bool = False, cut: bool = False, **options: Any
) -> list[Any]:
    events: list[GenerationEvent] = []
    for letter in letters:
        stopped = text.push(Draw(ord(letter), -1.0 if logprobs else None), **options)
        events += text.events()
        if stopped:
            break
    text.finish(cut=cut)
    return [*events, *text.events()]


def summed(events: list[Any]) -> tuple[str, str, str]:
    """Reasoning, text and arguments."""
    return (
        "".join(e.text for e in events if isinstance(e, ReasoningDelta)),
        "".join(e.text for e in events if isinstance(e, TextDelta)),
        "".join(e.arguments for e in events if isinstance(e, ToolCallDelta)),
    )


def test_reasoning_text_and_calls_come_as_events_of_their_own() -> None:
    text = spoken()
    events = say(text, f"<think>Hm.</think>I look.{CALL}")
    assert summed(events) == ("Hm.", "I look.", '{"a": 1}')
    begun = [e for e in events if isinstance(e, ToolCallDelta) and e.name is not None]
    assert [(e.index, e.call, e.name) for e in begun] == [(2, 0, "clock")]
    assert text.called


def test_each_call_has_an_id_and_a_number_of_its_own() -> None:
    events = say(spoken(), CALL + CALL)
    calls = [e for e in events if isinstance(e, ToolCallDelta)]
    ids = [e.id for e in calls if e.id is not None]
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", found) for found in ids)
    assert [e.call for e in calls if e.name] == [0, 1]
    [short] = [e.id for e in say(spoken(ids="short"), CALL) if getattr(e, "id", None)]
    assert re.fullmatch(r"[A-Za-z0-9]{9}", short)


def test_a_call_that_comes_with_its_arguments_is_one_event() -> None:
    text = spoken()
    text._listener.push(CALL)
    text._gather()
    [event] = text.events()
    assert (event.name, event.arguments) == ("clock", '{"a": 1}')


def test_only_tokens_within_the_reasoning_are_counted_as_such() -> None:
    text = spoken()
    say(text, "<think>Hm. </think>Yes.")
    assert text.reasoning_tokens == len("Hm. </think>") - 1
    text = spoken(opened=True)
    say(text, "Hm.")
    assert text.reasoning_tokens == 3


def test_stop_strings_stop_wherever_they_are() -> None:
    text = spoken("zz")
    assert summed(say(text, "<think>a zz b")) == ("a ", "", "")
    assert text.stop_sequence == "zz"
    assert summed(say(spoken("zz"), "azz", may_stop=False)) == ("", "azz", "")


@pytest.mark.parametrize("stop", ['"a"', "{", "name", "\n{", "1}}\n<", "\n"])
def test_no_stop_string_begins_within_a_call(stop: str) -> None:
    text = spoken(stop)
    assert summed(say(text, f"I look. {CALL}")) == ("", "I look. ", '{"a": 1}')
    assert text.stop_sequence is None


def test_a_stop_string_after_a_call_stops() -> None:
    text = spoken("zz", "}}")
    assert summed(say(text, f"{CALL}\nSo zz b")) == ("", "So ", '{"a": 1}')
    assert text.stop_sequence == "zz"


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("llama", '{"name": "clock", "parameters": {"a": 1}}'),
        ("json", '{"name": "clock", "arguments": {"a": 1}}'),
        ("hermes", CALL.removesuffix("\n</tool_call>")),
        ("phi", '<|tool_call|>[{"name": "clock", "arguments": {"a": 1}}]'),
        ("deepseek", '<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{"a": 1}'),
        ("qwen-coder", "<function=clock>\n<parameter=a>\n1\n</parameter>\n</function>"),
    ],
)
@pytest.mark.parametrize(
    "stop", ["Observation:", "\nObservation:", "\n\nObs", " \n\nObservation", "\n\n", "\n", " "]
)
def test_a_stop_string_after_a_call_without_its_closing_mark_stops(
    name: str, called: str, stop: str
) -> None:
    text = spoken(stop, read_calls=family(name).read)
    events = say(text, f"{called} \n\nObservation: 3")
    assert summed(events)[1] == ""
    assert summed(events)[2]
    assert text.stop_sequence == stop


@pytest.mark.parametrize("stop", ["\nObservation:", "\n<", "\n</tool", " ", "\n\n"])
def test_a_stop_string_that_begins_like_what_closes_a_call_waits_for_the_closing_mark(
    stop: str,
) -> None:
    text = spoken(stop)
    events = say(text, f"{CALL}{CALL}Seen.", logprobs=True)
    assert summed(events) == ("", "Seen.", '{"a": 1}{"a": 1}')
    assert text.stop_sequence is None


@pytest.mark.parametrize(
    ("name", "letters", "stop", "expected"),
    [
        ("llama", '{\n  "answer": 42}', "\n", "{"),
        ("json", '{"id": 7, "for": "me"} and', "7, ", '{"id": '),
        ("json", '[{"id": 7}, 8] and', "7}", '[{"id": '),
        ("json", '{"id": 7', "7", '{"id": '),
        ("llama", '{"id": 7; 8}', "7; 8", '{"id": '),
        ("hermes", "So:\n<tool_call>\nclock() now", "clock", "So:\n<tool_call>\n"),
        ("hermes", "So <tool_call> clocks, clo, clock.", "clock.", "So <tool_call> clocks, clo, "),
        ("llama", '{"name": "clock"}; Note: x', "Note:", "; "),
        ("hermes", "<tool_box> is", "tool_", "<"),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
def test_what_is_no_call_after_all_is_searched_for_stop_strings(
    name: str, letters: str, stop: str, expected: str, *, cut: bool, logprobs: bool
) -> None:
    text = spoken("zz", stop, read_calls=family(name).read)
    events = say(text, letters, cut=cut, logprobs=logprobs)
    assert (summed(events)[1], text.stop_sequence) == (expected, stop)
    said = [event for event in events if isinstance(event, TextDelta)]
    told = "".join(entry.text for event in said for entry in event.logprobs)
    assert told == (expected if logprobs else "")


@pytest.mark.parametrize("name", ["llama", "json", "hermes", "phi", "qwen-coder"])
@given(
    words=st.lists(
        st.sampled_from(
            ["{", "}", '"id"', ": 1", ",", "; ", "\n", "[", "x", "<tool", "_call>", "<|tool_call|>"]
        ),
        max_size=12,
    ),
    stop=st.sampled_from(
        ["\n", "x", "xx", ": 1", '"id"', "}", "1,", "tool", "call>x", '{"', "[[x"]
    ),
)
def test_without_a_call_an_answer_ends_at_the_first_stop_string(
    name: str, words: list[str], stop: str
) -> None:
    text = spoken(stop, read_calls=family(name).read, marks=None)
    events = say(text, "".join(words))
    shown, found, _ = "".join(words).partition(stop)
    assert (summed(events)[1], text.stop_sequence) == (shown, found or None)


@pytest.mark.parametrize("stop", ["tool_call", "call", ">", "name"])
def test_no_stop_string_begins_within_the_mark_of_a_call(stop: str) -> None:
    text = spoken(stop)
    assert summed(say(text, f"I look. {CALL}")) == ("", "I look. ", '{"a": 1}')
    assert text.stop_sequence is None


@pytest.mark.parametrize("stop", ["<", "/", "tool_call>", "call>"])
def test_no_stop_string_begins_within_the_closing_mark(stop: str) -> None:
    text = spoken(stop)
    begun = CALL.removesuffix("</tool_call>")
    for letter in begun:
        text.push(Draw(ord(letter)), may_stop=False)
    assert not any(text.push(Draw(ord(letter))) for letter in "</tool_call>")


def test_where_a_call_is_demanded_stop_strings_are_heeded_in_the_reasoning_only() -> None:
    text = spoken("\n", "tool", demanded=True)
    assert summed(say(text, CALL + "\n" + CALL)) == ("", "", '{"a": 1}{"a": 1}')
    text = spoken("tool", demanded=True)
    assert summed(say(text, f"<think>a tool</think>{CALL}")) == ("a ", "", "")
    assert text.stop_sequence == "tool"


def test_an_answer_that_is_cut_within_a_call_does_not_show_its_beginning() -> None:
    for letters in ("I look.\n<tool_c", 'I look.\n<tool_call>\n{"name": "clo'):
        text = spoken()
        events = say(text, letters, logprobs=True, cut=True)
        assert summed(events) == ("", "I look.\n", "")
        told = "".join(entry.text for event in events for entry in event.logprobs)
        assert told == "I look.\n"
    cut = say(spoken(), CALL[: CALL.index("1}}")], cut=True)
    assert summed(cut) == ("", "", '{"a": ')


def test_logprobs_go_with_the_letters_that_they_are_of() -> None:
    events = say(spoken(), f"<think>\nHm.\n</think>\nI {CALL}\nsee", logprobs=True)
    for event in events:
        if isinstance(event, TextDelta | ReasoningDelta):
            assert "".join(entry.text for entry in event.logprobs) == event.text
    assert summed(events) == ("Hm.", "I see", '{"a": 1}')


def test_the_logprob_of_a_token_that_leaves_no_text_goes_with_what_it_follows() -> None:
    vocabulary = Letters(special="#")
    events = say(spoken(vocabulary=vocabulary), "ab#", logprobs=True)
    assert "".join(entry.text for event in events for entry in event.logprobs) == "ab#"


def test_special_tokens_are_seen_when_they_are_asked_for() -> None:
    hidden = say(spoken(vocabulary=Letters(special="<")), CALL)
    assert summed(hidden)[2] == ""
    shown = say(spoken(vocabulary=Letters(special="<"), shown=frozenset({ord("<")})), CALL)
    assert summed(shown)[2] == '{"a": 1}'


def test_an_answer_ends_with_its_only_call() -> None:
    text = spoken(parallel=False)
    ended = [text.push(Draw(ord(letter))) for letter in CALL]
    assert ended.index(True) == CALL.index("}}") + 1
    text = spoken(parallel=False)
    assert not any(text.push(Draw(ord(letter)), may_stop=False) for letter in CALL)


def test_echo_is_text_whatever_it_says() -> None:
    assert summed(say(spoken(echo="<think>x"), "b")) == ("", "<think>xb", "")


@pytest.mark.parametrize("letters", ["", "<", "<think>", CALL])
def test_nothing_new_is_no_event(letters: str) -> None:
    text = spoken()
    say(text, letters)
    assert list(text.events()) == []
