"""A model on the device: put there, made into an engine, taken off again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel

from hotswap.engine import device as devices
from hotswap.engine.arena import Layout
from hotswap.engine.blocks import BlockPool, Run
from hotswap.engine.blueprint import Blueprint
from hotswap.engine.device import is_out_of_memory, shown_bytes
from hotswap.engine.device_map import DEVICE_RESERVE_BYTES, divide, kv_limit
from hotswap.engine.device_memory import DeviceMemory
from hotswap.engine.engine import TorchEngine, is_device_lost
from hotswap.engine.fit import kv_room, need_of, spread_kv
from hotswap.engine.forward.base import Forward
from hotswap.engine.forward.cached import CachedForward
from hotswap.engine.forward.choice import PooledForward, choose, made, state_shares
from hotswap.engine.forward.lean import LeanForward
from hotswap.engine.forward.recorded import RecordedForward, StepSampler
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.graphs import recorder_on
from hotswap.engine.growth import Growth
from hotswap.engine.image import Abandoned, Imaging
from hotswap.engine.image import made as made_image
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.placement import Placement, place
from hotswap.engine.prepared import TorchPrepared
from hotswap.engine.rested import AtRest, Rested, Saved
from hotswap.engine.runner import ModelRunner
from hotswap.engine.sampler import Draws, sampler_on
from hotswap.engine.scheduler import KVBudget, Scheduler, SchedulerLimits
from hotswap.engine.spread import Spread
from hotswap.engine.upload import Upload
from hotswap.engine.weights import HostWeights, Known, Verdict
from hotswap.errors import (
    CheckpointRefused,
    DeviceLost,
    HotswapError,
    InsufficientMemory,
)

_log = logging.getLogger(__name__)

_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens computed in one step while nobody decodes."""
_STEP_TOKENS_BESIDE = {"cpu": 128, "cuda": 2048}
"""The same beside others that decode. On two cores 128 rows reach the arithmetic rate of 512."""
_SMALL_BYTES = 128 << 20
"""Of weights: a whole step of such a model on the CPU takes less than a tenth of a second, which
beside others counts less than that they are joined soon."""
_KEYS_OF_A_TOKEN = {"cpu": 1500, "cuda": None}
"""Measured on two cores with a 0.6B model; on a GPU it has not been."""
_REMEMBERED_SHARE = 0.75
"""Of the weights' size: how much of the keys and values of ended answers is kept for prompts that
begin like them, unless the settings say how much memory they may take. On a GPU the pool is there
anyway."""
_REMEMBERED_BYTES = 256 << 20
"""At least."""
_REMEMBERED_ONCE_SHARE = 1 / 32
"""The same of what no second prompt has begun with, beside what the last answer leaves."""
_REMEMBERED_ONCE_BYTES = 32 << 20
_WORTH_VACATING_BYTES = 16 << 20
"""Giving memory back takes milliseconds, and those of a small model count."""
_FIRST_KV_BYTES = 2 << 30
"""Of keys and values on a device with memory of its own; there is more when it is needed. An H100
took 47 ms to reserve 60 GiB in one piece and 44 to give them back: more than a small model's
weights need to get there."""
_LONG_WARM_UP_S = 5.0
_KV_AGAIN = 1.05
"""As much of that as the pool of a model that was there before may take: what is free is not the
same to the byte each time."""


