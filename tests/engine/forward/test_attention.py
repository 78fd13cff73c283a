from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.engine.blocks import BLOCK_TOKENS, BlockTable

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.forward.scores import AttentionOptions

pytestmark = pytest.mark.torch

SCALE = 0.3
BLOCKS = 64
EVEN = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], 2: [8, 9, 10, 11], 3: [12, 13, 14, 15]}
"""Neighbours at equal distances."""
UNEVEN = {0: [3, 4, 5, 6], 1: [12, 13, 14, 15], 2: [20, 21, 22, 23], 3: [60, 61, 62, 63]}
SCATTERED = {0: [9, 2, 30, 31], 1: [8, 40, 7, 39], 2: [63, 62, 1, 0], 3: [20, 21, 11, 50]}
PLACES = {"even": EVEN, "uneven": UNEVEN, "scattered": SCATTERED}

Step = list[tuple[int, int, int]]
"""Sequence, first position, one after the last."""

STEPS: list[Step] = [
    [(0, 0, 9), (1, 0, 20)],
    [(0, 9, 10), (1, 20, 37), (2, 0, 33)],
    [(0, 10, 11), (1, 37, 38), (2, 33, 35), (3, 0, 1)],
    *([(0, 11 + i, 12 + i), (1, 38 + i, 39 + i), (2, 35 + i, 36 + i)] for i in range(4)),
    [(3, 1, 17), (2, 39, 40)],
    *(
        [(n, start + i, start + i + 1) for n, start in enumerate((15, 42, 40, 17))]
        for i in range(4)
    ),
]
"""Whole prompts, pieces of them, decoding alone and beside them, lengths that lie far apart."""


@dataclass(frozen=True)
class Heads:
    queries: int = 4
    groups: int = 2
    size: int = 8
    value_size: int = 8


class Sequences:
    """Queries, keys and values of some sequences, [positions, heads, size]."""

    def __init__(self, heads: Heads, dtype: str = "float32", positions: int = 50) -> None:
        import torch

        self.heads = heads
        dice = torch.Generator().manual_seed(heads.queries + heads.value_size)
        shapes = (
            (heads.queries, heads.size),
            (heads.groups, heads.size),
            (heads.groups, heads.value_size),
        )
        self.rows: dict[int, tuple[Tensor, ...]] = {
            number: tuple(
                torch.randn(positions, *shape, generator=dice).to(getattr(torch, dtype))
                for shape in shapes
            )
            for number in range(len(EVEN))
        }

    def wanted(self, number: int, position: int, options: AttentionOptions) -> Tensor:
        """Attention written out for one position, head by head: [heads, value size], float64."""
        import torch

        query, keys, values = (tensor.double() for tensor in self.rows[number])
        first = 0 if options.window is None else max(0, position - options.window + 1)
        seen = slice(first, position + 1)
        heads = []
        for head in range(self.heads.queries):
            group = head // (self.heads.queries // self.heads.groups)
            scores = keys[seen, group] @ query[position, head] * options.scale
            if options.softcap is not None:
                scores = options.softcap * torch.tanh(scores / options.softcap)
            if options.sinks is not None:
                scores = torch.cat([scores, options.sinks[head : head + 1].double()])
            weights = scores.softmax(-1)[: position + 1 - first]
            heads.append(weights @ values[seen, group])
        return torch.stack(heads)


def table(blocks: list[int]) -> BlockTable:
    made = BlockTable()
    made.extend(blocks)
    return made


