"""From how many tokens on which way is the faster one: measured once for a shape and a machine.

What was measured is kept beside the compiled loops. So a model is not slower to load for it the
next time, and answers the same after a restart: the ways round differently.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from hotswap.engine.blocks import BLOCK_TOKENS, BlockPool, BlockTable
from hotswap.engine.forward.base import Segment
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.linear import Linear
from hotswap.engine.forward.skeleton import GatedMLP, Layer, Skeleton
from hotswap.engine.jit import cache_dir
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native.decode import NativeDecode
from hotswap.engine.native.description import MOST_TOKENS
from hotswap.engine.wide import half_is_slow, half_precision_products

_log = logging.getLogger(__name__)

_WEIGHT_BYTES = 256 << 20
"""Of layers that are measured: so many that they come from memory, as in a whole step."""
_TRIES = 3
_FEW = 1, 2, 4, 8, 16
_MANY = 8, 16, 32, 64, MOST_TOKENS
_NEVER = MOST_TOKENS + 1


@dataclass(frozen=True, slots=True)
class Tuning:
    matrices_from: int
    """Tokens in a step from which on the processor's matrices are faster than its vectors."""
    prompt_tokens: int
    """Of prompts in a step, up to which the loops are faster than torch."""


def tuning_of(skeleton: Skeleton, threads: int) -> Tuning:
    """Raises: UnsupportedForward; where nothing is known: the loops do not know something that the
    skeleton has."""
    place = cache_dir() / f"tuning-{_shape(skeleton, threads)}.json"
    known = _read(place)
    if known is None:
        known = _measure(skeleton, threads)
        _write(place, known)
    return known


def _shape(skeleton: Skeleton, threads: int) -> str:
    """Names all that the time of a step depends on."""
    weights = [list(weight.shape) for layer in skeleton.layers[:1] for weight in _weights(layer)]
    attention = skeleton.layers[0].attention
    heads = attention.heads, attention.groups, attention.size
    kind = str(skeleton.embedding.dtype), torch.__version__, half_is_slow()
    described = weights, heads, len(skeleton.layers), *kind, threads
    return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def _read(place: Path) -> Tuning | None:
    """None: there is none, or it makes no sense."""
    try:
        numbers = json.loads(place.read_text())
        known = Tuning(int(numbers["matrices_from"]), int(numbers["prompt_tokens"]))
        if not (1 <= known.matrices_from <= _NEVER and 0 <= known.prompt_tokens <= MOST_TOKENS):
            raise ValueError("out of range")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        _log.warning("%s is measured again: %r", place, error)
        return None
    return known


def _write(place: Path, tuning: Tuning) -> None:
    """In one go: another process may be reading."""
    beside = place.with_suffix(f".{time.monotonic_ns()}")
    try:
        beside.write_text(json.dumps(asdict(tuning)))
        beside.replace(place)
    except OSError as error:
        _log.warning("%s cannot be kept, it will be measured again: %s", place, error)


def _measure(skeleton: Skeleton, threads: int) -> Tuning:
    part = replace(skeleton, layers=tuple(_some(skeleton.layers)))
    table, blocks = BlockTable(), BlockPool(-(-MOST_TOKENS // BLOCK_TOKENS))
    blocks.grow(table, MOST_TOKENS)
    pool = KVPool(skeleton.embedding.device, blocks.count)
    lean = LeanForward(part, pool)
    loops = NativeDecode(part, pool, threads, matrices_from=_NEVER)
    with torch.inference_mode(), closing(lean), closing(loops):
        matrices_from = _matrices_from(loops, table) if loops.has_matrices else _NEVER
        loops.use_matrices_from(matrices_from)
        for tokens in reversed(_MANY):
            prompt = _prompt(table, tokens)
            if _is_faster(partial(loops.step, prompt), partial(_by_torch, lean, prompt)):
                return Tuning(matrices_from, tokens)
    return Tuning(matrices_from, 0)


def _by_torch(lean: LeanForward, prompt: list[Segment]) -> None:
    with half_precision_products(sum(len(segment.ids) for segment in prompt)):
        lean.logits(prompt)


def _matrices_from(loops: NativeDecode, table: BlockTable) -> int:
    """The least that they are faster for, as for all that is more."""

    def step(tokens: int, matrices_from: int) -> None:
        loops.use_matrices_from(matrices_from)
        loops.step(_prompt(table, tokens))

    least = _NEVER
    for tokens in reversed(_FEW):
        if not _is_faster(partial(step, tokens, 1), partial(step, tokens, _NEVER)):
            break
        least = tokens
    return least


def _prompt(table: BlockTable, tokens: int) -> list[Segment]:
    """Without logits: the head is one large weight, whose time would hide that of the others."""
    return [Segment(0, [0] * tokens, 0, False, table)]


def _is_faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """In turns, the best try of each; the first ones only warm up."""
    best = [float("inf")] * 2
    for attempt in range(_TRIES):
        for i, run in enumerate((one, other)):
            begun = time.perf_counter()
            run()
            if attempt:
                best[i] = min(best[i], time.perf_counter() - begun)
    return best[0] < best[1]


def _some(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """The first layers, until there are `_WEIGHT_BYTES` of weights."""
    total = 0
    for layer in layers:
        if total >= _WEIGHT_BYTES:
            return
        total += sum(weight.nbytes for weight in _weights(layer))
        yield layer


def _weights(layer: Layer) -> Iterator[torch.Tensor]:
    linears: list[Linear] = [layer.attention.qkv, layer.attention.out]
    if isinstance(layer.mlp, GatedMLP):
        linears += [layer.mlp.gate_up, layer.mlp.down]
    for linear in linears:
        for weight, _ in linear.parts:
            yield weight
