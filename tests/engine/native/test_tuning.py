"""Which way is taken from how many tokens on, and that it is measured once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.native.skeletons import Sizes, skeleton_of

if TYPE_CHECKING:
    from hotswap.engine.forward.base import Segment
    from hotswap.engine.forward.skeleton import Skeleton
    from hotswap.engine.native.tuning import Tuning

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed"),
]

SIZES = Sizes(dtype="bfloat16")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Tuning]:
    """What has been measured; it is kept in a directory of the test's own."""
    from hotswap.engine.native import tuning

    seen: list[Tuning] = []
    measure = tuning._measure

    def noted(skeleton: Skeleton, threads: int) -> Tuning:
        seen.append(measure(skeleton, threads))
        return seen[-1]

    monkeypatch.setattr(tuning, "_measure", noted)
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path)
    return seen


def tuning_of(sizes: Sizes, threads: int = 1) -> Tuning:
    from hotswap.engine.native.tuning import tuning_of

    return tuning_of(skeleton_of(sizes), threads)


def test_a_shape_is_measured_once(measured: list[Tuning]) -> None:
    assert [tuning_of(SIZES), tuning_of(SIZES)] == measured * 2


@pytest.mark.parametrize(
    "other",
    [
        replace(SIZES, width=96),
        replace(SIZES, inner=128),
        replace(SIZES, groups=4),
        replace(SIZES, layers=3),
        replace(SIZES, dtype="float32"),
    ],
)
def test_another_shape_is_measured_by_itself(measured: list[Tuning], other: Sizes) -> None:
    tuning_of(SIZES)
    tuning_of(other)
    assert len(measured) == 2


def test_another_number_of_threads_is_measured_by_itself(measured: list[Tuning]) -> None:
    tuning_of(SIZES, 1)
    tuning_of(SIZES, 2)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "[" * 100_000),
        '{"matrices_from": "x", "prompt_tokens": 1}',
        '{"matrices_from": Infinity, "prompt_tokens": 1}',
        '{"matrices_from": 1, "prompt_tokens": 1e30}',
        '{"matrices_from": 0, "prompt_tokens": 1}',
    ],
)
def test_what_cannot_be_read_is_measured_again(
    measured: list[Tuning], tmp_path: Path, text: str
) -> None:
    tuning_of(SIZES)
    [place] = tmp_path.iterdir()
    place.write_text(text)
    assert tuning_of(SIZES) == measured[1]
    assert tuning_of(SIZES) == measured[1]
    assert json.loads(place.read_text())["prompt_tokens"] == measured[1].prompt_tokens


def test_what_cannot_be_kept_is_used_all_the_same(
    measured: list[Tuning], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hotswap.engine.native import tuning

    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path / "nowhere")
    assert [tuning_of(SIZES), tuning_of(SIZES)] == measured
    assert len(measured) == 2


def test_what_is_kept_decides(measured: list[Tuning], tmp_path: Path) -> None:
    from hotswap.engine.native.tuning import Tuning

    tuning_of(SIZES)
    [place] = tmp_path.iterdir()
    place.write_text(json.dumps({"matrices_from": 3, "prompt_tokens": 24}))
    assert tuning_of(SIZES) == Tuning(3, 24)


@pytest.mark.parametrize(
    ("holds", "least"),
    [({1, 2, 4, 8, 16}, 1), ({4, 8, 16}, 4), ({2, 8, 16}, 8), ({1, 2, 4, 8}, 129), (set(), 129)],
)
def test_matrices_are_used_from_where_they_stay_faster(
    monkeypatch: pytest.MonkeyPatch, holds: set[int], least: int
) -> None:
    from hotswap.engine.blocks import BlockTable
    from hotswap.engine.native import tuning

    class Loops:
        """Knows how many tokens it was last asked for."""

        tokens = 0

        def use_matrices_from(self, tokens: int) -> None: ...

        def step(self, segments: list[Segment]) -> None:
            self.tokens = len(segments[0].ids)

    loops = Loops()

    def is_faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
        other()
        one()
        return loops.tokens in holds

    monkeypatch.setattr(tuning, "_is_faster", is_faster)
    assert tuning._matrices_from(loops, BlockTable()) == least  # type: ignore[arg-type]


def test_the_faster_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine.native import tuning

    class Clock:
        now = 0.0

        def takes(self, seconds: float) -> Callable[[], None]:
            def run() -> None:
                self.now += seconds

            return run

    clock = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    assert tuning._is_faster(clock.takes(1.0), clock.takes(1.1))
    assert not tuning._is_faster(clock.takes(1.1), clock.takes(1.0))
