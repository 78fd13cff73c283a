from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, cast

import anyio
import pytest

from hotswap.contracts.answers import Finished, GenerationEvent, TextDelta
from hotswap.errors import EngineFailed

pytestmark = [pytest.mark.torch, pytest.mark.anyio]


class Loop:
    """Notes what it is to call, and calls it when it is told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self.calls.append(call)


def delta(text: str) -> TextDelta:
    return TextDelta(index=0, text=text)


def finished(index: int = 0) -> Finished:
    return Finished(index=index, reason="stop", completion_tokens=1)


def generation(sequences: int = 1) -> Any:
    from hotswap.engine.generation import TorchGeneration

    return TorchGeneration(0, "model", 1, cast(Any, [None] * sequences))


def post(text: str) -> Any:
    from hotswap.engine.generation import Post

    made = Post()
    made.add(7, delta(text))
    return made


class Receiver:
    """An engine, as far as its postbox is concerned."""

    def __init__(self, loop: Loop) -> None:
        from hotswap.engine.generation import Postbox

        self.outbox = Postbox(cast(asyncio.AbstractEventLoop, loop), self.receive)
        self.taken: list[GenerationEvent] = []

    def receive(self) -> None:
        for one in self.outbox.take():
            self.taken.extend(one.events[7])


def test_a_stalled_loop_is_called_once_for_all_posts() -> None:
    loop = Loop()
    receiver = Receiver(loop)
    for text in "abc":
        receiver.outbox.put(post(text))
    assert len(loop.calls) == 1
    loop.calls.pop()()
    assert receiver.taken == [delta("a"), delta("b"), delta("c")]
    receiver.outbox.put(post("d"))
    loop.calls.pop()()
    assert receiver.taken[3:] == [delta("d")]


def test_a_postbox_does_not_keep_its_receiver_alive() -> None:
    loop = Loop()
    receiver = Receiver(loop)
    outbox, gone = receiver.outbox, weakref.ref(receiver)
    del receiver
    assert gone() is None
    outbox.put(post("a"))
    assert loop.calls == []


def test_a_post_that_comes_while_others_are_taken_is_taken_too() -> None:
    loop = Loop()
    receiver = Receiver(loop)
    outbox = receiver.outbox
    outbox.put(post("a"))
    taking = outbox.take()
    next(taking)
    outbox.put(post("b"))
    assert [one.events for one in taking] == [{7: [delta("b")]}]
    assert len(loop.calls) == 2, "the second one finds nothing"
    assert list(outbox.take()) == []


async def test_what_comes_while_nobody_reads_is_read_at_once() -> None:
    made = generation()
    made.deliver([delta("a")])
    made.deliver([delta("b"), finished()])
    assert made.complete
    assert [events async for events in made] == [(delta("a"), delta("b"), finished())]


async def test_a_waiting_reader_gets_what_was_delivered_before_it_ran() -> None:
    made = generation(2)
    read: list[tuple[GenerationEvent, ...]] = []

    async def reader() -> None:
        read.extend([events async for events in made])

    async with anyio.create_task_group() as group:
        group.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        made.deliver([delta("a"), finished(0)])
        made.deliver([delta("b")])
        await anyio.wait_all_tasks_blocked()
        assert not made.complete
        made.deliver([finished(1)])
    assert read == [(delta("a"), finished(0), delta("b")), (finished(1),)]


async def test_a_reader_that_gave_up_waiting_can_come_back() -> None:
    made = generation()
    with anyio.move_on_after(0):
        await anext(made)
    made.deliver([delta("a")])
    assert await anext(made) == (delta("a"),)


async def test_what_was_delivered_is_read_before_the_failure() -> None:
    made = generation()
    made.deliver([delta("a")])
    made.fail(EngineFailed("first"))
    made.fail(EngineFailed("second"))
    assert await anext(made) == (delta("a"),)
    with pytest.raises(EngineFailed, match="first"):
        await anext(made)