class Attending:
    """Steps over one pool, in which others have left their keys and values."""

    def __init__(self, sequences: Sequences, places: dict[int, list[int]]) -> None:
        import torch

        from hotswap.engine.kv_pool import KVPool

        self.sequences = sequences
        self.layer = 3
        self.tables = {number: table(blocks) for number, blocks in places.items()}
        self.pool = KVPool(torch.device("cpu"), BLOCKS)
        _, keys, values = sequences.rows[0]
        for left in self.pool.layer(self.layer, keys, values):
            left.normal_(std=50.0, generator=torch.Generator().manual_seed(0))

    def step(self, step: Step, options: AttentionOptions) -> dict[tuple[int, int], Tensor]:
        """By sequence and position: [heads, value size]."""
        import torch

        from hotswap.engine.forward.attention import FlatStep
        from hotswap.engine.forward.base import Segment
        from hotswap.engine.forward.layout import in_order

        segments = in_order(
            Segment(number, [0] * (end - start), start, True, self.tables[number])
            for number, start, end in step
        )
        whose = [(s.sequence, s.start + i) for s in segments for i in range(len(s.ids))]
        query, key, value = (
            torch.stack([self.sequences.rows[number][kind][at] for number, at in whose])
            for kind in range(3)
        )
        flat = FlatStep(self.pool, segments, torch.device("cpu"))
        out = flat.attend(self.layer, query, key, value, options)
        return dict(zip(whose, out, strict=True))


def options_of(window: int | None = None, extra: str = "none") -> AttentionOptions:
    import torch

    from hotswap.engine.forward.scores import AttentionOptions

    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if extra == "sinks" else None
    return AttentionOptions(SCALE, window, 2.0 if extra == "softcap" else None, sinks)


def check(
    attending: Attending,
    options: AttentionOptions,
    tolerance: float = 1e-5,
    steps: list[Step] = STEPS,
) -> None:
    import torch

    for step in steps:
        for (number, position), got in attending.step(step, options).items():
            wanted = attending.sequences.wanted(number, position, options)
            torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
def test_a_token_attends_to_its_own_sequence_only(
    extra: str, window: int | None, places: str
) -> None:
    check(Attending(Sequences(Heads()), PLACES[places]), options_of(window, extra))


