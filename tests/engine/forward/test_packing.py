from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hotswap.engine.forward.linear import Linear
    from hotswap.engine.forward.packing import Packing
    from hotswap.engine.forward.skeleton import Skeleton

pytestmark = pytest.mark.torch

HIDDEN, VOCAB = 16, 40
PACKED = 9
"""Weights of the skeleton below: four in each of two layers, and the head."""
SHAPES = 4
"""Of those weights: two of them have the same."""
STEPS = PACKED + SHAPES + 1
"""The last one drops the pages of the plain weights."""


def linear_of(*rows: int, width: int = HIDDEN) -> Linear:
    import torch

    from hotswap.engine.forward.linear import Linear

    return Linear([(torch.ones(count, width, dtype=torch.bfloat16), None) for count in rows])


def skeleton_of(*, experts: bool = False) -> Skeleton:
    """Two layers; the second one with experts or as the first."""
    import torch

    from hotswap.engine.forward.skeleton import (
        Attention,
        Experts,
        GatedMLP,
        Layer,
        Norm,
        Rope,
        Skeleton,
    )

    norm = Norm(torch.ones(HIDDEN), 1e-6)
    rope = Rope(lambda length: (torch.ones(length, 8), torch.zeros(length, 8)), 8)

    def layer(mlp: GatedMLP | Experts) -> Layer:
        attention = Attention(
            qkv=linear_of(16, 8, 8),
            out=linear_of(HIDDEN),
            heads=2,
            groups=1,
            size=8,
            scale=1.0,
            rope=rope,
        )
        return Layer(
            attention=attention,
            mlp=mlp,
            before_attention=norm,
            after_attention=None,
            before_mlp=norm,
            after_mlp=None,
        )

    def gated() -> GatedMLP:
        return GatedMLP(
            gate_up=linear_of(16, 16), down=linear_of(HIDDEN, width=24), activation="silu"
        )

    choice = Experts(
        router=linear_of(4),
        gate_up=torch.ones(4, 16, HIDDEN),
        down=torch.ones(4, HIDDEN, 8),
        chosen=2,
        normalised=False,
        activation="silu",
    )
    return Skeleton(
        embedding=torch.ones(VOCAB, HIDDEN),
        embedding_scale=None,
        layers=(layer(gated()), layer(choice if experts else gated())),
        norm=norm,
        head=linear_of(VOCAB),
        softcap=None,
    )


def linears(skeleton: Skeleton) -> list[Linear]:
    from hotswap.engine.forward.skeleton import GatedMLP

    found = [skeleton.head]
    for layer in skeleton.layers:
        found += [layer.attention.qkv, layer.attention.out]
        if isinstance(layer.mlp, GatedMLP):
            found += [layer.mlp.gate_up, layer.mlp.down]
    return found


