"""The policy as tables: what waits, what is resident, what should happen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.config import SwapRules
from hotswap.errors import (
    CheckpointRefused,
    HotswapError,
    InsufficientMemory,
    ModelLoadFailed,
    ModelNotFound,
    ModelUnusable,
    NotPermitted,
)
from hotswap.policy import (
    CRASH_WINDOW_S,
    CRASHES_TOLERATED,
    WAITING,
    Cooldown,
    Crashes,
    FailureLedger,
    Meter,
    Successor,
    successor,
)

RULES = SwapRules(patience_s=5.0, max_wait_s=20.0)


@dataclass(frozen=True)
class W:
    model: str | None
    since: float


@pytest.mark.parametrize(
    ("queue", "resident", "leases", "expected"),
    [
        ([], None, 0, None),
        ([], "A", 3, None),
        ([W("A", 1)], "A", 3, None),
        ([W("A", 1)], None, 0, Successor("A", 1)),
        ([W("B", 1)], "A", 0, Successor("B", 1)),
        ([W("B", 98)], "A", 1, Successor("B", 103)),
        ([W("A", 90), W("B", 98)], "A", 1, Successor("B", 103)),
        ([W("C", 97), W("B", 98)], "A", 1, Successor("C", 102)),
        ([W("B", 98), W("C", 97)], "A", 1, Successor("C", 102)),
        ([W("B", 50)], "A", 1, Successor("B", 55)),
        ([W(None, 50)], "A", 1, None),
        ([W(None, 50)], None, 0, None),
        ([W(None, 50), W("B", 98)], "A", 1, Successor("B", 103)),
    ],
)
def test_the_successor_is_the_model_of_the_oldest_waiter(
    queue: list[W], resident: str | None, leases: int, expected: Successor | None
) -> None:
    assert successor(queue, resident, leases, RULES) == expected


def test_patience_never_exceeds_the_longest_wait() -> None:
    rules = SwapRules(patience_s=60.0, max_wait_s=20.0)
    assert successor([W("B", 90)], "A", 1, rules) == Successor("B", 110)


waiters = st.lists(
    st.builds(W, st.sampled_from(["A", "B", "C", None]), st.floats(0, 100, allow_nan=False)),
    max_size=12,
)


@given(waiters, st.sampled_from("ABC"), st.integers(0, 3))
def test_nobody_is_passed_for_longer_than_the_longest_wait(
    queue: list[W], resident: str, leases: int
) -> None:
    choice = successor(queue, resident, leases, RULES)
    if choice is not None:
        oldest = min(waiter.since for waiter in queue if waiter.model not in (None, resident))
        assert oldest <= choice.leave_at <= oldest + RULES.max_wait_s


def test_a_cooldown_doubles_up_to_its_bound() -> None:
    cooldown = None
    pauses = []
    for _ in range(40):
        cooldown = Cooldown.after(cooldown, 0.0, first_s=1.0, longest_s=60.0)
        pauses.append(cooldown.until)
    assert pauses[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert pauses[-1] == 60


def test_the_ledger_refuses_during_the_cooldown_and_only_then() -> None:
    ledger = FailureLedger()
    ledger.check("A", 0.0)
    ledger.note("A", ModelLoadFailed("broken"), 100.0)
    with pytest.raises(ModelLoadFailed) as caught:
        ledger.check("A", 104.5)
    assert caught.value.retry_after_s == 5.5
    assert caught.value.message == (
        "'A' failed to load and is not tried again before 6 s have passed, "
        "unless it is loaded by hand: broken"
    )
    ledger.check("A", 110.0)
    ledger.check("B", 104.0)


@pytest.mark.parametrize(
    ("noted", "raised"),
    [
        (InsufficientMemory("too big"), InsufficientMemory),
        (ModelNotFound("not on the Hub"), ModelNotFound),
        (NotPermitted("gated"), NotPermitted),
        (CheckpointRefused("a shard is missing"), ModelLoadFailed),
    ],
)
def test_the_ledger_keeps_the_kind_of_failure(
    noted: HotswapError, raised: type[HotswapError]
) -> None:
    ledger = FailureLedger()
    ledger.note("A", noted, 0.0)
    with pytest.raises(raised, match=noted.message) as caught:
        ledger.check("A", 1.0)
    assert type(caught.value) is raised
    ledger.forgive("A")
    ledger.check("A", 1.0)


def test_what_each_look_at_it_tells_anew_has_no_cooldown() -> None:
    ledger = FailureLedger()
    ledger.note("A", ModelUnusable("config.json is not JSON."), 0.0)
    ledger.check("A", 1.0)
    assert ledger.readings() == {}


def test_failures_of_one_attempt_count_once() -> None:
    ledger = FailureLedger()
    for _ in range(10):
        ledger.note("A", ModelLoadFailed("broken"), 0.0)
    assert ledger.readings()["A"].retry_at == 10.0
    ledger.note("A", ModelLoadFailed("broken"), 10.0)
    assert ledger.readings()["A"].retry_at == 30.0


def test_the_ledger_is_bounded() -> None:
    ledger = FailureLedger(size=3)
    for number in range(10):
        ledger.note(str(number), ModelNotFound("no"), 0.0)
    assert set(ledger.readings()) == {"7", "8", "9"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["downloading", "checking", "reading", "starting", "?"]),
            st.floats(-1, 2, allow_nan=False),
            st.floats(0, 9),
        )
    ),
    st.booleans(),
)
def test_a_meter_stays_between_0_and_1_and_never_goes_back(
    reports: list[tuple[str, float, float]], download: bool
) -> None:
    meter = Meter("A", download=download, started=0.0, expected_s=None)
    last = now = spent_s = 0.0
    for stage, done, passed_s in reports:
        now += passed_s
        meter.advance(stage, done, now)
        assert last <= meter.value <= 1.0
        assert spent_s <= meter.spent_s(now) <= now
        last, spent_s = meter.value, meter.spent_s(now)


def test_a_meter_tells_only_what_is_worth_telling() -> None:
    meter = Meter("A", download=False, started=0.0, expected_s=4.0)
    assert meter.advance("reading", 0.0, 0.0)
    told = sum(meter.advance("reading", step / 10_000, 0.0) for step in range(10_000))
    assert 50 < told < 100
    assert meter.reading(1.0).eta_s == 3.0
    assert meter.reading(9.0).eta_s == 0.0


def test_how_long_others_answers_take_is_not_foretold() -> None:
    meter = Meter("A", download=False, started=0.0, expected_s=4.0)
    meter.advance("reading", 1.0, 0.0)
    read = meter.value
    assert meter.advance(WAITING, 0.0, 1.0)
    assert (meter.reading(2.0).eta_s, meter.reading(2.0).stage, meter.value) == (
        None,
        WAITING,
        read,
    )
    meter.advance("starting", 0.0, 3.0)
    assert meter.reading(3.0).eta_s == 4.0


class TestCrashes:
    def test_of_one_window_wear_the_engine_out(self) -> None:
        crashes = Crashes()
        for number in range(CRASHES_TOLERATED):
            crashes.note(float(number))
            assert not crashes.worn_out
        crashes.note(CRASH_WINDOW_S - 0.1)
        assert crashes.worn_out

    def test_that_lie_far_apart_do_not(self) -> None:
        crashes = Crashes()
        for number in range(4 * CRASHES_TOLERATED):
            crashes.note(number * CRASH_WINDOW_S / CRASHES_TOLERATED)
            assert not crashes.worn_out

    def test_are_remembered_when_an_engine_works_again(self) -> None:
        crashes = Crashes()
        for _ in range(CRASHES_TOLERATED + 1):
            crashes.note(0.0)
        crashes.recover()
        assert not crashes.worn_out
        crashes.note(1.0)
        assert crashes.worn_out


def test_a_meter_measures_reading_and_starting_and_nothing_else() -> None:
    meter = Meter("A", download=True, started=0.0, expected_s=4.0)
    for stage, done, now in (
        *(("downloading", 0.5, 10.0), ("checking", 0.0, 20.0), ("checking", 1.0, 30.0)),
        *(("reading", 0.0, 40.0), ("reading", 0.5, 41.0), ("reading", 1.0, 42.0)),
    ):
        assert meter.spent_s(now) == max(0.0, now - 40.0)
        meter.advance(stage, done, now)
    assert (meter.spent_s(90.0), meter.reading(90.0).eta_s) == (2.0, 2.0)
    meter.advance("starting", 0.0, 90.0)
    assert (meter.spent_s(91.5), meter.reading(91.5).eta_s) == (3.5, 0.5)
    meter.advance("starting", 1.0, 92.0)
    assert meter.spent_s(99.0) == 4.0
