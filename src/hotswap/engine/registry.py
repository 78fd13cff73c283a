"""Prepares models, starts one engine at a time, and takes it down again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import torch
from anyio import from_thread, to_thread

from hotswap.contracts import (
    ChatFacts,
    EmbeddingRequest,
    Estimate,
    GenerationRequest,
    MemoryReport,
    ModelSpec,
    ParkedModel,
    Report,
)
from hotswap.engine import device as devices
from hotswap.engine.ahead import Aheads
from hotswap.engine.blueprint import (
    Arena,
    file_ids,
    fill_page_cache,
    map_files,
    read_in,
    stretches,
)
from hotswap.engine.copies import copies_of
from hotswap.engine.device import Device, without_frames
from hotswap.engine.device_memory import MemoryOf, RoomsOf, memory_of, rooms_of
from hotswap.engine.embedding.engine import EmbeddingEngine
from hotswap.engine.embedding.rendering import EmbeddingRenderer, RenderedEmbedding
from hotswap.engine.embedding.stage import EmbeddingStage
from hotswap.engine.engine import TorchEngine
from hotswap.engine.fit import missing_bytes, no_host_memory
from hotswap.engine.front import Front, Fronts, SharedFronts, fits, local_path
from hotswap.engine.native.code import loops_compiled
from hotswap.engine.park import Park, Parked, let_go
from hotswap.engine.places import Places
from hotswap.engine.planning import Candidate, Plan, advice, look_at, plan, unspread
from hotswap.engine.prepared import LoadKey, TorchPrepared, load_key
from hotswap.engine.rested import Rested
from hotswap.engine.stage import Stage
from hotswap.engine.stay import Stay
from hotswap.engine.text import PromptRenderer, RenderedRequest, text_of
from hotswap.engine.weights import HostWeights, Known, LoadAbandoned, read_weights
from hotswap.errors import (
    CheckpointRefused,
    DeviceLost,
    HotswapError,
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
)

_log = logging.getLogger(__name__)
T = TypeVar("T")
AnyEngine = TorchEngine | EmbeddingEngine
AnyStage = Stage | EmbeddingStage

_KNOWN_MODELS = 32
_PARK_SHARE = 0.5
"""Of the host memory that is available. Weights that are mapped are counted too, although the
system takes their pages back when it needs them."""
_RENDERINGS = 4
"""Requests that are rendered at the same time. They have threads of their own, so that those for
the model on the device never wait for a cold tokenizer. Those that are only counted come one after
the other beside them: they may be far longer than any model takes."""


class TorchEngineRegistry:
    """`hotswap.contracts.EngineRegistry`. An async context manager; leaving it ends the device
    thread. Runs on asyncio."""

    HUNG_S = 30.0
    """Seconds after which a job that should end is given up, and the device with it. A prompt's
    chunk takes several seconds where a large model runs on a CPU."""

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
            park_bytes: of host memory for parked models; None: a share of what is available when it
                is first asked for.
            memory_of: whether models lie in memory of a device's own.
            rooms_of: where a model may be spread.
        """
        self._hung_s = hung_s
        self._park_bytes = park_bytes
        self._park = Park()
        self._memory_of = cache(memory_of)
        self._rooms_of = rooms_of
        self._aheads = Aheads()
        self._hangs = False
        self._device = Device()
        self._fronts = SharedFronts(Fronts())
        self._rendering = Places(_RENDERINGS, "hotswap-rendering")
        self._counting = Places(1, "hotswap-counting")
        self._generations = itertools.count(1)
        self._known: dict[LoadKey, Known] = {}
        self._cuts: dict[tuple[Any, ...], int] = {}
        self._on_stage = False
        self._next: str | None = None
        """The parked model that was prepared last, until it starts."""
        self._aside: weakref.ref[HostWeights] | None = None
        """Weights that were read last and have not been on the device."""
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
        self._rendering.close()
        self._counting.close()
        with anyio.CancelScope(shield=True):
            patience = 0.0 if self._hangs else self._hung_s
            if not await to_thread.run_sync(self._device.join, patience):
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
        """See `hotswap.contracts.EngineRegistry.render`. For the model on the device nothing is
        read from the disk: it answers also when its files have changed or gone."""
        front, longest = await self._front(spec)
        if front.recipe is not None:
            raise InvalidRequest(f"{spec.id!r} is an embedding model.", param="model")
        renderer = PromptRenderer(spec.id, front, spec.sampling, longest)
        return await self._places(request).call(renderer.render, request)

    async def render_embedding(
        self, spec: ModelSpec, request: EmbeddingRequest
    ) -> RenderedEmbedding:
        """See `hotswap.contracts.EngineRegistry.render_embedding`."""
        front, _ = await self._front(spec)
        if front.recipe is None:
            raise InvalidRequest(f"{spec.id!r} is not an embedding model.", param="model")
        renderer = EmbeddingRenderer(spec.id, front, front.recipe)
        return await self._places(request).call(renderer.render, request)

    async def detokenize(self, spec: ModelSpec, ids: Sequence[int]) -> str:
        """See `hotswap.contracts.EngineRegistry.detokenize`."""
        front, _ = await self._front(spec)
        return await self._rendering.call(text_of, front, ids)

    def _places(self, request: GenerationRequest | EmbeddingRequest) -> Places:
        return self._counting if request.counted else self._rendering

    async def chat_facts(self, spec: ModelSpec) -> ChatFacts:
        """See `hotswap.contracts.EngineRegistry.chat_facts`."""
        front, _ = await self._front(spec)
        speech = front.speech
        return ChatFacts(template=front.chat_template, tools=speech.tools, thinking=speech.thinking)

    async def _front(self, spec: ModelSpec) -> tuple[Front, int | None]:
        """And the longest context that there is memory for, where that is less."""
        resident = self._resident
        if resident is not None and resident.answers(spec):
            return resident.prepared.front, resident.engine.max_model_len
        front = await self._fronts.get(spec)
        return front, self._cuts.get(_cut_key(front, spec))

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """See `hotswap.contracts.EngineRegistry.estimate`."""
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
        look = partial(look_at, spec, front, self._rooms_of, self._known)
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

    def _refuse_misfit(self, candidate: Candidate, found: Plan) -> None:
        """Before another model leaves for it.

        Raises:
            InsufficientMemory: only for what is certain: how many bytes a token takes is a guess
                until the model has run.
        """
        asked = candidate.spec.engine.kv_cache_memory
        has_run = any(key in self._known for key in candidate.keys)
        certain = has_run or (asked is not None and asked > found.estimate.host_free_bytes)
        if not found.rooms and candidate.device.type == "cuda":
            least = candidate.need.weights + (asked or 0)
            certain |= least > devices.total_bytes(candidate.device)
        if certain and not found.estimate.fits:
            raise InsufficientMemory(found.estimate.reason or "The model does not fit.")

    async def prepare(self, spec: ModelSpec, report: Report) -> TorchPrepared:
        """See `hotswap.contracts.EngineRegistry.prepare`. Cancelling returns at once; what goes on
        behind it is told in `read_weights`."""
        report("checking", 0.0)
        candidate = await self._candidate(spec)
        if not self._parked(candidate):
            await self._make_room(candidate)
        found = await self._plan(candidate)
        self._refuse_misfit(candidate, found)
        device, front = candidate.device, candidate.front
        parked = self._park.find(spec.id, found.key)
        if parked is not None:
            self._next = spec.id
            report("reading", 1.0)
            prepared = replace(parked.prepared, spec=spec, front=front, rooms=found.rooms)
            return await self._sent_ahead(prepared, device)
        if device.type == "cpu" and front.recipe is None:
            await loops_compiled()  # not on the device thread: it may have to compile
        report("checking", 1.0)
        weights = await self._weights(candidate, found.key, report)
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

    async def _weights(self, candidate: Candidate, key: LoadKey, report: Report) -> HostWeights:
        """Raises: CheckpointRefused, InsufficientMemory."""
        spec, known = candidate.spec, self._known.get(key)
        abandoned = threading.Event()
        bring = _copied if spec.engine.no_mmap else _mapped
        try:
            weights = await bring(_Reading(candidate, known, abandoned), report)
            stamped = partial(load_key, spec, candidate.device, local_path(spec), candidate.files)
            now = await to_thread.run_sync(stamped, abandon_on_cancel=True)
        except OSError as error:  # also that a file is gone
            if devices.is_out_of_memory(error):
                raise InsufficientMemory("The model does not fit into host memory.") from None
            _log.warning("The files of %r cannot be read", spec.id, exc_info=True)
            now = None
        finally:
            abandoned.set()
        if now != candidate.key:
            raise CheckpointRefused("The files of the model changed while they were read.")
        weights.known = known
        self._aside = weakref.ref(weights)
        return weights

    def _coming_bytes(self, device: torch.device) -> int:
        """What models whose turn has not come have in the memory that is measured."""
        if device.type != "cpu":
            return self._aheads.bytes
        weights = None if self._aside is None else self._aside()
        # Before its first stay it is not known of a model whether it is mapped. Mostly it is.
        converted = weights is not None and weights.known is not None and not weights.mapped
        return self._aheads.bytes + (weights.bytes if weights is not None and converted else 0)

    @asynccontextmanager
    async def start(
        self, prepared: TorchPrepared, report: Report, changed: Callable[[], None]
    ) -> AsyncIterator[Any]:
        """See `hotswap.contracts.EngineRegistry.start`. The engine is an `AnyEngine`; who starts a
        model knows of which kind.

        Raises:
            DeviceLost: on entering or leaving; what was on the device could not be taken off.
        """
        if self._hangs:
            raise DeviceLost("The device does not answer any more.")
        if self._on_stage:
            raise ModelLoadFailed("Another model is on the device.")
        device = devices.torch_device(prepared.spec.engine.device)
        prepared, rested = await self._as_parked(prepared)
        self._aside = None
        stay = Stay.begin(prepared.devices, partial(self._coming_bytes, device), rested)
        stage = self._stage(prepared, device, rested)
        # Until here it stays parked, whatever fails. From here on it is the stage's.
        self._park.claim(prepared.spec.id, prepared.key)
        if self._next == prepared.spec.id:
            self._next = None
        self._on_stage = True
        try:
            async with self._cleared(stage, stay):
                report("starting", 0.0)
                # Not to be cut: what is half on the device could not be taken off.
                with anyio.CancelScope(shield=True):
                    await self._device.call(stage.enter)
                stay.entered = True
                self._remember(stage.prepared)
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
            image_room=0 if memory is None else self._park_budget() - others_bytes,
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
        if self._hangs:
            raise DeviceLost("The device does not answer any more.")
        spec, weights = stage.prepared.spec, stage.prepared.weights
        room = None
        if stay.worked and self._park_budget() > 0:
            room = self._park_budget() - self._park.pinned_bytes - weights.bytes
        try:
            rested = await self._ended(self._device.submit(partial(stage.leave, room=room)))
        except DeviceLost:
            raise
        except Exception as error:
            _log.exception("What was on the device could not be taken off")
            lost = DeviceLost("The device could not be freed.")
            raise lost from without_frames(error)
        memory = self._memory = stay.report(rested)
        parked = Parked(stage.prepared, rested)
        gone = [parked]
        if room is not None:
            gone = self._park.put(parked, self._park_budget(), leaving=self._next)
        let_go(gone)
        if memory.leaked_bytes:
            _log.warning(
                "%r left %d bytes behind; the largest tensors alive: %s",
                spec.id,
                memory.leaked_bytes,
                await to_thread.run_sync(devices.largest_tensors, stay.devices[0]),
            )

    async def _ended(self, job: Future[T]) -> T:
        """Wait for a job that should be over soon.

        Raises:
            DeviceLost: it hangs, and with it the device thread.
            Exception: what the job raised.
        """
        with anyio.move_on_after(self._hung_s, shield=True):
            return await asyncio.wrap_future(job)
        self._hangs = True
        _log.error("The device thread has not answered for %g s and is given up", self._hung_s)
        raise DeviceLost("The device does not answer any more.")

    async def _as_parked(self, prepared: TorchPrepared) -> tuple[TorchPrepared, Rested | None]:
        """The model and what it left behind, if it is parked still: else that has been used since,
        or is gone. It stays parked."""
        spec = prepared.spec
        parked = self._park.find(spec.id, prepared.key)
        if parked is None:
            return prepared, None
        rested = parked.rested
        if rested is not None and rested.engine != spec.engine:  # good for other settings only
            self._park.strip(spec.id)
            await to_thread.run_sync(rested.close)
            rested = None
        return replace(prepared, weights=parked.prepared.weights), rested

    def _remember(self, prepared: TorchPrepared) -> None:
        known = prepared.weights.known
        assert known is not None, "the model has been on the device"
        self._known.pop(prepared.key, None)
        self._known[prepared.key] = known
        while len(self._known) > _KNOWN_MODELS:
            del self._known[next(iter(self._known))]

    @asynccontextmanager
    async def _driven(
        self, stage: AnyStage, changed: Callable[[], None]
    ) -> AsyncIterator[AnyEngine]:
        engine = stage.build(next(self._generations), changed)
        prepared = stage.prepared
        self._remember_cut(prepared, engine.max_model_len)
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
            await self._ended(driving)
        except DeviceLost:
            raise
        except Exception:
            _log.exception("The engine's thread ended with an error")

    def _remember_cut(self, prepared: TorchPrepared, max_model_len: int) -> None:
        """The room for keys and values of the last start stands for that of the next one."""
        key = _cut_key(prepared.front, prepared.spec)
        self._cuts.pop(key, None)
        if max_model_len < prepared.front.max_model_len:
            self._cuts[key] = max_model_len

    def _park_budget(self) -> int:
        if self._park_bytes is None:
            self._park_bytes = int(devices.free_host_bytes() * _PARK_SHARE)
        return self._park_bytes

    async def _make_room(self, candidate: Candidate) -> None:
        """Parked models give way to one that somebody wants.

        Raises:
            InsufficientMemory
        """
        missing = missing_bytes(candidate.need, devices.free_host_bytes())
        if missing:
            for parked in self._park.make_room(missing):
                await to_thread.run_sync(parked.let_go)
        free = devices.free_host_bytes()
        if missing_bytes(candidate.need, free):
            raise InsufficientMemory(no_host_memory(candidate.need, free))


