from __future__ import annotations

import pytest

from hotswap.api.answer_blocks import Blocks, text_of
from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)

END = Finished(index=0, reason="stop", completion_tokens=3)


def blocks_of(*events: GenerationEvent) -> Blocks:
    blocks = Blocks()
    for event in events:
        blocks.add(event)
    return blocks


def text(piece: str) -> TextDelta:
    return TextDelta(index=0, text=piece)


def call(number: int, arguments: str = "", name: str | None = None) -> ToolCallDelta:
    return ToolCallDelta(
        index=0, call=number, id=name and f"id_{name}", name=name, arguments=arguments
    )


def test_a_block_ends_where_another_kind_begins() -> None:
    blocks = blocks_of(
        ReasoningDelta(index=0, text="h"),
        ReasoningDelta(index=0, text="m"),
        text("a"),
        text("b"),
        call(0, '{"x":', name="f"),
        call(0, "1}"),
        call(1, name="g"),
        text("c"),
        END,
    )
    assert [(b.kind, b.index, b.text) for b in blocks.all] == [
        ("reasoning", 0, "hm"),
        ("text", 1, "ab"),
        ("call", 2, '{"x":1}'),
        ("call", 3, ""),
        ("text", 4, "c"),
    ]
    assert [(b.call_id, b.name) for b in blocks.all[2:4]] == [("id_f", "f"), ("id_g", "g")]
    assert blocks.finished == END


def test_nothing_said_is_no_block() -> None:
    blocks = blocks_of(text(""), ReasoningDelta(index=0, text=""), END)
    assert blocks.all == []


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"a": [1]}', '{"a": [1]}'),
        ("", "{}"),
        ('{"a": [1', None),
        ("[1]", None),
        ('{"a":' + "[" * 100_000, None),
    ],
)
def test_arguments_are_a_whole_object_or_nothing(written: str, arguments: str | None) -> None:
    [block] = blocks_of(call(0, written, name="f")).all
    assert block.arguments == arguments


def test_a_call_does_not_go_on_after_another_one() -> None:
    with pytest.raises(AssertionError, match="call 0"):
        blocks_of(call(0, name="f"), call(1, name="g"), call(0, "{}"))


def test_what_a_block_grew_by() -> None:
    assert [text_of(event) for event in (text("a"), call(0, "{}"), END)] == ["a", "{}", ""]
