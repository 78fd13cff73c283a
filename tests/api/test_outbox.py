from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
import trio
from trio.testing import MockClock

from hotswap.api.outbox import Outbox, Piece
from hotswap.errors import EngineFailed

LARGE = b"x" * (200 << 10)


def piece(data: bytes) -> Piece:
    return lambda: data


def test_what_has_queued_is_taken_as_one() -> None:
    async def main() -> None:
        outbox = Outbox()
        outbox.put(piece(b"a"))
        outbox.put(piece(b"b"))
        await outbox.filled()
        assert outbox.take() == b"ab"
        assert outbox.take() == b""

    anyio.run(main)


def test_closing_wakes_the_writer_and_keeps_what_was_put() -> None:
    async def main() -> None:
        outbox = Outbox()
        error = EngineFailed("broke")

        async def produce() -> None:
            await anyio.lowlevel.checkpoint()
            outbox.put(piece(b"a"))
            outbox.close(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            await outbox.filled()
        assert outbox.take() == b"a"
        assert outbox.drained
        assert outbox.error is error
        await outbox.filled()

    anyio.run(main)


def test_a_body_has_a_decent_size_and_what_is_left_is_not_written_out_yet() -> None:
    written = []

    def write(number: int) -> Piece:
        def piece() -> bytes:
            written.append(number)
            return LARGE

        return piece

    async def main() -> None:
        outbox = Outbox()
        for number in range(5):
            outbox.put(write(number))
        outbox.close()
        assert not written
        assert [len(outbox.take()) // len(LARGE) for _ in range(3)] == [2, 2, 1]
        assert written == list(range(5))
        assert outbox.drained

    anyio.run(main)


def test_silence_is_counted_from_the_last_put() -> None:
    async def main() -> None:
        outbox = Outbox()
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.silent, 10)
            await trio.sleep(9)
            outbox.put(piece(b"a"))
            await trio.sleep(9)
            outbox.put(piece(b"b"))
        assert trio.current_time() - begun == pytest.approx(28)

    trio.run(main, clock=MockClock(autojump_threshold=0))
