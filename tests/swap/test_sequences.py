"""Some of the random sequences of `tests.swap.sequences`, and that these do see what is wrong."""

from __future__ import annotations

import pytest

from hotswap.residency.admittance import Admittance
from hotswap.residency.desk import Desk
from hotswap.residency.stay import Residency
from hotswap.residency.succession import Succession
from tests.swap.sequences import run

pytestmark = pytest.mark.slow


def test_five_hundred_random_sequences_keep_every_promise() -> None:
    happened = run(500, 20, derandomize=True)
    assert happened["sequences"] >= 500
    for end in ("finished", "refused", "failed", "left"):
        assert happened[end] > 50, happened
    assert happened["loads"] > 500


@pytest.mark.filterwarnings("ignore")  # of tasks that a broken controller leaves behind
class TestABrokenController:
    """What is taken away is missed."""

    def test_that_keeps_leases_is_found_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Admittance, "_release", lambda self, stay: self._desk.ring())
        with pytest.raises(AssertionError):
            run(20, derandomize=True, shrink=False)

    def test_that_lets_the_last_one_in_first_is_found_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admit = Desk.admit

        def admit_backwards(self: Desk, stay: Residency) -> None:
            self.queue.reverse()
            admit(self, stay)

        monkeypatch.setattr(Desk, "admit", admit_backwards)
        with pytest.raises(AssertionError):
            run(50, derandomize=True, shrink=False)

    def test_that_loads_what_nobody_waits_for_is_found_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Succession, "is_due", lambda self, load: True)
        with pytest.raises(AssertionError):
            run(200, derandomize=True, shrink=False)
