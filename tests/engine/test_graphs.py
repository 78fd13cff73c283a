from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

pytestmark = pytest.mark.torch

WEIGHT = 1000


def make_batch(ids: Sequence[int], blocks: int = 3) -> Any:
    """Rows that tell themselves apart by their first number."""
    import torch

    from hotswap.engine.graphs import DecodeBatch

    numbers = torch.tensor(ids)
    tables = numbers[:, None] * 10 + torch.arange(blocks)
    return DecodeBatch(numbers, numbers + 1, numbers + 2, numbers + 3, tables)


class Model:
    """A step whose outputs are computed from all of its inputs, and what it was called with."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.padding_seen: list[tuple[list[int], list[int]]] = []
        self.addresses: set[int] = set()

    def step(self, batch: Any) -> tuple[Any, ...]:
        self.ran.append(batch.rows)
        self.addresses.add(batch.ids.data_ptr())
        padding = batch.lengths == 0
        self.padding_seen.append((batch.slots[padding].tolist(), padding.nonzero()[:, 0].tolist()))
        return batch.ids * WEIGHT + batch.tables[:, 1], batch.positions + batch.slots

    @staticmethod
    def expected(ids: Sequence[int]) -> tuple[list[int], list[int]]:
        return [n * WEIGHT + n * 10 + 1 for n in ids], [2 * n + 3 for n in ids]


class Tape:
    """A recorder without a device: a replay runs the step again into the same outputs."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.at_reset: Callable[[], None] = lambda: None
        self.broken = False

    def rehearse(self, step: Any) -> Any:
        self.log.append("rehearse")
        return step()

    def record(self, step: Any) -> Any:
        if self.broken:
            raise RuntimeError("not permitted while a stream is capturing")
        self.log.append("record")
        outputs = step()
        for output in outputs:
            output.fill_(-1)  # a recording computes nothing
        return Take(self, step, outputs), outputs

    def wait(self) -> None:
        self.log.append("wait")


class Take:
    def __init__(self, tape: Tape, step: Any, outputs: Any) -> None:
        self.tape, self.step, self.outputs = tape, step, outputs

    def replay(self) -> None:
        self.tape.log.append("replay")
        for output, computed in zip(self.outputs, self.step(), strict=True):
            output.copy_(computed)

    def reset(self) -> None:
        self.tape.log.append("reset")
        self.tape.at_reset()


def make_graphs(model: Model, recorder: Any = None, max_rows: int = 6) -> Any:
    import torch

    from hotswap.engine.graphs import DecodeGraphs

    return DecodeGraphs(
        model.step, max_rows=max_rows, max_blocks=4, device=torch.device("cpu"), recorder=recorder
    )


def lists(outputs: Any) -> tuple[list[int], ...]:
    return tuple(output.tolist() for output in outputs)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (48, (1, 2, 4, 8, 16, 32, 48))],
)
def test_sizes_are_powers_of_two_and_the_largest(most: int, sizes: tuple[int, ...]) -> None:
    from hotswap.engine.graphs import padded_sizes

    assert padded_sizes(most) == sizes


@pytest.mark.parametrize("recorded", [False, True])
def test_every_batch_gets_its_own_answers_however_often_it_comes(recorded: bool) -> None:
    graphs = make_graphs(Model(), Tape() if recorded else None)
    for ids in ([5], [1, 2, 3], [4, 5, 6, 7, 8, 9], [3], [9, 8, 7], [1, 2], [6], [3, 4], [5, 6]):
        assert lists(graphs.run(make_batch(ids))) == Model.expected(ids)


def test_without_a_recorder_a_step_is_run_each_time_on_the_padded_rows() -> None:
    model = Model()
    graphs = make_graphs(model)
    for ids in ([1], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5]):
        graphs.run(make_batch(ids))
    assert model.ran == [1, 4, 4, 6]
    assert graphs.recorded == ()


def test_rows_of_a_larger_batch_before_are_padding_again() -> None:
    model = Model()
    graphs = make_graphs(model)
    graphs.run(make_batch([1, 2, 3, 4]))
    graphs.run(make_batch([5, 6, 7], blocks=2))
    assert model.padding_seen == [([], []), ([-1], [3])]


