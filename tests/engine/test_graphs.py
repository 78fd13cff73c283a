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

    def other_step(self, batch: Any) -> tuple[Any, ...]:
        return tuple(-output for output in self.step(batch))

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

    from hotswap.engine.graphs import DecodeGraphs, StepKind

    return DecodeGraphs(
        {StepKind.GREEDY: model.step, StepKind.DRAWN: model.other_step},
        max_rows=max_rows,
        max_blocks=4,
        device=torch.device("cpu"),
        recorder=recorder,
    )


def run(graphs: Any, batch: Any, kind: str = "GREEDY") -> Any:
    from hotswap.engine.graphs import StepKind

    return graphs.run(batch, StepKind[kind])


def recorded(graphs: Any, kind: str = "GREEDY") -> tuple[int, ...]:
    from hotswap.engine.graphs import StepKind

    sizes: tuple[int, ...] = graphs.recorded(StepKind[kind])
    return sizes


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
        assert lists(run(graphs, make_batch(ids))) == Model.expected(ids)


def test_without_a_recorder_a_step_is_run_each_time_on_the_padded_rows() -> None:
    model = Model()
    graphs = make_graphs(model)
    for ids in ([1], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5]):
        run(graphs, make_batch(ids))
    assert model.ran == [1, 4, 4, 6]
    assert recorded(graphs) == ()


def test_rows_of_a_larger_batch_before_are_padding_again() -> None:
    model = Model()
    graphs = make_graphs(model)
    run(graphs, make_batch([1, 2, 3, 4]))
    run(graphs, make_batch([5, 6, 7], blocks=2))
    assert model.padding_seen == [([], []), ([-1], [3])]


def test_a_size_is_rehearsed_then_recorded_then_replayed() -> None:
    tape, model = Tape(), Model()
    graphs = make_graphs(model, tape)
    for _ in range(4):
        run(graphs, make_batch([1]))
    assert tape.log == ["rehearse", "record", "replay", "replay", "replay"]
    assert recorded(graphs) == (1,)
    run(graphs, make_batch([1, 2]))
    assert tape.log[5:] == ["rehearse"]
    for _ in range(2):
        run(graphs, make_batch([1, 2, 3, 4]))
    assert recorded(graphs) == (1, 4)


def test_inputs_lie_at_the_same_place_for_all_batches() -> None:
    model = Model()
    graphs = make_graphs(model, Tape())
    for ids in ([1], [1, 2], [1], [3, 4, 5], [3, 4, 5, 6, 7]):
        run(graphs, make_batch(ids))
    assert len(model.addresses) == 1


def test_outputs_may_be_the_inputs_of_the_next_step() -> None:
    """One step ahead: the tokens never leave the device."""
    from dataclasses import replace

    graphs = make_graphs(Model(), Tape())
    ids = [2, 3]
    batch = make_batch(ids)
    for _ in range(4):
        tokens, _ = run(graphs, batch)
        ids = [n * WEIGHT + 21 + 10 * i for i, n in enumerate(ids)]
        ids = [n % 97 for n in ids]
        assert (tokens % 97).tolist() == ids
        batch = replace(batch, ids=tokens.remainder_(97))


def test_a_recording_that_fails_is_told_and_leaves_nothing_behind() -> None:
    tape = Tape()
    graphs = make_graphs(Model(), tape)
    run(graphs, make_batch([1]))
    tape.broken = True
    with pytest.raises(RuntimeError, match="capturing"):
        run(graphs, make_batch([1]))
    assert recorded(graphs) == ()
    tape.broken = False
    assert lists(run(graphs, make_batch([7]))) == Model.expected([7])


def test_each_kind_of_step_has_graphs_of_its_own() -> None:
    tape = Tape()
    graphs = make_graphs(Model(), tape)
    for _ in range(2):
        for ids in ([1], [2, 3], [4]):
            wanted = Model.expected(ids)
            assert lists(run(graphs, make_batch(ids), "GREEDY")) == wanted
            negative = tuple([-number for number in numbers] for numbers in wanted)
            assert lists(run(graphs, make_batch(ids), "DRAWN")) == negative
    assert recorded(graphs, "GREEDY") == recorded(graphs, "DRAWN") == (1, 2)
    assert tape.log.count("rehearse") == tape.log.count("record") == 4


