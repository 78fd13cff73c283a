"""That a step gives the same numbers whoever computes it and whatever else is in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hotswap.engine.blocks import BlockTable
from tests.engine.forward.test_lean import forward_of
from tests.engine.native.skeletons import (
    MATRICES_FROM,
    PROMPT_TOKENS,
    Sizes,
    firsts_of_the_largest,
    in_one_piece,
    scattered,
    segments_of,
    skeleton_of,
    with_attention,
)
from tests.engine.native.test_machine import address, operations, shapes_of

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.base import Segment
    from hotswap.engine.forward.lean import LeanForward
    from hotswap.engine.native.decode import NativeDecode

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed"),
]

LENGTHS = (37, 3, 16, 40, 1, 29, 12)
"""Tokens of each sequence before the steps."""
LARGE = Sizes(width=256, inner=512, size=32, vocab=1000)
"""Enough for several pieces of every weight."""


@pytest.fixture(params=["float32", "bfloat16"])
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return replace(LARGE, dtype=request.param)


def begun(sizes: Sizes, tables: Sequence[BlockTable]) -> LeanForward:
    """A pool in which the beginnings of all sequences are computed."""
    import torch

    skeleton = with_attention(skeleton_of(sizes), window=30)
    lean = forward_of(skeleton, sum(len(table.blocks) for table in tables))
    parts = [(n, 0, LENGTHS[n % len(LENGTHS)]) for n in range(len(tables))]
    with torch.inference_mode():
        lean.logits(segments_of(tables, parts))
    return lean


@contextmanager
def decoding(lean: LeanForward, threads: int) -> Iterator[NativeDecode]:
    from hotswap.engine.native.decode import NativeDecode

    decode = NativeDecode(lean.skeleton, lean.pool, threads, matrices_from=MATRICES_FROM)
    try:
        yield decode
    finally:
        decode.close()


def newest(tables: Sequence[BlockTable], numbers: Sequence[int]) -> list[Segment]:
    """The next tokens of these sequences, in this order."""
    parts = ((n, LENGTHS[n % len(LENGTHS)], LENGTHS[n % len(LENGTHS)] + 1) for n in numbers)
    return [segment for part in parts for segment in segments_of(tables, [part])]


def logits_of(decode: NativeDecode, segments: Sequence[Segment]) -> Tensor:
    return decode.step(segments)[0].clone()


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("decode-")}


# -- the same numbers ----------------------------------------------------------------------------


def test_a_newest_token_is_computed_as_alone_in_company_of_up_to_four(sizes: Sizes) -> None:
    import torch

    tables = scattered(7, 3)
    with decoding(begun(sizes, tables), threads=2) as decode:
        alone = [logits_of(decode, newest(tables, [n])) for n in range(7)]
        for company in ([0, 1], [3, 0], [1, 0, 2], [4, 6, 0], [0, 1, 2, 3], [6, 5, 4, 0]):
            together = logits_of(decode, newest(tables, company))
            assert torch.equal(together, torch.cat([alone[n] for n in company]))


def test_in_company_of_five_and_more_it_does_not_matter_of_how_many(sizes: Sizes) -> None:
    import torch

    tables = scattered(64, 3)
    with decoding(begun(sizes, tables), threads=2) as decode:
        all_of_them = logits_of(decode, newest(tables, range(64)))
        for company in (range(5), range(3, 16), range(20, 37), range(10, 64), (60, 2, 33, 7, 50)):
            together = logits_of(decode, newest(tables, list(company)))
            assert torch.equal(together, all_of_them[list(company)])


def test_a_newest_token_is_computed_as_alone_beside_a_short_prompt(sizes: Sizes) -> None:
    import torch

    tables = scattered(3, 3)
    with decoding(begun(sizes, tables), threads=2) as decode:
        [alone] = logits_of(decode, newest(tables, [0]))
        beside = [*newest(tables, [0]), *segments_of(tables, [(1, 3, 6)])]
        assert torch.equal(logits_of(decode, beside)[0], alone)


def test_float32_is_computed_as_alone_in_any_company() -> None:
    import torch

    tables = scattered(64, 3)
    with decoding(begun(LARGE, tables), threads=2) as decode:
        together = logits_of(decode, newest(tables, range(64)))
        for number in range(0, 64, 9):
            assert torch.equal(logits_of(decode, newest(tables, [number]))[0], together[number])


@pytest.mark.parametrize("count", [1, 4, 7, 64])
def test_any_number_of_threads_computes_the_same(sizes: Sizes, count: int) -> None:
    import torch

    tables = scattered(count, 3)
    lean = begun(sizes, tables)
    found = []
    for threads in (1, 2, 3):
        with decoding(lean, threads) as decode:
            found.append(logits_of(decode, newest(tables, range(count))))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_numbers_of_steps_begin_again(sizes: Sizes) -> None:
    import torch

    from hotswap.engine.native import step

    tables = scattered(2, 3)
    with decoding(begun(sizes, tables), threads=3) as decode:
        wanted = logits_of(decode, newest(tables, range(2)))
        control = decode._team._control
        step.set_word(control, step.STEP, step._MOST_STEPS - 20)
        for _ in range(40):
            assert torch.equal(logits_of(decode, newest(tables, range(2))), wanted)
        assert 0 < decode._team._memory[1][step.STEP] <= 21


def test_it_does_not_matter_where_a_sequence_lies(sizes: Sizes) -> None:
    import torch

    whole, apart = BlockTable(), BlockTable()
    whole.extend([0, 1, 2])
    apart.extend([7, 5, 3])
    lean = begun(sizes, [whole, *in_one_piece(2, 3)[1:], *in_one_piece(3, 3)[2:]])
    with torch.inference_mode():
        lean.copy(list(zip(whole.blocks, apart.blocks, strict=True)))
    with decoding(lean, threads=1) as decode:
        found = [logits_of(decode, newest([table], [0])) for table in (whole, apart)]
    assert torch.equal(found[0], found[1])


def test_a_step_leaves_a_threads_matrices_as_they_were() -> None:
    """oneDNN relies on it. Five tokens are what a processor's matrices are used for."""
    from hotswap.engine.jit import inlined

    machine = operations()
    if not machine.may_use_matrices():
        pytest.skip("this processor has no matrices, or this process may not use them")

    @inlined
    def change(shapes: int, former: int) -> None:
        machine.use_tiles(shapes, former)

    tables = scattered(5, 3)
    lean = begun(replace(LARGE, dtype="bfloat16"), tables)
    theirs, none, seen = shapes_of(5), np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    with decoding(lean, threads=1) as decode:
        change(address(theirs), address(seen))
        decode.step(newest(tables, range(5)))
        change(address(none), address(seen))
    assert seen.tolist() == theirs.tolist()


