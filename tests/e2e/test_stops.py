"""SIGTERM at moments of every kind; `python -m bench.stops` does it hundreds of times."""

from __future__ import annotations

import asyncio
import re

import pytest

from bench.stops import MOMENTS, Stop, stops, tell

pytestmark = [pytest.mark.torch, pytest.mark.e2e]


def test_nobody_loses_an_answer_by_a_stop() -> None:
    made: list[Stop] = asyncio.run(stops(len(MOMENTS), seed=1, report=tell))
    assert {stop.moment for stop in made} == set(MOMENTS)
    assert all(stop.in_order for stop in made)
    ended = [answer for stop in made if stop.moment == "streaming" for answer in stop.answers]
    assert ended
    assert set(ended) == {"whole"}
    assert not [stop.log for stop in made if re.search("Traceback|ERROR", stop.log)]