def test_a_size_is_rehearsed_then_recorded_then_replayed() -> None:
    tape, model = Tape(), Model()
    graphs = make_graphs(model, tape)
    for _ in range(4):
        graphs.run(make_batch([1]))
    assert tape.log == ["rehearse", "record", "replay", "replay", "replay"]
    assert graphs.recorded == (1,)
    graphs.run(make_batch([1, 2]))
    assert tape.log[5:] == ["rehearse"]
    for _ in range(2):
        graphs.run(make_batch([1, 2, 3, 4]))
    assert graphs.recorded == (1, 4)


def test_inputs_lie_at_the_same_place_for_all_batches() -> None:
    model = Model()
    graphs = make_graphs(model, Tape())
    for ids in ([1], [1, 2], [1], [3, 4, 5], [3, 4, 5, 6, 7]):
        graphs.run(make_batch(ids))
    assert len(model.addresses) == 1


def test_outputs_may_be_the_inputs_of_the_next_step() -> None:
    """One step ahead: the tokens never leave the device."""
    from dataclasses import replace

    graphs = make_graphs(Model(), Tape())
    ids = [2, 3]
    batch = make_batch(ids)
    for _ in range(4):
        tokens, _ = graphs.run(batch)
        ids = [n * WEIGHT + 21 + 10 * i for i, n in enumerate(ids)]
        ids = [n % 97 for n in ids]
        assert (tokens % 97).tolist() == ids
        batch = replace(batch, ids=tokens.remainder_(97))


def test_a_recording_that_fails_is_told_and_leaves_nothing_behind() -> None:
    tape = Tape()
    graphs = make_graphs(Model(), tape)
    graphs.run(make_batch([1]))
    tape.broken = True
    with pytest.raises(RuntimeError, match="capturing"):
        graphs.run(make_batch([1]))
    assert graphs.recorded == ()
    tape.broken = False
    assert lists(graphs.run(make_batch([7]))) == Model.expected([7])


@pytest.mark.parametrize(("rows", "blocks"), [(0, 3), (7, 3), (1, 5)])
def test_what_there_is_no_room_for_is_refused(rows: int, blocks: int) -> None:
    model = Model()
    graphs = make_graphs(model)
    with pytest.raises(ValueError, match=r"rows|blocks"):
        graphs.run(make_batch(list(range(rows)), blocks))
    assert model.ran == []


def test_closing_waits_then_lets_go_of_the_graphs_and_then_of_their_memory() -> None:
    tape, model = Tape(), Model()
    graphs = make_graphs(model, tape)
    for ids in ([1], [1], [1, 2], [1, 2]):
        outputs = graphs.run(make_batch(ids))
    memory = weakref.ref(outputs[0]._base), weakref.ref(graphs._buffers.tables)
    alive: list[bool] = []
    tape.at_reset = lambda: alive.append(all(tensor() is not None for tensor in memory))
    del outputs
    tape.log.clear()
    graphs.close()
    assert tape.log == ["wait", "reset", "reset"]
    assert alive == [True, True]
    assert [tensor() for tensor in memory] == [None, None]
    with pytest.raises(AssertionError, match="closed"):
        graphs.run(make_batch([1]))


@pytest.mark.gpu
def test_a_cuda_graph_replays_on_new_inputs_and_its_memory_comes_back() -> None:
    import torch

    from hotswap.engine.graphs import DecodeGraphs, recorder_on

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    weight = torch.randn(256, 256, device=device)

    def step(batch: Any) -> tuple[Any, ...]:
        mixed = batch.ids[:, None].float().expand(-1, 256) @ weight
        return batch.ids * WEIGHT + batch.tables[:, 1], batch.positions + batch.slots, mixed

    def memory() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    for round_ in range(2):
        before = memory()
        graphs = DecodeGraphs(
            step, max_rows=6, max_blocks=4, device=device, recorder=recorder_on(device)
        )
        for ids in ([5], [6], [7], [1, 2, 3], [4, 5, 6], [7, 8, 9], [8]):
            outputs = graphs.run(make_batch(ids))
            assert lists(outputs[:2]) == Model.expected(ids)
            wanted = torch.tensor(ids, device=device)[:, None].float().expand(-1, 256) @ weight
            torch.testing.assert_close(outputs[2], wanted)
        assert graphs.recorded == (1, 4)
        del outputs, wanted
        graphs.close()
        if round_:  # cuBLAS keeps the work space of the first
            assert memory() <= before
