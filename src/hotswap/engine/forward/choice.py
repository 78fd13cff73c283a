"""Which tier a model gets: the fastest one that computes what the plain model computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hotswap.engine.blocks import BlockPool, BlockTable
from hotswap.engine.device import is_out_of_memory
from hotswap.engine.forward.base import Forward, Segment, UnsupportedForward
from hotswap.engine.forward.cached import CachedForward
from hotswap.engine.forward.flat import FlatForward, expected_windows
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.reading import read
from hotswap.engine.forward.recorded import RecordedForward
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native.code import native_forward
from hotswap.engine.placement import Placement
from hotswap.engine.weights import Verdict
from hotswap.errors import CheckpointRefused

_log = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUGH_TOLERANCE = 6e-2
"""Of half-precision models, whose kernels round differently for different shapes."""

# One prompt is computed whole and then decodes, the other comes in pieces beside it.
_WHOLE, _PIECES = 0, 1
_STEPS = (
    ((_WHOLE, 0, 7), (_PIECES, 0, 5)),
    ((_WHOLE, 7, 8), (_PIECES, 5, 11)),
    ((_PIECES, 11, 12),),
)
_LENGTHS = {_WHOLE: 8, _PIECES: 12}


class _Tables:
    """Blocks for the sequences of the check."""

    def __init__(self) -> None:
        self._pool = BlockPool(len(_LENGTHS))
        self._tables = {name: BlockTable() for name in _LENGTHS}
        for name, length in _LENGTHS.items():
            self._pool.grow(self._tables[name], length)

    def __len__(self) -> int:
        return self._pool.count

    def segment(self, vocab: int, name: int, start: int, end: int) -> Segment:
        return Segment(name, _ids(vocab, name, start, end), start, True, self._tables[name])


def made(placed: Placement, known: Verdict, blocks: int) -> Forward:
    """The forward of a model that is known, with room for so many blocks."""
    make = _native if known.native else _TIERS[known.tier]
    return make(placed, KVPool(placed.device, blocks))


def choose(placed: Placement) -> tuple[Forward, Verdict]:
    """The forward to use, warmed up and seen to give numbers.

    Raises:
        CheckpointRefused: the weights hold NaN or infinities.
    """
    tables = _Tables()
    names = _LENGTHS if placed.whole else (_WHOLE,)  # those that something is compared with
    plain = {name: _plain(placed, name) for name in names}
    for logits in plain.values():
        _refuse_nan(logits)
    for make in (_native, _lean, _flat) if placed.whole else ():
        found = _if_exact(make, placed, plain, tables)
        if found is not None:
            native = make is _native
            return found, Verdict(found.tier, found.pool.token_bytes, 0, native)
    cached = _cached(placed)
    return cached, _measure(cached, placed.vocab)


def state_shares(placed: Placement) -> Mapping[torch.device, float]:
    """Which share of a sequence's keys, values and other state tier B has on each device."""
    return shares_of(*_states(_cached(placed), placed.vocab))


def shares_of(
    short: Mapping[torch.device, int], long: Mapping[torch.device, int]
) -> Mapping[torch.device, float]:
    """Of the state of a sequence of any length, at most.

    Args:
        short: Bytes of a sequence on each device.
        long: The same of one twice as long.
    """
    growing = {device: long[device] - short.get(device, 0) for device in long}
    fixed = {device: max(0, short.get(device, 0) - growing[device]) for device in long}
    parts = [part for part in (growing, fixed) if sum(part.values()) > 0]
    return {
        device: max((p[device] / sum(p.values()) for p in parts), default=0.0) for device in long
    }


def _native(placed: Placement, pool: KVPool) -> LeanForward:
    make = native_forward() if placed.device.type == "cpu" else None
    if make is None:
        raise UnsupportedForward("there are no compiled loops")
    return make(placed.skeleton or read(placed.model), pool)


def _lean(placed: Placement, pool: KVPool) -> LeanForward:
    skeleton = placed.skeleton or read(placed.model)
    if placed.device.type != "cuda":
        return LeanForward(skeleton, pool)
    forward = RecordedForward(skeleton, pool)
    # Its kernels are part of what is checked, recording them is not.
    forward.record(rows=len(_LENGTHS), tokens=max(_LENGTHS.values()), recorder=None)
    return forward