# -- threads -------------------------------------------------------------------------------------


class Batches:
    """Steps of several kinds and what one thread alone computes of each."""

    def __init__(self, sizes: Sizes) -> None:
        self.tables = scattered(7, 3)
        self.lean = begun(sizes, self.tables)
        companies = [[0], [1, 2], [3], list(range(7)), [6, 5, 4], [0, 1, 2, 3, 4]]
        self.steps = [newest(self.tables, company) for company in companies]
        self.steps.append([*self.steps[0], *segments_of(self.tables, [(1, 3, 9)])])
        self.steps.append([replace(segment, samples=False) for segment in self.steps[1]])
        with decoding(self.lean, threads=1) as decode:
            self.wanted = [logits_of(decode, step) for step in self.steps]

    def all_are_right(self, decode: NativeDecode, steps: int) -> bool:
        import torch

        for number in range(steps):
            kind = number % len(self.steps)
            logits, tokens = decode.step(self.steps[kind])
            if not torch.equal(logits, self.wanted[kind]):
                return False
            if tokens.tolist() != firsts_of_the_largest(logits):
                return False
        return True


@pytest.mark.parametrize("patience", [0, 1, 100])
def test_workers_that_fall_asleep_lose_nothing(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    from hotswap.engine.native import team as module

    monkeypatch.setattr(module, "_PATIENCE", patience)
    batches = Batches(sizes)
    with decoding(batches.lean, threads=3) as decode:
        assert batches.all_are_right(decode, 300)


def test_more_workers_than_processors_compute_the_same(sizes: Sizes) -> None:
    batches = Batches(replace(sizes, width=64, inner=96, vocab=384))
    with decoding(batches.lean, threads=4) as decode:
        assert batches.all_are_right(decode, 2_000)


def test_two_teams_do_not_get_in_each_others_way(sizes: Sizes) -> None:
    first, second = Batches(sizes), Batches(sizes)
    with decoding(first.lean, threads=2) as one, decoding(second.lean, threads=2) as other:
        for _ in range(10):
            assert first.all_are_right(one, 8)
            assert second.all_are_right(other, 8)


def test_a_sleeping_worker_is_woken_by_the_next_step(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.native import team as module

    monkeypatch.setattr(module, "_PATIENCE", 1)
    batches = Batches(sizes)
    with decoding(batches.lean, threads=2) as decode:
        for _ in range(20):
            wait_until_asleep(decode)
            assert batches.all_are_right(decode, 1)


def wait_until_asleep(decode: NativeDecode) -> None:
    from hotswap.engine.native import step

    control = decode._team._memory[1]
    for _ in range(20_000):
        if control[step.WORKERS + step.LINE]:
            return
        time.sleep(0.0001)
    pytest.fail("the worker was not woken, or does not fall asleep again")


def test_closing_sends_the_threads_home(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for a step and those that sleep."""
    from hotswap.engine.native import team as module

    before = workers()
    lean = begun(sizes, in_one_piece(1, 3))
    for patience in (0, 1, 10**12):
        monkeypatch.setattr(module, "_PATIENCE", patience)
        with decoding(lean, threads=3):
            assert len(workers() - before) == 2
        with decoding(lean, threads=3) as decode:
            decode.step(newest(in_one_piece(1, 3), [0]))
        assert workers() <= before


def test_making_room_anew_ends_the_old_threads_and_starts_others(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine.kv_pool import KVPool
    from hotswap.engine.native.forward import NativeForward
    from hotswap.engine.native.tuning import Tuning

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before = workers()
    table = BlockTable()
    table.extend([9, 2])
    tuning = Tuning(MATRICES_FROM, PROMPT_TOKENS)
    forward = NativeForward(skeleton_of(sizes), KVPool(torch.device("cpu"), 1), tuning)
    old = workers() - before
    forward.reserve(12)
    new = workers() - before
    assert (len(old), len(new), len(old & new)) == (2, 2, 0)
    assert not any(thread.is_alive() for thread in old)

    with torch.inference_mode():
        for start, end in ((0, 9), (9, 20), (20, 21)):
            segments = segments_of([table], [(0, start, end)])
            logits = forward.logits(segments)
    wanted = forward_of(forward.skeleton, 12)
    with torch.inference_mode():
        of_torch = wanted.logits(segments_of([table], [(0, 0, 21)])).float()
    torch.testing.assert_close(logits, of_torch, rtol=0, atol=0.1)
    forward.close()
    assert not any(thread.is_alive() for thread in new)
    assert forward.pool.token_bytes == 0
