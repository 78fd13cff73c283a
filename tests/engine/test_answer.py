from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.contracts.answers import TextDelta
from hotswap.engine.answer import AnswerText, StopStrings
from hotswap.engine.drawing import Draw


class Letters:
    """A vocabulary in which every token is one character."""

    def decoder(self) -> Any:
        return self

    def push(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""

    def raw(self, token: int) -> bytes:
        return chr(token).encode()


def answer(*stop: str, echo: str = "") -> AnswerText:
    return AnswerText(3, cast(Any, Letters()), stop, echo)


def feed(text: AnswerText, letters: str, **options: Any) -> tuple[str, bool]:
    """What is shown, and whether a stop string ended it."""
    shown = ""
    for letter in letters:
        stopped = text.push(Draw(ord(letter)), **options)
        delta = text.take()
        shown += delta.text if delta else ""
        if stopped:
            return shown, True
    text.finish()
    delta = text.take()
    return shown + (delta.text if delta else ""), False


@given(
    text=st.text("ab", max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_is_shown_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    shown, stopped = feed(answer(*stop), text)
    # The answer ends with the first token that completes a stop string.
    end = min((text.find(s) + len(s) for s in stop if s in text), default=None)
    if end is None:
        assert (shown, stopped) == (text, False)
    else:
        seen = text[:end]
        assert stopped
        assert shown == seen[: min(seen.find(s) for s in stop if s in seen)]


def test_text_that_can_no_longer_stop_is_shown_at_once() -> None:
    text = answer("\n\nUser:")
    shown = []
    for letter in "Hi\n\nUs there":
        text.push(Draw(ord(letter)))
        delta = text.take()
        shown.append(delta.text if delta else "")
    assert shown[:3] == ["H", "i", ""]
    assert "".join(shown) == "Hi\n\nUs there"


def test_stop_strings_do_not_count_before_the_minimum_length() -> None:
    assert feed(answer("b"), "abab", may_stop=False) == ("abab", False)


def test_the_stop_string_is_told() -> None:
    text = answer("x", "bc")
    assert feed(text, "abcd") == ("a", True)
    assert text.stop_sequence == "bc"


def test_the_longest_of_stop_strings_that_begin_together_wins() -> None:
    assert StopStrings(["ab", "abc"]).find("xabc") == (1, "abc")


def test_echo_comes_first_and_stops_nothing() -> None:
    assert feed(answer("b", echo="bbb"), "ac") == ("bbbac", False)


def test_logprobs_come_with_their_text() -> None:
    text = answer("xyz")
    deltas: list[TextDelta] = []
    for letter in "axyb":
        text.push(Draw(ord(letter), -1.0, ((ord(letter), -1.0),)))
        delta = text.take()
        if delta:
            deltas.append(delta)
    assert [(d.text, "".join(e.text for e in d.logprobs)) for d in deltas] == [
        ("a", "a"),
        ("xyb", "xyb"),
    ]
    assert deltas[0].index == 3
    assert deltas[0].logprobs[0].top[0].text == "a"


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_nothing_new_is_no_delta(stop: tuple[str, ...]) -> None:
    assert answer(*stop).take() is None