class Seen:
    """What packing did besides, in the order of its steps."""

    def __init__(self) -> None:
        self.tuned: list[list[Linear]] = []
        self.dropped: list[list[tuple[int, int]]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every weight can be packed, whatever this processor is."""
    from torch.nn import functional

    from hotswap.engine.forward import linear, packing

    def product(image: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        return partial(functional.linear, weight=image, bias=bias)

    def tune(alike: Sequence[Linear]) -> None:
        noted.tuned.append(list(alike))
        linear.tune(alike)

    noted = Seen()
    monkeypatch.setattr(linear, "_image", lambda weight: weight.clone())
    monkeypatch.setattr(linear, "_product", product)
    monkeypatch.setattr(packing, "tune", tune)
    monkeypatch.setattr(packing, "drop_file_pages", noted.dropped.append)
    return noted


def packing_of(skeleton: Skeleton) -> Packing:
    from hotswap.engine.forward.packing import Packing

    return Packing(skeleton)


def test_one_weight_a_step_the_head_first(seen: Seen) -> None:
    skeleton = skeleton_of()
    packing = packing_of(skeleton)
    for steps in range(1, PACKED + 1):
        assert packing.step()
        packed = [linear.packed for linear in linears(skeleton)]
        assert packed == [number < steps for number in range(PACKED)]
    assert seen.tuned == []
    assert seen.dropped == []


def test_then_each_shape_is_tuned_once_and_pages_are_dropped_at_last(seen: Seen) -> None:
    skeleton = skeleton_of()
    # As gate_up of both layers.
    assert (skeleton.layers[0].attention.qkv.rows, skeleton.head.rows) == (32, VOCAB)
    places = [
        (weight.data_ptr(), weight.nbytes)
        for linear in linears(skeleton)
        for weight, _ in linear._parts
    ]
    packing = packing_of(skeleton)
    for _ in range(PACKED):
        packing.step()
    for steps in range(1, SHAPES + 1):
        assert packing.step()
        assert len(seen.tuned) == steps
        assert seen.dropped == []
    first, second = skeleton.layers
    head, narrow, out, down = seen.tuned
    assert head == [skeleton.head]
    assert narrow == [x for x in linears(skeleton) if (x.rows, x.width) == (32, HIDDEN)]
    assert len(narrow) == 4
    assert out == [first.attention.out, second.attention.out]
    assert {x.width for x in down} == {24}
    assert packing.step()
    assert seen.dropped == [places]
    assert [packing.step(), packing.step()] == [False, False]
    assert len(seen.tuned) == SHAPES
    assert len(seen.dropped) == 1


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_a_second_packing_goes_on_where_the_first_one_stopped(seen: Seen, steps: int) -> None:
    skeleton = skeleton_of()
    every = linears(skeleton)
    packing = packing_of(skeleton)
    assert packing.bytes == sum(linear.bytes for linear in every)
    for _ in range(steps):
        assert packing.step()
    second = packing_of(skeleton)
    assert second.bytes == sum(linear.bytes for linear in every[steps:])
    further = 0
    while second.step():
        further += 1
    left = max(PACKED + SHAPES - steps, 0)
    drops = steps < PACKED
    assert further == left + drops
    tuned = [id(linear) for alike in seen.tuned for linear in alike]
    assert sorted(tuned) == sorted(map(id, every)), "all of them, none of them twice"
    assert not any(linear.tunable for linear in every)
    assert second.bytes == 0


def test_where_nothing_can_be_packed_parts_are_joined_and_nothing_is_tuned(
    monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    from hotswap.engine.forward import linear

    monkeypatch.setattr(linear, "_image", lambda weight: None)
    skeleton = skeleton_of()
    joined = [
        (weight.data_ptr(), weight.nbytes)
        for linear in linears(skeleton)
        if len(linear._parts) > 1
        for weight, _ in linear._parts
    ]
    packing = packing_of(skeleton)
    while packing.step():
        pass
    assert all(linear.packed for linear in linears(skeleton))
    assert seen.tuned == []
    assert seen.dropped == [joined]


# -- out of memory ---------------------------------------------------------------------------

OUT_OF_MEMORY = (
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
)


def packed_in(skeleton: Skeleton) -> int:
    return sum(linear.packed for linear in linears(skeleton))


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["host", "torch"])
def test_packing_ends_quietly_where_memory_is_short_and_goes_on_another_time(
    seen: Seen,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def short() -> None:
        raise error

    skeleton = skeleton_of()
    packing = packing_of(skeleton)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(linears(skeleton)[2], "pack", short)
        assert [packing.step() for _ in range(4)] == [True, True, False, False]
    assert packed_in(skeleton) == 2
    assert caplog.text.count("no memory") == 1
    again = packing_of(skeleton)
    for _ in range(PACKED - 2):
        assert again.step()
    assert packed_in(skeleton) == PACKED
    assert seen.tuned == []


def test_packing_leaves_memory_free(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    from hotswap.engine.forward import packing as module

    skeleton = skeleton_of()
    head = skeleton.head.bytes
    free = iter([head + (256 << 20), (256 << 20) - 1])
    monkeypatch.setattr(module, "free_host_bytes", lambda: next(free))
    packing = packing_of(skeleton)
    assert [packing.step() for _ in range(3)] == [True, False, False]
    assert [linear.packed for linear in linears(skeleton)] == [True] + [False] * (PACKED - 1)
    assert seen.tuned == []


@pytest.mark.usefixtures("seen")
def test_other_errors_of_packing_are_not_kept_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("not a matrix")

    skeleton = skeleton_of()
    monkeypatch.setattr(skeleton.head, "pack", broken)
    with pytest.raises(RuntimeError, match="not a matrix"):
        packing_of(skeleton).step()


def test_experts_stay_as_they_are(seen: Seen) -> None:
    from hotswap.engine.forward.skeleton import Experts

    skeleton = skeleton_of(experts=True)
    packing = packing_of(skeleton)
    assert packing.bytes == sum(linear.bytes for linear in linears(skeleton))
    while packing.step():
        pass
    mlp = skeleton.layers[1].mlp
    assert isinstance(mlp, Experts)
    assert not mlp.router.packed
    assert all(linear.packed for linear in linears(skeleton))
    assert mlp.router not in [linear for alike in seen.tuned for linear in alike]