def test_graphs_of_one_kind_are_forgotten_and_begun_anew_without_those_of_the_other() -> None:
    from hotswap.engine.graphs import StepKind

    tape = Tape()
    graphs = make_graphs(Model(), tape)
    graphs.forget(StepKind.DRAWN)
    assert tape.log == []
    for kind in ("GREEDY", "DRAWN"):
        for ids in ([1], [1], [2, 3], [2, 3], [4, 5, 6]):
            run(graphs, make_batch(ids), kind)
    tape.log.clear()
    graphs.forget(StepKind.DRAWN)
    assert tape.log == ["wait", "reset", "reset"]
    assert recorded(graphs, "GREEDY") == (1, 2)
    assert recorded(graphs, "DRAWN") == ()
    tape.log.clear()
    run(graphs, make_batch([1]), "GREEDY")
    for ids in ([7], [8], [1, 2, 3]):
        [negative, _] = lists(run(graphs, make_batch(ids), "DRAWN"))
        assert negative == [-number for number in Model.expected(ids)[0]]
    assert tape.log == ["replay", "rehearse", "record", "replay", "rehearse"]


@pytest.mark.parametrize(("rows", "blocks"), [(0, 3), (7, 3), (1, 5)])
def test_what_there_is_no_room_for_is_refused(rows: int, blocks: int) -> None:
    model = Model()
    graphs = make_graphs(model)
    with pytest.raises(ValueError, match=r"rows|blocks"):
        run(graphs, make_batch(list(range(rows)), blocks))
    assert model.ran == []


def test_closing_waits_then_lets_go_of_the_graphs_and_then_of_their_memory() -> None:
    tape, model = Tape(), Model()
    graphs = make_graphs(model, tape)
    for ids in ([1], [1], [1, 2], [1, 2]):
        outputs = run(graphs, make_batch(ids))
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
        run(graphs, make_batch([1]))


@pytest.mark.gpu
def test_a_cuda_graph_replays_on_new_inputs_and_its_memory_comes_back() -> None:
    import torch

    from hotswap.engine.device import release_cached
    from hotswap.engine.graphs import DecodeGraphs, StepKind, recorder_on

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    weight = torch.randn(256, 256, device=device)

    def step(batch: Any) -> tuple[Any, ...]:
        mixed = batch.ids[:, None].float().expand(-1, 256) @ weight
        return batch.ids * WEIGHT + batch.tables[:, 1], batch.positions + batch.slots, mixed

    def memory() -> int:
        release_cached(device)  # cuBLAS has work space for each stream that it met
        return torch.cuda.memory_allocated()

    for _ in range(2):
        before = memory()
        graphs = DecodeGraphs(
            {StepKind.GREEDY: step},
            max_rows=6,
            max_blocks=4,
            device=device,
            recorder=recorder_on(device),
        )
        for ids in ([5], [6], [7], [1, 2, 3], [4, 5, 6], [7, 8, 9], [8]):
            outputs = run(graphs, make_batch(ids))
            assert lists(outputs[:2]) == Model.expected(ids)
            wanted = torch.tensor(ids, device=device)[:, None].float().expand(-1, 256) @ weight
            torch.testing.assert_close(outputs[2], wanted)
        assert recorded(graphs) == (1, 4)
        del outputs, wanted
        graphs.close()
        assert memory() == before


@pytest.mark.gpu
def test_all_cuda_graphs_may_be_forgotten_and_recorded_anew() -> None:
    """Torch does not open a memory pool again whose last graph is gone."""
    import torch

    from hotswap.engine.graphs import DecodeGraphs, StepKind, recorder_on

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    graphs = DecodeGraphs(
        {StepKind.GREEDY: _on_device_only, StepKind.DRAWN: _on_device_only},
        max_rows=6,
        max_blocks=4,
        device=device,
        recorder=recorder_on(device),
    )
    for kinds in (("DRAWN",), ("DRAWN", "GREEDY"), ("DRAWN",)):
        for kind in kinds:
            for ids in ([5], [6], [1, 2, 3], [4, 5, 6], [7]):
                assert lists(run(graphs, make_batch(ids), kind)) == Model.expected(ids)
            assert recorded(graphs, kind) == (1, 4)
        graphs.forget(StepKind.DRAWN)
    assert recorded(graphs, "GREEDY") == (1, 4)
    assert lists(run(graphs, make_batch([9]))) == Model.expected([9])
    graphs.close()


def _on_device_only(batch: Any) -> tuple[Any, ...]:
    """`Model.step` without what it notes, which needs the host."""
    return batch.ids * WEIGHT + batch.tables[:, 1], batch.positions + batch.slots