@pytest.mark.parametrize("places", ["even", "scattered"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "heads",
    [Heads(groups=4), Heads(groups=1), Heads(6, 3, 16, 16), Heads(4, 2, 8, 12), Heads(6, 2, 12, 4)],
    ids=["one to one", "one group", "wider", "wider values", "narrower values"],
)
def test_heads_of_any_number_and_size(heads: Heads, window: int | None, places: str) -> None:
    check(Attending(Sequences(heads), PLACES[places]), options_of(window))


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
def test_half_precision_is_about_right(extra: str, dtype: str, places: str) -> None:
    check(Attending(Sequences(Heads(), dtype), PLACES[places]), options_of(None, extra), 3e-2)


@pytest.mark.parametrize("places", PLACES)
def test_a_step_that_is_taken_again_gives_the_same(places: str) -> None:
    """As after one that ran out of memory half way."""
    attending = Attending(Sequences(Heads()), PLACES[places])
    check(attending, options_of(), steps=[step for step in STEPS for _ in range(2)])


def test_a_shared_beginning_is_read_where_it_lies() -> None:
    """What others computed, in blocks of theirs and behind other blocks of one's own."""
    attending = Attending(Sequences(Heads()), EVEN)
    rows, options = attending.sequences.rows, options_of()
    for own, shared in zip(rows[1], rows[0], strict=True):
        own[: 2 * BLOCK_TOKENS] = shared[: 2 * BLOCK_TOKENS]
    attending.step([(0, 0, 40)], options)
    attending.tables[1] = table([0, 1, 30, 12])
    check(
        attending,
        options,
        steps=[[(1, 32, 39), (0, 40, 41)], [(1, 39, 40), (0, 41, 42), (2, 0, 4)], [(1, 40, 50)]],
    )


@pytest.mark.parametrize("window", [None, 5, 36])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
def test_sequences_that_begin_alike_decode_side_by_side(extra: str, window: int | None) -> None:
    attending, options = Attending(Sequences(Heads()), EVEN), options_of(window, extra)
    rows = attending.sequences.rows
    for number in (1, 2, 3):
        for own, shared in zip(rows[number], rows[0], strict=True):
            own[: 2 * BLOCK_TOKENS] = shared[: 2 * BLOCK_TOKENS]
        attending.tables[number] = table([0, 1, 20 + 2 * number, 21 + 2 * number])
    prompts: list[Step] = [[(0, 0, 40)], [(1, 32, 33), (2, 32, 36), (3, 32, 45)]]
    decodes: list[Step] = [
        [(0, 40 + i, 41 + i), (1, 33 + i, 34 + i), (2, 36 + i, 37 + i), (3, 45 + i, 46 + i)]
        for i in range(5)
    ]
    check(attending, options, steps=prompts + decodes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
@pytest.mark.parametrize("shared", [0, 1])
def test_what_somebody_computed_of_nan_is_no_harm_to_those_who_come_after(
    shared: int, extra: str, value: float
) -> None:
    """A shorter sequence of a group lies in his blocks, and is looked at beyond its end."""
    attending, options = Attending(Sequences(Heads()), EVEN), options_of(None, extra)
    rows = attending.sequences.rows
    for poisoned in rows[3][1:]:
        poisoned.fill_(value)
    attending.tables[3] = table(EVEN[1])
    attending.step([(3, 0, 50)], options)
    beginning = shared * BLOCK_TOKENS
    for own, other in zip(rows[1], rows[0], strict=True):
        own[:beginning] = other[:beginning]
    attending.tables[0] = table([20] * shared + EVEN[0])
    attending.tables[1] = table([20] * shared + EVEN[1])
    prompts: list[Step] = [[(0, 0, 40)], [(1, beginning, beginning + 9)]]
    decodes: list[Step] = [
        [(0, 40 + i, 41 + i), (1, beginning + 9 + i, beginning + 10 + i)] for i in range(4)
    ]
    check(attending, options, steps=prompts + decodes)


def test_of_scattered_keys_only_those_in_the_window_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    copied: list[int] = []
    join = torch.cat

    def noted(tensors: list[Tensor], dim: int = 0) -> Tensor:
        out = join(tensors, dim=dim)
        if dim == 2:
            copied.append(out.shape[2])
        return out

    attending, options = Attending(Sequences(Heads()), SCATTERED), options_of(5)
    attending.step([(0, 0, 40)], options)
    monkeypatch.setattr(torch, "cat", noted)
    check(attending, options, steps=[[(0, 40, 41)], [(0, 41, 48)]])
    # Keys and values: the token with the four before it, then seven with the four before them.
    assert copied == [5, 5, 11, 11]


def test_layers_do_not_mix() -> None:
    attending = Attending(Sequences(Heads()), EVEN)
    attending.step([(0, 0, 20)], options_of())
    other = Attending(attending.sequences, SCATTERED)
    other.pool, other.layer = attending.pool, 4
    other.step([(0, 0, 20), (1, 0, 20)], options_of())
    check(attending, options_of(), steps=[[(0, 20, 21)]])


def test_a_step_knows_its_longest_sequence_and_what_is_sampled() -> None:
    import torch

    from hotswap.engine.forward.attention import FlatStep
    from hotswap.engine.forward.base import Segment
    from hotswap.engine.kv_pool import KVPool

    def step(*segments: Segment) -> FlatStep:
        return FlatStep(KVPool(torch.device("cpu"), BLOCKS), segments, torch.device("cpu"))

    decoding = Segment(0, [5], 20, True, table([0, 1]))
    prompt = Segment(1, [7, 8, 9], 3, True, table([4]))
    mixed = step(decoding, prompt)
    assert mixed.longest == 21
    assert mixed.ids.tolist() == [5, 7, 8, 9]
    assert mixed.positions.tolist() == [20, 3, 4, 5]
    assert mixed.sampled is not None
    assert mixed.sampled.tolist() == [0, 3]
    assert step(decoding).sampled is None
    silent = step(Segment(1, [7], 3, False, table([4])))
    assert silent.sampled is not None
    assert silent.sampled.tolist() == []


@pytest.mark.parametrize("wish", [{"position_bias": 1}, {"is_causal": False}, {"indices": [1]}])
def test_wishes_that_are_not_known_are_refused(wish: dict[str, Any]) -> None:
    import torch

    from hotswap.engine.forward.base import UnsupportedForward
    from hotswap.engine.forward.flat import attend

    layer: Any = SimpleNamespace(layer_idx=0)
    row = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnsupportedForward):
        attend(layer, row, row, row, None, **wish)