@dataclass(frozen=True, slots=True)
class _Reading:
    """Of a model that is not in host memory."""

    candidate: Candidate
    known: Known | None
    abandoned: threading.Event

    @property
    def is_known(self) -> bool:
        """Where its tensors lie in its files."""
        return self.known is not None and self.known.blueprint is not None

    def read(self, directory: Path, files: Sequence[Path], arenas: Sequence[Arena]) -> HostWeights:
        """
        Args:
            arenas: ``files``, mapped.

        Raises:
            CheckpointRefused, InsufficientMemory, LoadAbandoned, OSError
        """
        spec, front = self.candidate.spec, self.candidate.front
        if self.known is not None and self.is_known:
            weights = self.known.rebuilt(arenas)
        else:
            weights = read_weights(directory, front, spec.engine, self.abandoned)
        weights.files = file_ids(files)
        return weights


async def _mapped(reading: _Reading, report: Report) -> HostWeights:
    """First into the page cache, which can be given up at any time; then what is made of it."""
    path, files = local_path(reading.candidate.spec), reading.candidate.files.files
    arenas = await to_thread.run_sync(map_files, files, abandon_on_cancel=True)
    done, total = 0, sum(map(len, arenas))
    for stretch in stretches(arenas):
        report("reading", done / total)
        bring = read_in if reading.is_known else fill_page_cache
        await to_thread.run_sync(bring, stretch, abandon_on_cancel=True)
        done += len(stretch)
    return await to_thread.run_sync(reading.read, path, files, arenas, abandon_on_cancel=True)


async def _copied(reading: _Reading, report: Report) -> HostWeights:
    """First into memory of our own, which can be given up from part to part."""

    def copy() -> HostWeights:
        directory = local_path(reading.candidate.spec)
        with copies_of(directory, reading.candidate.files.files) as copies:
            for share in copies.fill():
                if reading.abandoned.is_set():
                    raise LoadAbandoned
                from_thread.run_sync(report, "reading", share)
            arenas = map_files(copies.files)
            weights = reading.read(copies.directory, copies.files, arenas)
        weights.are_copied = True
        return weights

    return await to_thread.run_sync(copy, abandon_on_cancel=True)


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


def _cut_key(front: Front, spec: ModelSpec) -> tuple[Any, ...]:
    """What the room for keys and values depends on."""
    engine = spec.engine
    return front.key, engine.device, engine.device_map, engine.dtype, engine.kv_cache_memory
