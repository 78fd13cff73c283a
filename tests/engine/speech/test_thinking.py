from __future__ import annotations

import pytest

from hotswap.engine.speech.thinking import MARKS
from tests.engine.speech.hearing import Heard, call, hear, listener

CASES: list[tuple[str, bool, Heard]] = [
    ("<think>\nHm, <b>.\n</think>\n\nYes.", False, [("reasoning", "Hm, <b>."), ("text", "Yes.")]),
    ("Hm.\n\nWell.\n</think>\n\n Yes.", True, [("reasoning", "Hm.\n\nWell."), ("text", "Yes.")]),
    ("<think>Hm.</think>Yes.", True, [("reasoning", "Hm."), ("text", "Yes.")]),
    ("\n <think>Hm.</think>Yes.", False, [("reasoning", "Hm."), ("text", "Yes.")]),
    ("<think>\n\n</think>\n\nYes.", False, [("text", "Yes.")]),
    ("Yes. <think>No.</think>", False, [("text", "Yes. <think>No.</think>")]),
    ("\n\n Yes.\n", False, [("text", "\n\n Yes.\n")]),
    (" \n", False, [("text", " \n")]),
    ("<thin", False, [("text", "<thin")]),
    ("<think>cut off </thi", False, [("reasoning", "cut off </thi")]),
    ("<think>cut off \n", False, [("reasoning", "cut off \n")]),
    ("", True, []),
]


@pytest.mark.parametrize("name", [None, "hermes"])
@pytest.mark.parametrize(("text", "opened", "expected"), CASES)
def test_reasoning_is_told_from_the_answer(
    name: str | None, text: str, opened: bool, expected: Heard
) -> None:
    assert hear(name, text, opened=opened) == expected
    assert hear(name, *text, opened=opened) == expected


def test_each_character_is_told_as_soon_as_it_is_sure() -> None:
    ear = listener(None, opened=True)
    told = []
    for letter in "a b</c</think>d":
        ear.push(letter)
        told.append("".join(piece.text for piece in ear.take()))
    assert told == ["a", "", " b", "", "", "</c", *[""] * 8, "d"]


def test_calls_are_heard_after_the_reasoning_and_not_within() -> None:
    tag = '<tool_call>{"name": "clock"}</tool_call>'
    heard = hear("hermes", f"<think>I say {tag}</think>\n{tag}")
    assert heard == [("reasoning", f"I say {tag}"), *call("clock", "{}")]


def test_mistral_marks_it_otherwise() -> None:
    heard = hear("mistral", "[THINK]Hm.[/THINK][TOOL_CALLS]clock[ARGS]{}", marks=MARKS[1])
    assert heard == [("reasoning", "Hm."), *call("clock", "{}")]


def test_without_marks_nothing_is_reasoning() -> None:
    assert hear(None, "<think>Hm.</think>", marks=None) == [("text", "<think>Hm.</think>")]
