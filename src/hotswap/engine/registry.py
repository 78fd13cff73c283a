"""Prepares models, starts one engine at a time, and takes it down again."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from types import TracebackType
from typing import Any, Self

import anyio
import torch
from anyio import to_thread

from hotswap.contracts.engines import ParkedModel
from hotswap.contracts.models import ChatFacts, ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import Estimate, MemoryReport
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest
from hotswap.engine import device as devices
from hotswap.engine.ahead import Aheads
from hotswap.engine.device import HUNG_S, Device, without_frames
from hotswap.engine.device_memory import MemoryOf, RoomsOf, memory_of, rooms_of
from hotswap.engine.embedding.engine import EmbeddingEngine
from hotswap.engine.embedding.rendering import RenderedEmbedding
from hotswap.engine.embedding.stage import EmbeddingStage
from hotswap.engine.engine import TorchEngine
from hotswap.engine.findings import Findings
from hotswap.engine.front import Front, Fronts, SharedFronts, fits
from hotswap.engine.loader import load_weights
from hotswap.engine.native.code import loops_compiled
from hotswap.engine.park import Park, Parked, let_go
from hotswap.engine.planning import (
    Candidate,
    Plan,
    advice,
    look_at,
    plan,
    refuse_misfit,
    unspread,
)
from hotswap.engine.prepared import LoadKey, TorchPrepared
from hotswap.engine.prompts import Prompts
from hotswap.engine.rested import Rested
from hotswap.engine.stage import Stage
from hotswap.engine.stay import Coming, Stay
from hotswap.engine.text import RenderedRequest
from hotswap.errors import (
    DeviceLost,
    HotswapError,
    InsufficientMemory,
    ModelLoadFailed,
)

_log = logging.getLogger(__name__)
AnyEngine = TorchEngine | EmbeddingEngine
AnyStage = Stage | EmbeddingStage


class TorchEngineRegistry:
    """`hotswap.contracts.engines.EngineRegistry`. An async context manager; leaving it ends the
    device thread. Runs on asyncio."""

    def __init__(
        self,
        *,
        hung_s: float = HUNG_S,
        park_bytes: int | None = None,
        memory_of: MemoryOf = memory_of,
        rooms_of: RoomsOf = rooms_of,
    ) -> None:
        """
        Args:
            hung_s: see `Device`.
            park_bytes: of host memory for parked models; None: a share of what is available when it
                is first asked for.
            memory_of: whether models lie in memory of a device's own.
            rooms_of: where a model may be spread.
        """
        self._park = Park(park_bytes)
        self._memory_of = cache(memory_of)
        self._rooms_of = rooms_of
        self._aheads = Aheads()
        self._coming = Coming(self._aheads)
        self._device = Device(hung_s)
        self._fronts = SharedFronts(Fronts())
        self._prompts = Prompts()
        self._findings = Findings()
        self._generations = itertools.count(1)
        self._on_stage = False
        self._resident: _Resident | None = None
        self._memory: MemoryReport | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the device thread, after the engine has been left. A hung one is left behind; it
        does not keep the process from ending."""
        self._device.close()
        self._prompts.close()
        with anyio.CancelScope(shield=True):
            if not await to_thread.run_sync(self._device.ends):
                _log.error("The device thread hangs and is left behind")
                return
            for parked in self._park.empty():
                await to_thread.run_sync(parked.prepared.weights.close)

    @property
    def current(self) -> AnyEngine | None:
        resident = self._resident
        return None if resident is None else resident.engine

    @property
    def memory(self) -> MemoryReport | None:
        return self._memory

    def parked(self) -> Sequence[ParkedModel]:
        return self._park.readings()

    def forget(self, model: str) -> None:
        parked = self._park.take(model)
        if parked is not None:
            let_go([parked])

    async def render(self, spec: ModelSpec, request: GenerationRequest) -> RenderedRequest:
        """See `hotswap.contracts.engines.EngineRegistry.render`. For the model on the device
        nothing is read from the disk: it answers also when its files have changed or gone."""
        front, longest = await self._front(spec)
        return await self._prompts.render(spec, front, longest, request)

    async def render_embedding(
        self, spec: ModelSpec, request: EmbeddingRequest
    ) -> RenderedEmbedding:
        """See `hotswap.contracts.engines.EngineRegistry.render_embedding`."""
        front, _ = await self._front(spec)
        return await self._prompts.render_embedding(spec, front, request)

    async def detokenize(self, spec: ModelSpec, ids: Sequence[int]) -> str:
        """See `hotswap.contracts.engines.EngineRegistry.detokenize`."""
        front, _ = await self._front(spec)
        return await self._prompts.detokenize(front, ids)

    async def chat_facts(self, spec: ModelSpec) -> ChatFacts:
        """See `hotswap.contracts.engines.EngineRegistry.chat_facts`."""
        front, _ = await self._front(spec)
        speech = front.speech
        return ChatFacts(template=front.chat_template, tools=speech.tools, thinking=speech.thinking)

    async def _front(self, spec: ModelSpec) -> tuple[Front, int | None]:
        """And the longest context that there is memory for, where that is less."""
        resident = self._resident
        if resident is not None and resident.answers(spec):
            return resident.prepared.front, resident.engine.max_model_len
        front = await self._fronts.get(spec)
        return front, self._findings.longest(front, spec)

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """See `hotswap.contracts.engines.EngineRegistry.estimate`."""
        candidate = await self._candidate(spec)
        try:
            found = await self._plan(candidate)
        except InsufficientMemory as error:
            whole = unspread(candidate, leaves=self._leaves, parked=self._parked(candidate))
            return replace(whole, reason=error.message)
        return found.estimate

    async def _candidate(self, spec: ModelSpec) -> Candidate:
        """Raises: CheckpointRefused, OSError."""
        devices.torch_device(spec.engine.device)  # there is one
        front = await self._fronts.get(spec)
        look = partial(look_at, spec, front, self._rooms_of, self._findings.known)
        return await to_thread.run_sync(look, abandon_on_cancel=True)

    async def _plan(self, candidate: Candidate) -> Plan:
        """Raises: CheckpointRefused, InsufficientMemory: there is none that could work."""
        made = partial(plan, candidate, leaves=self._leaves, parked=self._parked(candidate))
        if not candidate.rooms:  # nothing to wait for
            return made()
        return await to_thread.run_sync(made, abandon_on_cancel=True)

    @property
    def _leaves(self) -> bool:
        """A model would have to leave for another one."""
        return self._resident is not None

    def _parked(self, candidate: Candidate) -> frozenset[LoadKey]:
        """Under which of its names it is in host memory."""
        model = candidate.spec.id
        return frozenset(key for key in candidate.keys if self._park.find(model, key) is not None)

    async def prepare(self, spec: ModelSpec, report: Report) -> TorchPrepared:
        """See `hotswap.contracts.engines.EngineRegistry.prepare`. Cancelling returns at once;
        what goes on behind it is told in `read_weights`."""
        report("checking", 0.0)
        candidate = await self._candidate(spec)
        if not self._parked(candidate):
            await self._park.make_way(candidate.need)
        found = await self._plan(candidate)
        known = self._findings.known
        refuse_misfit(candidate, found, has_run=any(key in known for key in candidate.keys))
        device, front = candidate.device, candidate.front
        parked = self._park.find(spec.id, found.key)
        if parked is not None:
            self._park.expect(spec.id)
            report("reading", 1.0)
            prepared = replace(parked.prepared, spec=spec, front=front, rooms=found.rooms)
            return await self._sent_ahead(prepared, device)
        if device.type == "cpu" and front.recipe is None:
            await loops_compiled()  # not on the device thread: it may have to compile
        report("checking", 1.0)
        weights = await load_weights(candidate, known.get(found.key), report)
        self._coming.note(weights)
        report("reading", 1.0)
        prepared = TorchPrepared(spec, front, weights, found.key, rooms=found.rooms)
        return await self._sent_ahead(prepared, device)

    async def _sent_ahead(self, prepared: TorchPrepared, device: torch.device) -> TorchPrepared:
        """On the way to a device with room for another model. One that has not computed yet has
        not taken what it needs."""
        resident = self._resident
        memory = None if prepared.rooms else await to_thread.run_sync(self._memory_of, device)
        if memory is None or (resident is not None and not resident.engine.stats().steps):
            return prepared
        begin = partial(self._aheads.begin, prepared.weights, memory)
        return replace(prepared, ahead=await to_thread.run_sync(begin, abandon_on_cancel=True))

    @asynccontextmanager
    async def start(
        self, prepared: TorchPrepared, report: Report, changed: Callable[[], None]
    ) -> AsyncIterator[Any]:
        """See `hotswap.contracts.engines.EngineRegistry.start`. The engine is an `AnyEngine`; who
        starts a model knows of which kind.

        Raises:
            DeviceLost: on entering or leaving; what was on the device could not be taken off.
        """
        self._device.check_answering()
        if self._on_stage:
            raise ModelLoadFailed("Another model is on the device.")
        device = devices.torch_device(prepared.spec.engine.device)
        prepared, rested = await self._park.as_parked(prepared)
        self._coming.note(None)
        stay = Stay.begin(prepared.devices, partial(self._coming.bytes_in, device), rested)
        stage = self._stage(prepared, device, rested)
        # Until here it stays parked, whatever fails. From here on it is the stage's.
        self._park.claim(prepared.spec.id, prepared.key)
        self._on_stage = True
        try:
            async with self._cleared(stage, stay):
                report("starting", 0.0)
                # Not to be cut: what is half on the device could not be taken off.
                with anyio.CancelScope(shield=True):
                    await self._device.call(stage.enter)
                stay.entered = True
                self._findings.remember(stage.prepared)
                await anyio.lowlevel.checkpoint_if_cancelled()
                report("starting", 1.0)
                async with self._driven(stage, changed) as engine:
                    try:
                        yield engine
                    finally:
                        stay.end(engine)
        except InsufficientMemory as error:
            helps = None if stay.entered else await self._advice(prepared.spec)
            if helps is None:
                raise
            raise InsufficientMemory(f"{error.message} {helps}") from None
        finally:
            self._on_stage = False

    async def _advice(self, spec: ModelSpec) -> str | None:
        """For a model that had no room."""
        try:
            candidate = await self._candidate(spec)
        except (HotswapError, OSError):  # its files have changed meanwhile
            return None
        return await to_thread.run_sync(advice, candidate, abandon_on_cancel=True)

    def _stage(
        self, prepared: TorchPrepared, device: torch.device, rested: Rested | None
    ) -> AnyStage:
        """As the model's task has it."""
        if prepared.front.recipe is not None:
            return EmbeddingStage(prepared, device)
        memory = self._memory_of(device)
        own = self._park.find(prepared.spec.id, prepared.key)
        others_bytes = self._park.bytes - (0 if own is None else own.bytes)
        return Stage(
            replace(prepared, ahead=None),
            device,
            memory,
            rested=rested,
            ahead=self._aheads.take(prepared.ahead),
            image_room=0 if memory is None else self._park.budget_bytes - others_bytes,
            reclaim=self._aheads.give_up,
        )

    @asynccontextmanager
    async def _cleared(self, stage: AnyStage, stay: Stay) -> AsyncIterator[None]:
        """Take ``stage`` off the device at the end, however the block ends, and measure it. A model
        that worked is parked."""
        try:
            yield
        except DeviceLost:
            with suppress(DeviceLost):  # it has been logged, and says no more than this one
                await self._clear(stage, stay)
            raise
        except BaseException:
            await self._clear(stage, stay)
            raise
        await self._clear(stage, stay)

    async def _clear(self, stage: AnyStage, stay: Stay) -> None:
        """Raises: DeviceLost: it did not work."""
        self._memory = None
        self._device.check_answering()
        room = self._park.room_beside(stage.prepared.weights.bytes) if stay.worked else None
        try:
            rested = await self._device.ended(self._device.submit(partial(stage.leave, room=room)))
        except DeviceLost:
            raise
        except Exception as error:
            _log.exception("What was on the device could not be taken off")
            lost = DeviceLost("The device could not be freed.")
            raise lost from without_frames(error)
        memory = self._memory = stay.report(rested)
        parked = Parked(stage.prepared, rested)
        let_go([parked] if room is None else self._park.put(parked))
        if memory.leaked_bytes:
            _log.warning(
                "%r left %d bytes behind; the largest tensors alive: %s",
                stage.prepared.spec.id,
                memory.leaked_bytes,
                await to_thread.run_sync(devices.largest_tensors, stay.devices[0]),
            )

    @asynccontextmanager
    async def _driven(
        self, stage: AnyStage, changed: Callable[[], None]
    ) -> AsyncIterator[AnyEngine]:
        engine = stage.build(next(self._generations), changed)
        prepared = stage.prepared
        self._findings.remember_cut(prepared, engine.max_model_len)
        driving = self._device.submit(engine.drive)
        self._resident = _Resident(prepared, engine)
        try:
            yield engine
        finally:
            self._resident = None
            engine.stop()
            await self._engine_ended(driving)

    async def _engine_ended(self, driving: Future[None]) -> None:
        try:
            await self._device.ended(driving)
        except DeviceLost:
            raise
        except Exception:
            _log.exception("The engine's thread ended with an error")


@dataclass(frozen=True, slots=True)
class _Resident:
    prepared: TorchPrepared
    engine: AnyEngine

    def answers(self, spec: ModelSpec) -> bool:
        """A request for ``spec`` can be rendered with what is on the device. A path of None is a
        model whose files have gone."""
        own = self.prepared.spec
        same = spec.id == own.id and spec.path in (own.path, None)
        return same and fits(self.prepared.front, spec)