def _flat(placed: Placement, pool: KVPool) -> FlatForward:
    return FlatForward(placed.model, pool)


def _cached(placed: Placement) -> CachedForward:
    return CachedForward(placed.model, placed.device)


PooledForward = LeanForward | FlatForward

_TIERS: dict[str, Callable[[Placement, KVPool], Forward]] = {
    LeanForward.tier: _lean,
    FlatForward.tier: _flat,
    CachedForward.tier: lambda placed, _: _cached(placed),
}


def _plain(placed: Placement, name: int) -> Tensor:
    """Logits after each position by the model as it is: [length, vocab]."""
    ids = torch.tensor([_ids(placed.vocab, name, 0, _LENGTHS[name])], device=placed.device)
    output = placed.model(input_ids=ids, use_cache=False, return_dict=True)
    logits: Tensor = output.logits[0].float()
    return logits


def _if_exact(
    make: Callable[[Placement, KVPool], PooledForward],
    placed: Placement,
    plain: dict[int, Tensor],
    tables: _Tables,
) -> PooledForward | None:
    """The forward made; None: it does not compute what the plain model computes.

    Raises:
        Exception: there is no memory for it. What is found out stays true for as long as the
            process lives, and a lack of memory may not.
    """
    forward = None
    try:
        forward = make(placed, KVPool(placed.device, len(tables)))
        reason = _difference(forward, placed, plain, tables)
    except Exception as error:  # a model may break in any way when its parts are replaced
        if is_out_of_memory(error):
            if forward is not None:
                forward.close()
            raise
        reason = str(error) if isinstance(error, UnsupportedForward) else repr(error)
    if reason is None:
        return forward
    _log.info("%s is not for %s: %s", type(placed.model).__name__, make.__name__, reason)
    if forward is not None:
        forward.close()
    return None


def _difference(
    forward: Forward, placed: Placement, plain: dict[int, Tensor], tables: _Tables
) -> str | None:
    """What the forward does otherwise than the plain model; None: nothing."""
    tolerance = _TOLERANCE.get(placed.model.dtype, _ROUGH_TOLERANCE)
    for step in _STEPS:
        logits = forward.logits([tables.segment(placed.vocab, *part) for part in step])
        for (name, _, end), got in zip(step, logits, strict=True):
            wanted = plain[name][end - 1]
            scale = (wanted - wanted.mean()).abs().max()
            if not bool((got.float() - wanted).abs().max() <= tolerance * scale):
                return "its logits differ"
    # The prompts are too short to show what a window does, so its size is compared.
    if isinstance(forward, FlatForward) and forward.windows != expected_windows(placed.model):
        return "its layers do not ask for the windows of its configuration"
    return None


def _measure(forward: CachedForward, vocab: int) -> Verdict:
    """Bytes of state at two lengths tell the part that grows from the part that does not."""
    short, long = (sum(state.values()) for state in _states(forward, vocab))
    token_bytes = (long - short) // 4
    return Verdict(forward.tier, token_bytes, max(0, short - 4 * token_bytes))


def _states(
    forward: CachedForward, vocab: int
) -> tuple[Mapping[torch.device, int], Mapping[torch.device, int]]:
    """Bytes on each device of the state of a sequence of four tokens, and of one of eight."""
    tables, found = _Tables(), []
    for length in (4, 8):
        forward.logits([tables.segment(vocab, _WHOLE, 0, length)])
        found.append(forward.state_bytes_on)
        forward.drop(_WHOLE)
    short, long = found
    return short, long


def _ids(vocab: int, name: int, start: int, end: int) -> list[int]:
    """Some ids or other, different for each prompt."""
    return [(7919 * (position + 1) + 104729 * name) % vocab for position in range(start, end)]


def _refuse_nan(logits: Tensor) -> None:
    if not bool(logits.isfinite().all()):
        raise CheckpointRefused("The weights hold NaN or infinite values.")