class Stage:
    """`enter` and `leave` run on the device thread, `build` on the event loop between them."""

    def __init__(
        self,
        prepared: TorchPrepared,
        device: torch.device,
        memory: DeviceMemory | None = None,
        *,
        rested: Rested | None = None,
        ahead: Upload | None = None,
        image_room: int = 0,
        reclaim: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            memory: Of the device, if it has its own.
            rested: What the model goes on with; it is the stage's from now on.
            ahead: The same of weights that are on their way already.
            image_room: Bytes that an image of the weights may have in host memory.
            reclaim: Frees what the device holds for models whose turn has not come; False: nothing.
        """
        self.prepared = prepared
        self._device = device
        self._memory = memory
        self._remains = rested
        self._ahead = ahead
        self._image_room = image_room
        self._reclaim = reclaim
        self._imaging: Imaging | None = None
        self._placement: Placement | None = None
        self._forward: Forward | None = None
        self._sampler: Draws | None = None
        self._scheduler: Scheduler | None = None
        self._growth: Growth | None = None
        self._compute_bytes = 0
        """Of the device, left to what is computed."""
        self._max_model_len = 0
        self._warm_up_s = 0.0

    def enter(self) -> None:
        """Put the model on the device and find out how to run it, if that is not known.

        Raises:
            CheckpointRefused: it does not compute.
            InsufficientMemory: also when the context asked for has no room.
            DeviceLost
        """
        known = self.prepared.weights.known
        try:
            devices.use_threads_for(self.prepared.weights.bytes)
            self._sampler = sampler_on(self._device)
            self._placement = self._placed()
            if known is None:
                self._discover(self._placement)
            elif self._remains is not None:
                self._resume(self._placement, known, self._remains)
            else:
                self._repeat(self._placement, known)
            self._placement.settle()
        except HotswapError:
            raise
        except Exception as error:  # whatever a model's forward can raise
            raise as_ours(error, self.prepared.spec.id) from None

    def _placed(self) -> Placement:
        weights, rooms = self.prepared.weights, self.prepared.rooms
        if not rooms:
            ahead, self._ahead = self._ahead, None
            return place(weights, self._device, self._memory, ahead)
        assert isinstance(weights.content, PreTrainedModel)
        token_bytes = None if weights.known is None else weights.known.verdict.token_bytes
        need = need_of(self.prepared.spec, self.prepared.front, weights.bytes, token_bytes)
        free = [room.free_bytes() for room in rooms]
        device_map = divide(weights.content, free, spread_kv(need, free))
        return Spread(weights, device_map, [room.device for room in rooms])

    def _discover(self, placement: Placement) -> None:
        weights = self.prepared.weights
        begun = time.monotonic()
        self._forward, verdict = choose(placement)
        sampler: object = self._sampler
        if isinstance(sampler, StepSampler):
            rows = self.prepared.spec.engine.max_num_seqs
            sampler.compile_for(rows, placement.vocab, getattr(torch, weights.dtype))
        self._warm_up_s = time.monotonic() - begun
        if self._warm_up_s > _LONG_WARM_UP_S:
            _log.info(
                "%s took %.0f s to warm up; kernels that were compiled for it are kept for later",
                self.prepared.spec.id,
                self._warm_up_s,
            )
        devices.release_unused(self._device)  # of what warming up took
        pool = self._reserve(self._forward.chunked, verdict)
        self._forward.reserve(pool.count)
        self._get_ready(self._forward, pool)
        # Last of all: without a verdict the model is needed once more.
        blueprint = None
        if isinstance(self._forward, LeanForward):
            placement.take_on(self._forward.skeleton)
            assert isinstance(weights.content, Skeleton)
            blueprint = Blueprint.of(weights.content, weights.files)
        devices.trim_heap()
        bare = None if blueprint is None else replace(weights, content=blueprint.skeleton)
        weights.known = Known(verdict, blueprint, bare)

    def _repeat(self, placement: Placement, known: Known) -> None:
        chunked = known.verdict.tier != CachedForward.tier
        pool = self._reserve(chunked, known.verdict)
        self._forward = made(placement, known.verdict, pool.count)
        self._get_ready(self._forward, pool)

    def _resume(self, placement: Placement, known: Known, rested: Rested) -> None:
        budget = self._kv_budget(known.verdict)
        longest = self._longest(budget)
        has_room = rested.needed_bytes <= _KV_AGAIN * budget.limit_bytes
        if not has_room or not longest <= rested.max_model_len <= _KV_AGAIN * longest:
            rested.close()  # what it remembers is computed again
            self._repeat(placement, known)
            return

        def made_anew(blocks: int) -> LeanForward:
            forward = made(placement, known.verdict, blocks)
            assert isinstance(forward, LeanForward)
            return forward

        try:
            self._forward = rested.wake(made_anew)
        except torch.OutOfMemoryError:  # it only saves a prompt
            _log.info("%s has no room to bring its keys and values back", self.prepared.spec.id)
            rested.close()
            self._repeat(placement, known)
            return
        self._scheduler = rested.scheduler
        self._scheduler.budget = budget
        self._scheduler.reused_tokens = 0
        self._max_model_len = min(rested.max_model_len, longest)
        self._get_ready(self._forward, self._scheduler.pool)

    def build(self, generation: int, changed: Callable[[], None]) -> TorchEngine:
        """An engine of what `enter` put in place."""
        assert self._forward is not None
        assert self._scheduler is not None
        assert self._sampler is not None
        assert self._placement is not None
        return TorchEngine(
            generation=generation,
            model=self.prepared.spec.id,
            max_model_len=self._max_model_len,
            runner=ModelRunner(self._forward, self._sampler),
            scheduler=self._scheduler,
            details={
                "tier": self._forward.tier,
                "device": str(self._device),
                "dtype": self.prepared.weights.dtype,
                "weights": self._placement.kind,
                "weights_on": self._placement.bytes_on,
                "max_model_len": self._max_model_len,
                "chat": self.prepared.front.speech.summary(),
                "step_tokens": self._scheduler.limits.token_budget,
                "step_tokens_beside": self._scheduler.limits.token_budget_beside,
                "weights_bytes": self.prepared.weights.bytes,
                "warm_up_s": self._warm_up_s,
            },
            changed=changed,
            growth=self._growth,
            answered=self._make_image,
            ahead=isinstance(self._forward, RecordedForward),
        )

    def _make_image(self) -> None:
        """In the background, if there is to be one and it has room."""
        weights, memory = self.prepared.weights, self._memory
        there = weights.image is not None and weights.image.is_open
        if memory is None or there or not isinstance(weights.content, Skeleton):
            return
        if weights.bytes > self._image_room:
            return
        self._imaging = Imaging(partial(_bring_into_image, weights, memory))

    def leave(self, *, room: int | None) -> Rested | None:
        """Free the device. Also after an `enter` that failed half way.

        Args:
            room: bytes of host memory for what the model can go on with, beside its weights; None:
                it is not to go on.
        """
        if self._imaging is not None:
            self._imaging.stop()
        for device in self.prepared.devices:
            devices.wait_for(device)
        rested = None if room is None else self._rested_if_it_can(room)
        with ExitStack() as steps:  # each is taken, whatever becomes of the one before
            for device in self.prepared.devices:
                steps.callback(devices.release_cached, device)
            if self._placement is not None:
                steps.callback(self._placement.leave)
            if self._ahead is not None:
                steps.callback(self._ahead.close)
            if self._remains is not None and self._forward is None:
                steps.callback(self._remains.close)
            if self._forward is not None and not isinstance(rested, AtRest):
                steps.callback(self._forward.close)
            self._remains = self._forward = self._placement = self._scheduler = self._sampler = None
            self._ahead = self._growth = None
        return rested

    def _rested_if_it_can(self, room: int) -> Rested | None:
        try:
            return self._rested(room)
        except Exception:  # whatever a device raises; the model has to leave it all the same
            _log.exception("What %s remembers cannot be kept", self.prepared.spec.id)
            return None

    def _rested(self, room: int) -> Rested | None:
        """None: there is nothing to be gained by it, or answers have been cut."""
        forward, scheduler = self._forward, self._scheduler
        if scheduler is None or scheduler.pool.used or not isinstance(forward, LeanForward):
            return None
        engine = self.prepared.spec.engine
        if self._memory is not None:
            return Saved.of(
                forward,
                scheduler,
                self._memory,
                max_model_len=self._max_model_len,
                engine=engine,
                room=room,
                least_blocks=_first_blocks(scheduler.budget),
            )
        if isinstance(forward, RecordedForward):  # its graphs have this stay's sampler in them
            return None
        if scheduler.remembered_bytes > room:
            return None
        forward.rest()
        scheduler.pool.vacate()
        return AtRest(forward, scheduler, self._max_model_len, engine)

    def _reserve(self, chunked: bool, verdict: Verdict) -> BlockPool:
        """The scheduler, and the blocks that it hands out."""
        budget = self._kv_budget(verdict)
        self._max_model_len = self._longest(budget)
        limits = SchedulerLimits(
            max_num_seqs=self.prepared.spec.engine.max_num_seqs,
            token_budget=_STEP_TOKENS[self._device.type],
            token_budget_beside=self._step_tokens_beside(),
            keys_of_a_token=_KEYS_OF_A_TOKEN[self._device.type],
            chunked=chunked,
        )
        pool = self._block_pool(budget, limits)
        self._scheduler = Scheduler(limits, budget, pool)
        return pool

    def _get_ready(self, forward: Forward, pool: BlockPool) -> None:
        if self._memory is not None and isinstance(forward, PooledForward):
            assert self._scheduler is not None
            self._growth = Growth(
                forward,
                self._scheduler,
                self._memory,
                reserve=self._compute_bytes,
                reclaim=self._reclaim,
            )
        if self._device.type == "cpu" and isinstance(forward, PooledForward):
            pool.vacate_with(partial(_vacate, forward.pool))
        if isinstance(forward, RecordedForward):
            forward.record(
                rows=self.prepared.spec.engine.max_num_seqs,
                tokens=self._max_model_len,
                recorder=recorder_on(self._device),
                sampler=self._sampler if isinstance(self._sampler, StepSampler) else None,
            )

    def _step_tokens_beside(self) -> int:
        kind = self._device.type
        is_small = kind == "cpu" and self.prepared.weights.bytes <= _SMALL_BYTES
        return (_STEP_TOKENS if is_small else _STEP_TOKENS_BESIDE)[kind]

    def _kv_budget(self, verdict: Verdict) -> KVBudget:
        limit = self.prepared.spec.engine.kv_cache_memory
        if isinstance(self._placement, Spread):
            room = self._spread_room(self._placement)
            limit = room if limit is None else min(limit, room)
        else:
            free = devices.free_bytes(self._device)
            unasked = kv_room(free, is_apart=self._device.type == "cuda")
            limit = unasked if limit is None else limit
            if self._memory is not None:
                if limit > _KV_AGAIN * free:
                    raise _more_than_free(limit, free)
                limit = min(limit, free)
                self._compute_bytes = min(free - unasked, free - limit)
        return KVBudget(
            limit_bytes=limit,
            token_bytes=verdict.token_bytes,
            fixed_bytes=verdict.fixed_bytes,
        )

    def _spread_room(self, placement: Spread) -> int:
        """Keys and values lie where their layers are computed: the device that is full first ends
        what there is room for."""
        shares = state_shares(placement)
        left = Counter({placement.device: -placement.fetched_bytes})
        for room in self.prepared.rooms:
            left[room.device] += room.free_bytes() - DEVICE_RESERVE_BYTES
        return kv_limit({on: kv_room(free, is_apart=True) for on, free in left.items()}, shares)

    def _block_pool(self, budget: KVBudget, limits: SchedulerLimits) -> BlockPool:
        """No more blocks than could be in use and remembered."""
        used = limits.max_num_seqs * budget.blocks_of(self._max_model_len)
        if not limits.chunked:
            return BlockPool(min(budget.blocks, used), remembered=0)
        if self._memory is not None:
            remembered = max(self.prepared.weights.bytes, _FIRST_KV_BYTES) // budget.block_bytes
            return BlockPool(_first_blocks(budget), remembered=remembered)
        remembered, once = self._remembered(budget)
        return BlockPool(
            min(budget.blocks, used + remembered),
            remembered=remembered,
            remembered_once=once,
            worth_vacating=max(1, _WORTH_VACATING_BYTES // budget.block_bytes),
        )

    def _remembered(self, budget: KVBudget) -> tuple[int, int]:
        """Blocks that may keep their content, and how many of them what was asked for once."""
        if self.prepared.spec.engine.kv_cache_memory is not None:
            return budget.blocks, budget.blocks
        weights = self.prepared.weights.bytes
        most = max(int(weights * _REMEMBERED_SHARE), _REMEMBERED_BYTES)
        once = max(int(weights * _REMEMBERED_ONCE_SHARE), _REMEMBERED_ONCE_BYTES)
        return most // budget.block_bytes, once // budget.block_bytes

    def _longest(self, budget: KVBudget) -> int:
        """What the model may see, or less where keys and values have no room for it."""
        wanted, longest = self.prepared.front.max_model_len, budget.longest
        if longest is None or longest >= wanted:
            return wanted
        asked = self.prepared.spec.engine.max_model_len
        if asked is not None or longest < 1:
            raise self._no_room(budget, asked or 1)
        _log.warning(
            "%s: memory for %d tokens of keys and values, so the context is cut from %d",
            self.prepared.spec.id, longest, wanted,
        )  # fmt: skip
        return longest

    def _no_room(self, budget: KVBudget, tokens: int) -> InsufficientMemory:
        ways = (
            [] if self.prepared.spec.engine.kv_cache_memory is None else ["raise kv_cache_memory"]
        )
        if tokens > 1:
            ways.append("lower max_model_len")
        need, room = shown_bytes(budget.cost(tokens)), shown_bytes(budget.limit_bytes)
        return InsufficientMemory(
            f"The keys and values of {tokens} token{'s' * (tokens > 1)} need {need} "
            f"and there is room for {room}" + (f"; {' or '.join(ways)}." if ways else ".")
        )


def _bring_into_image(weights: HostWeights, memory: DeviceMemory, abandoned: Abandoned) -> None:
    assert isinstance(weights.content, Skeleton)
    image = made_image(Layout.of(weights.content), memory, abandoned)
    if image is not None:
        weights.move_into(image)


def _more_than_free(limit: int, free: int) -> InsufficientMemory:
    return InsufficientMemory(
        f"kv_cache_memory asks for {shown_bytes(limit)}, and the device has {shown_bytes(free)} "
        "beside the weights."
    )


def _first_blocks(budget: KVBudget) -> int:
    return min(budget.blocks, max(1, _FIRST_KV_BYTES // budget.block_bytes))


def _vacate(pool: KVPool, runs: Sequence[Run]) -> None:
    pool.vacate(runs)
    devices.trim_heap()


def as_ours(error: Exception, model: str) -> HotswapError:
    """What went wrong when a model was put on the device."""
    if is_out_of_memory(error):
        return InsufficientMemory(f"{model!r} does not fit on the device.")
    _log.error("%s cannot be started", model, exc_info=error)
    if is_device_lost(error):
        return DeviceLost("The device was lost.")
    return CheckpointRefused(f"{model!r} loads but does not compute.")
