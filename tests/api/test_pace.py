from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock

from hotswap.api.pace import BODY_COST_S, SHARE, Pace


def streams(pace: Pace, number: int) -> ExitStack:
    stack = ExitStack()
    for _ in range(number):
        stack.enter_context(pace.stream())
    return stack


def test_a_stream_that_is_alone_never_rests() -> None:
    pace = Pace()
    with streams(pace, 1):
        assert pace.rest_s == 0


@pytest.mark.parametrize("number", [4, 16, 64])
def test_many_streams_together_take_no_more_than_their_share(number: int) -> None:
    pace = Pace()
    with streams(pace, number):
        assert number * BODY_COST_S / pace.rest_s == pytest.approx(SHARE)
    assert pace.rest_s == 0


def test_resting_takes_the_time_it_should() -> None:
    pace = Pace()

    async def main() -> float:
        begun = trio.current_time()
        await pace.rest()
        return trio.current_time() - begun

    with streams(pace, 64):
        rested = trio.run(main, clock=MockClock(autojump_threshold=0))
        assert rested == pytest.approx(pace.rest_s)
