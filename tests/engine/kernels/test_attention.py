from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

pytestmark = pytest.mark.torch

Dice = Callable[..., Any]
BLOCK = 16


@dataclass(frozen=True)
class Batch:
    """Arguments of `paged_attention`. Whatever must not be read is NaN, or a block that is not
    there."""

    query: Any
    keys: Any
    values: Any
    tables: Any
    lengths: Any

    def attend(self, kernels: Any, **options: Any) -> Any:
        return kernels.paged_attention(
            self.query, self.keys, self.values, self.tables, self.lengths, scale=0.3, **options
        )


def make_batch(
    dice: Dice,
    lengths: Sequence[int],
    *,
    heads: int = 4,
    groups: int = 2,
    size: int = 24,
    value_size: int = 24,
    blocks: int = 7,
    dtype: Any = None,
) -> Batch:
    import torch

    dtype = dtype or torch.float32
    query = dice(len(lengths), heads, size, dtype=dtype)
    slots = (len(lengths) * blocks + 3) * BLOCK
    keys = torch.full((groups, slots, size), torch.nan, dtype=dtype, device=query.device)
    values = torch.full((groups, slots, value_size), torch.nan, dtype=dtype, device=query.device)
    shuffled = torch.randperm(slots // BLOCK, generator=torch.Generator().manual_seed(1))
    tables = torch.full((len(lengths), blocks), 1 << 30, dtype=torch.int32)
    for row, length in enumerate(lengths):
        used = -(-length // BLOCK)
        tables[row, :used] = shuffled[row * blocks : row * blocks + used]
        positions = torch.arange(length)
        own = tables[row, positions // BLOCK].long() * BLOCK + positions % BLOCK
        keys[:, own] = dice(groups, length, size, dtype=dtype)
        values[:, own] = dice(groups, length, value_size, dtype=dtype)
    numbers = torch.tensor(lengths, dtype=torch.int32, device=query.device)
    return Batch(query, keys, values, tables.to(query.device), numbers)


def assert_same(got: Any, wanted: Any) -> None:
    import torch

    # In bfloat16 the weights are rounded to 8 bits before they meet the values.
    tolerance = 2e-6 if got.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def by_hand(batch: Batch, row: int, head: int, **options: Any) -> Any:
    """One head of one row, one position after the other."""
    import torch

    length = int(batch.lengths[row])
    group = head // (batch.query.shape[1] // batch.keys.shape[0])
    first = max(0, length - (options.get("window") or length))
    scores, values = [], []
    for position in range(first, length):
        slot = int(batch.tables[row, position // BLOCK]) * BLOCK + position % BLOCK
        score = batch.query[row, head] @ batch.keys[group, slot] * 0.3
        softcap = options.get("softcap")
        scores.append(score if softcap is None else softcap * torch.tanh(score / softcap))
        values.append(batch.values[group, slot])
    if options.get("sinks") is not None:
        scores.append(options["sinks"][head])
        values.append(torch.zeros_like(batch.values[0, 0]))
    return torch.stack(scores).softmax(0) @ torch.stack(values)


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
def test_the_reference_is_attention_written_out(dice: Dice, window: int | None, extra: str) -> None:
    from hotswap.engine.kernels import reference

    batch = make_batch(dice, [1, 16, 33], value_size=8)
    options = {
        "window": window,
        "softcap": 2.0 if extra == "softcap" else None,
        "sinks": dice(4) if extra == "sinks" else None,
    }
    got = batch.attend(reference, **options)
    for row, head in itertools.product(range(3), range(4)):
        assert_same(got[row, head], by_hand(batch, row, head, **options))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_it_equals_the_reference_with_every_option(
    fused: Any,
    dice: Dice,
    *,
    dtype: str,
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
) -> None:
    import torch

    from hotswap.engine.kernels import reference

    sinks = dice(4) * 2 if with_sinks else None
    options = {"window": window, "softcap": softcap, "sinks": sinks}
    for lengths in ([0, 101, 17], [300]):  # one row is divided among splits, three are not
        batch = make_batch(dice, lengths, blocks=20, dtype=getattr(torch, dtype))
        assert_same(batch.attend(fused, **options), batch.attend(reference, **options))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "value_size"),
    [(1, 1, 8, 8), (3, 3, 16, 16), (8, 1, 80, 80), (14, 2, 64, 64), (20, 1, 24, 40), (6, 2, 96, 9)],
)
def test_it_equals_the_reference_whatever_the_heads(
    fused: Any, dice: Dice, *, dtype: str, heads: int, groups: int, size: int, value_size: int
) -> None:
    import torch

    from hotswap.engine.kernels import reference

    shape = {"heads": heads, "groups": groups, "size": size, "value_size": value_size}
    batch = make_batch(dice, [37], blocks=3, dtype=getattr(torch, dtype), **shape)
    assert_same(batch.attend(fused), batch.attend(reference))


@pytest.mark.parametrize("rows", [1, 6])
def test_lengths_at_the_borders_of_blocks_turns_and_splits(
    fused: Any, dice: Dice, rows: int
) -> None:
    """One row is divided among splits, six are not."""
    from hotswap.engine.kernels import reference

    borders = [0, 1, 15, 16, 17, 31, 32, 127, 128, 129, 255, 256, 257, 288]
    borders += [0] * (-len(borders) % rows)
    for start in range(0, len(borders), rows):
        lengths = borders[start : start + rows]
        batch = make_batch(dice, lengths, heads=2, groups=1, size=16, value_size=16, blocks=18)
        assert bool(batch.attend(fused).isfinite().all())
        assert_same(batch.attend(fused), batch.attend(reference))


def test_a_row_without_tokens_is_zero_even_with_sinks(fused: Any, dice: Dice) -> None:
    import torch

    for rows in (1, 5):
        batch = make_batch(dice, [0] * rows)
        for sinks in (None, dice(4)):
            assert torch.equal(batch.attend(fused, sinks=sinks), torch.zeros_like(batch.query))


def test_strided_queries_and_given_outputs(fused: Any, dice: Dice) -> None:
    import torch

    batch = make_batch(dice, [40, 9])
    wanted = batch.attend(fused)
    qkv = torch.cat([batch.query, dice(2, 4, 24)], dim=1)
    out = torch.full_like(qkv, torch.nan)
    strided = Batch(qkv[:, :4], batch.keys, batch.values, batch.tables, batch.lengths)
    scratch = fused.attention_scratch(batch.query, batch.values, batch.tables).fill_(torch.nan)
    got = strided.attend(fused, out=out[:, 1:5], scratch=scratch)
    assert got.data_ptr() == out[:, 1:5].data_ptr()
    assert torch.equal(got, wanted)
    assert bool(out[:, [0, 5, 6, 7]].isnan().all())


def test_what_does_not_fit_is_refused(fused: Any, dice: Dice) -> None:
    import torch

    batch = make_batch(dice, [40])
    query, keys, values = batch.query, batch.keys, batch.values
    cases: list[tuple[str, Batch, dict[str, Any]]] = [
        ("keys", Batch(query, keys[:, :, :8], values, batch.tables, batch.lengths), {}),
        ("values", Batch(query, keys, values.double(), batch.tables, batch.lengths), {}),
        ("tables", Batch(query, keys, values, batch.tables.long(), batch.lengths), {}),
        ("lengths", Batch(query, keys, values, batch.tables, batch.lengths.repeat(2)), {}),
        ("evenly", Batch(query[:, :3], keys, values, batch.tables, batch.lengths), {}),
        ("sinks", batch, {"sinks": dice(3)}),
        ("out", batch, {"out": query.bfloat16()}),
        ("scratch", batch, {"scratch": torch.empty(1, device=query.device)}),
        ("gaps", Batch(query, *(keys.mT.contiguous().mT,) * 2, batch.tables, batch.lengths), {}),
    ]
    for message, wrong, options in cases:
        with pytest.raises(ValueError, match=message):
            wrong.attend(fused, **options)


@pytest.mark.parametrize(
    ("programs", "blocks", "multiprocessors", "wanted"),
    [
        (8, 2560, 132, 32),  # one row of a model with 8 groups on an H200
        (16, 2560, 132, 16),
        (512, 2560, 132, 1),
        (1, 2560, 132, 64),
        (1, 4, 132, 4),
        (1, 0, 132, 1),
        (8, 3, 132, 2),
    ],
)
def test_splits_fill_the_device_and_no_more(
    fused: Any, programs: int, blocks: int, multiprocessors: int, wanted: int
) -> None:
    from hotswap.engine.kernels.attention import split_count

    assert split_count(programs, blocks, multiprocessors) == wanted
