"""The door of the swap floor: names become models, requests become answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from anyio import to_thread

from hotswap.config import SwapRules
from hotswap.contracts.answers import Embeddings, Generation, Tokenized
from hotswap.contracts.catalog import ModelCatalog
from hotswap.contracts.engines import Engine, EngineRegistry, Rendered
from hotswap.contracts.listing import ModelDescription, ModelListing
from hotswap.contracts.models import ChatFacts, ModelSpec, Task
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import LoadForecast, LoadReport, UnloadReport
from hotswap.contracts.requests import (
    RESIDENT_NAMES,
    ChatPrompt,
    EmbeddingRequest,
    GenerationRequest,
)
from hotswap.contracts.service import UnloadMode
from hotswap.contracts.snapshot import SwapPhase, SwapSnapshot
from hotswap.errors import (
    CheckpointRefused,
    HotswapError,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ModelUnloaded,
    ModelUnusable,
    NotLoaded,
    NotPermitted,
)
from hotswap.listing import Facts, listing, listings
from hotswap.residency.desk import Target, is_same_load
from hotswap.swap import SwapController

AnyRequest = GenerationRequest | EmbeddingRequest


class SwapService:
    """The `ModelService`: a controller, the catalogue of what there is to serve, and the engine
    floor's knowledge of prompts."""

    def __init__(
        self,
        controller: SwapController,
        registry: EngineRegistry,
        catalog: ModelCatalog,
    ) -> None:
        self._controller = controller
        self._desk = controller.desk
        self._occupancy = controller.occupancy
        self._admittance = controller.admittance
        self._history = controller.history
        self._registry = registry
        self._catalog = catalog
        self._surveyed: tuple[ModelSpec, ...] | None = None
        self._listed: tuple[ModelListing, ...] = ()
        self._listed_facts: Facts | None = None

    def obey(self, catalog: ModelCatalog, rules: SwapRules) -> None:
        """Go by another catalogue and other rules from now on. What runs, waits or is resident is
        left as it is."""
        self._catalog = catalog
        self._controller.obey(rules)

    # -- requests

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Generation]:
        """See `ModelService.generate`."""
        target = await self._target(request.model, any_name=request.any_name)
        async with (
            self._admitted(target, request) as (engine, rendered),
            engine.generate(rendered) as generation,
        ):
            yield generation

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `ModelService.embed`."""
        target = await self._target(request.model, task="embed")
        async with self._admitted(target, request) as (engine, rendered):
            return await engine.embed(rendered)

    @asynccontextmanager
    async def _admitted(
        self, target: Target, request: AnyRequest
    ) -> AsyncIterator[tuple[Engine, Rendered]]:
        """While it is entered, the engine that answers stays, and with it comes the request as its
        model sees it."""
        _check_task(target.spec, _task_of(request))
        self._admittance.check(target)
        # Before the queue: a request that must fail never costs a swap. A model that is still to
        # be downloaded has no tokenizer yet; there, after it.
        spec, rendered = self._expected_for(target), None
        if spec.path is not None:
            with self._admittance.arriving(target):
                rendered = await self._render(spec, request)
        async with self._admittance.lease(
            target, request.keep_alive_s, request_id=request.request_id
        ) as stay:
            if rendered is None or (target.is_any and not is_same_load(spec, stay.spec)):
                rendered = await self._render(stay.spec, request)
            yield stay.engine, rendered

    async def shows_loading(self, name: str | None) -> bool:
        """See `ModelService.shows_loading`."""
        try:
            target = await self._target(name, any_name=True, task="generate")
        except HotswapError:
            return False
        return target.spec.show_loading

    async def warm(self, name: str | None, *, keep_alive_s: float | None = None) -> str:
        """See `ModelService.warm`."""
        async with self._admittance.lease(await self._target(name), keep_alive_s) as stay:
            return stay.spec.id

    async def let_go(self, name: str | None) -> str:
        """See `ModelService.let_go`."""
        if not self._desk.rules.on_demand:
            raise NotPermitted(
                "Requests may let go of a model where they may load one: "
                "with --enable-on-demand-loading."
            )
        target = await self._target(name)
        model = target.spec.id
        if self._history.is_parked(model) and not self._is_wanted(model):
            if not (target.is_any or target.spec.pin):
                self._forget(model)
        else:
            await self._admittance.let_go(model)
        return model

    def _is_wanted(self, model: str) -> bool:
        """It is on its way, or somebody waits for it or is about to."""
        coming = self._occupancy.coming
        specs = (*((coming,) if coming else ()), *self._desk.wanted())
        arriving = (target.model for target in self._desk.arriving)
        return model in (*(spec.id for spec in specs), *arriving)

    def _forget(self, model: str) -> None:
        """Let go of what is kept in host memory of a model that is there only."""
        self._registry.forget(model)
        self._desk.ring()

    async def pull(self, name: str, report: Report) -> str:
        """See `ModelService.pull`."""
        self._occupancy.check_open()
        try:
            spec = await self._catalog.resolve(name)
        except ModelNotFound:
            raise NotPermitted(
                f"The model {name[:200]!r} is not here, and --allow-download does not name it."
            ) from None
        if spec.path is None and not spec.background:
            await self._catalog.fetch(spec, report)
        return spec.id

    async def tokenize(self, request: GenerationRequest, *, texts: bool = False) -> Tokenized:
        """See `ModelService.tokenize`."""
        target = await self._target(request.model, any_name=request.any_name)
        spec = self._expected_for(target)
        if spec.path is None:
            raise ModelNotFound(f"{spec.id!r} is not downloaded yet, so its tokens are not known.")
        request = replace(request, counted=True)
        rendered = await self._render(spec, _to_embed(request) if spec.task == "embed" else request)
        # There may be a million of them.
        told = await to_thread.run_sync(lambda: rendered.token_texts) if texts else ()
        return Tokenized(spec.id, rendered.token_ids, told)

    async def detokenize(self, model: str | None, ids: Sequence[int]) -> tuple[str, str]:
        """See `ModelService.detokenize`."""
        spec = self._expected_for(await self._target(model))
        return spec.id, await self._registry.detokenize(spec, ids)

    async def _target(
        self, name: str | None, *, any_name: bool = False, task: Task = "generate"
    ) -> Target:
        """``task``: that of the model where any would do."""
        if name is None or name in RESIDENT_NAMES:
            return await self._any(task, name)
        try:
            spec = await self._named(name)
        except ModelNotFound:
            if not any_name:
                raise
            return await self._any(task, name)
        except ModelUnusable as error:
            self._check_nameable(error.model, name)
            raise
        if spec is self._occupancy.resident:
            return Target(spec)
        if spec.background or (any_name and self._is_elsewhere(spec)):
            return await self._any(task, name)
        if not self._desk.rules.on_demand and spec.id not in self._served_ids():
            if spec.id == self._catalog.startup:  # which is listed all the same
                raise ModelUnloaded(
                    f"{spec.id!r} made way for another model; load it with POST /v1/load_model."
                )
            raise _not_served(name)
        return Target(spec)

    async def _nameable(self, name: str) -> ModelSpec:
        """The model that a client means by a name."""
        try:
            return await self._named(name)
        except ModelUnusable as error:
            self._check_nameable(error.model, name)
            raise

    def _check_nameable(self, model: str, name: str) -> None:
        """Raises: ModelNotFound: it would not be served if it could be loaded."""
        if not self._desk.rules.on_demand and model not in self._listed_ids():
            raise _not_served(name) from None

    async def _named(self, name: str) -> ModelSpec:
        """The model of that name; the resident one as it was loaded."""
        resident = self._occupancy.resident
        # Before the disk is asked: the resident model is there even if its files are gone.
        if resident is not None and name in (resident.id, *resident.aliases):
            return resident
        try:
            spec = await self._catalog.resolve(name)
        except ModelUnusable as error:
            if resident is not None and resident.id == error.model:
                return resident
            raise
        return resident if resident is not None and resident.id == spec.id else spec

    def _is_elsewhere(self, spec: ModelSpec) -> bool:
        """It is not on this machine, and no operator has asked for it."""
        return spec.path is None and spec.id != self._catalog.startup

    async def _any(self, task: Task, name: str | None) -> Target:
        """Whichever model for ``task`` is there when the request's turn comes; if there is none
        then, the one that is there now or sleeps, else the start-up one.

        Args:
            name: what the request calls it.
        """
        present = self._occupancy.resident or self._occupancy.asleep
        if present is not None:
            if present.task == task:
                return Target(present, is_any=True)
            if not self._desk.rules.on_demand:
                _check_task(present, task)
        ids = [self._catalog.startup, self._history.last_for(task)]
        if present is not None or not self._desk.rules.on_demand:
            ids.reverse()
        coming = self._occupancy.coming
        try:
            spec = await self._first_of(ids, task)
            if spec is None:
                raise _none_loaded(task, name)
            return Target(spec, is_any=True)
        except HotswapError:
            if coming is not None and coming.task == task:
                return Target(coming, is_any=True)
            raise

    async def _first_of(
        self, ids: Sequence[str | None], task: Task | None = None
    ) -> ModelSpec | None:
        """``task``: None: whatever it is for."""
        for id in ids:
            if id is not None:
                spec = await self._catalog.resolve(id)
                if task in (None, spec.task) or spec.path is None:
                    return spec
        return None

    def _expected_for(self, target: Target) -> ModelSpec:
        """The model that will answer, as things stand."""
        present = self._present()
        return present if present is not None and target.takes(present) else target.spec

    def _present(self) -> ModelSpec | None:
        """The resident model; during a swap, the one to come."""
        coming = self._occupancy.coming
        swaps = coming is not None and self._occupancy.phase is not SwapPhase.READY
        return coming if swaps else self._occupancy.resident

    def _served_ids(self) -> set[str]:
        """The models that answer while loading on demand is off."""
        present = {spec.id for spec in (self._occupancy.resident, self._occupancy.coming) if spec}
        absent = self._history.last_resident or self._catalog.startup
        return present or ({absent} if absent else set())

    def _listed_ids(self) -> frozenset[str | None]:
        """Those that are listed while loading on demand is off."""
        return frozenset({*self._served_ids(), self._catalog.startup})

    async def _render(self, spec: ModelSpec, request: AnyRequest) -> Rendered:
        _check_task(spec, _task_of(request))
        try:
            if isinstance(request, EmbeddingRequest):
                return await self._registry.render_embedding(spec, request)
            return await self._registry.render(spec, request)
        except ModelLoadFailed as error:
            self._admittance.note_failure(spec, error)
            raise

    # -- operators

    async def load(self, name: str | None, overrides: Mapping[str, Any], source: str) -> LoadReport:
        """See `ModelService.load`."""
        spec = await self._ordered(name, overrides, source)
        await self._survey()
        return await self._controller.orders.load(spec)

    async def forecast(
        self, name: str | None, overrides: Mapping[str, Any], source: str
    ) -> LoadForecast:
        """See `ModelService.forecast`."""
        spec = await self._ordered(name, overrides, source)
        self._occupancy.check_open()
        if spec.path is None:
            raise InvalidRequest(
                f"What {spec.id!r} would take is not known before it is downloaded.", param="model"
            )
        estimate = await self._registry.estimate(spec)
        resident = self._occupancy.resident
        stays = resident is not None and is_same_load(resident, spec)
        return LoadForecast(
            model=spec.id,
            already_loaded=stays,
            leaves=None if resident is None or stays else resident.id,
            expected_s=self._history.expected_load_s(spec.id),
            estimate=estimate,
        )

    async def request_load(self, name: str) -> None:
        """See `ModelService.request_load`."""
        spec = await self._loadable(name)
        await self._survey()
        self._controller.orders.begin_load(spec)

    async def _ordered(
        self, name: str | None, overrides: Mapping[str, Any], source: str
    ) -> ModelSpec:
        """The model of that name, or the start-up one, with an operator's settings."""
        try:
            spec = await self._loadable(name)
        except ModelNotFound:
            if not name:  # where ``model`` is misspelt, it is among the settings
                self._catalog.override(ModelSpec(id="", path=None), overrides, source)
            raise
        return self._catalog.override(spec, overrides, source)

    async def _loadable(self, name: str | None) -> ModelSpec:
        """The model of that name, or the start-up one."""
        startup = self._catalog.startup
        if not name and startup is None:
            raise ModelNotFound("The server was started without a model: name one.")
        spec = await self._catalog.resolve(name or startup or "")
        if spec.background and spec.path is None and spec.id != startup:
            raise InvalidRequest(
                f"{spec.id!r} is only a name for whichever model is loaded: no files belong to it.",
                param="model",
            )
        return spec

    async def sleep(self, *, park: bool, mode: UnloadMode = "drain") -> UnloadReport:
        """See `ModelService.sleep`."""
        return await self._controller.orders.sleep(mode, park=park)

    async def wake_up(self) -> LoadReport:
        """See `ModelService.wake_up`."""
        spec = self._present() or self._occupancy.asleep
        if spec is None:
            ids = (self._history.last_resident, self._catalog.startup)
            spec = await self._first_of(ids)
        if spec is None:
            raise ModelNotFound(
                "There is nothing to wake up: no model has been loaded, and the server was started "
                "without one."
            )
        return await self._controller.orders.load(spec)

    async def unload(
        self,
        name: str | None = None,
        *,
        drain_timeout_s: float | None = None,
        mode: UnloadMode = "drain",
        park: bool = True,
    ) -> UnloadReport:
        """See `ModelService.unload`."""
        model = None if name is None else await self._id_of(name)
        try:
            return await self._controller.orders.unload(model, drain_timeout_s, mode, park=park)
        except NotLoaded:
            if model is None or not self._history.is_parked(model):
                raise
        self._forget(model)
        return UnloadReport(model=model, was_parked=True)

    async def _id_of(self, name: str) -> str:
        """Also of a model that could not be loaded: it may sleep. What is on its way is known
        without a look at the disk, which may be what it waits for."""
        for spec in self._on_their_way():
            if name in (spec.id, *spec.aliases):
                return spec.id
        try:
            return (await self._named(name)).id
        except ModelUnusable as error:
            return error.model

    def _on_their_way(self) -> tuple[ModelSpec, ...]:
        coming = self._occupancy.coming
        return (*((coming,) if coming else ()), *self._controller.downloads.models())

    # -- what everybody may see

    def snapshot(self) -> SwapSnapshot:
        return self._controller.snapshot()

    async def changed(self, since: int) -> SwapSnapshot:
        """See `ModelService.changed`."""
        await self._desk.until(lambda: self._desk.version > since)
        return self._controller.snapshot()

    async def models(self) -> tuple[ModelListing, ...]:
        """See `ModelService.models`.

        The same tuple again for as long as everything it was made from is the same: most clients
        ask again and again while nothing changes, and who encodes it can keep that as well.
        """
        facts = self._facts(await self._survey())
        if facts != self._listed_facts:
            self._listed = listings(facts)
        self._listed_facts = facts
        return self._listed

    async def _survey(self) -> tuple[ModelSpec, ...]:
        """What the catalogue has. Parked models that it has no more are let go of: nothing can be
        started whose files are gone."""
        specs = await self._catalog.models()
        if specs is not self._surveyed:
            self._surveyed = specs
            # The start-up model is listed whether it is there or not, a revision is not listed.
            there = {spec.id for spec in specs} - {self._catalog.startup}
            for parked in self._registry.parked():
                if parked.model not in there and not await self._is_here(parked.model):
                    self._registry.forget(parked.model)
        return specs

    async def _is_here(self, model: str) -> bool:
        try:
            return (await self._catalog.resolve(model)).path is not None
        except (ModelNotFound, CheckpointRefused):
            return False

    def unusable(self) -> Mapping[str, str]:
        """See `ModelService.unusable`."""
        return self._catalog.unusable()

    async def model(self, name: str) -> ModelListing:
        """See `ModelService.model`."""
        try:
            spec = await self._nameable(name)
        except ModelUnusable as error:
            listed = {one.id: one for one in await self._survey()}
            if error.model not in listed:
                raise
            spec = listed[error.model]
        return self._listed_as(spec, name)

    def _listed_as(self, spec: ModelSpec, name: str) -> ModelListing:
        """Raises: ModelNotFound: it is not being served."""
        facts = self._facts((spec,))
        if not facts.lists(spec):
            raise _not_served(name)
        return listing(spec, facts)

    async def describe(self, name: str) -> ModelDescription:
        """See `ModelService.describe`."""
        spec = await self._nameable(name)
        listing = self._listed_as(spec, name)
        chats = spec.path is not None and spec.task == "generate"
        chat = await self._registry.chat_facts(spec) if chats else ChatFacts()
        return ModelDescription(listing=listing, sampling=spec.sampling, chat=chat)

    def _facts(self, specs: tuple[ModelSpec, ...]) -> Facts:
        controller = self._controller
        resident, coming = self._occupancy.resident, self._occupancy.coming
        wanted = [*self._desk.wanted(), *((coming,) if coming else ())]
        progress = {spec.id: controller.overview.progress_of(spec.id) for spec in wanted}
        served = None if self._desk.rules.on_demand else self._listed_ids()
        return Facts(
            specs=specs,
            resident=resident,
            coming=coming,
            served=served,
            progress={model: one for model, one in progress.items() if one is not None},
            failures=self._desk.failures(),
            sleeping=frozenset(parked.model for parked in self._registry.parked()),
            room=self._history.room(),
        )


def _task_of(request: AnyRequest) -> Task:
    return "embed" if isinstance(request, EmbeddingRequest) else "generate"


def _check_task(spec: ModelSpec, task: Task) -> None:
    """Raises: InvalidRequest: the model is here, and for another task."""
    if spec.path is None or spec.task == task:
        return
    if spec.task == "embed":
        problem = "is an embedding model: it generates no text; use /v1/embeddings"
    else:
        problem = "is not an embedding model: it cannot be used for embeddings"
    raise InvalidRequest(f"{spec.id!r} {problem}.", param="model")


def _to_embed(request: GenerationRequest) -> EmbeddingRequest:
    """Raises: InvalidRequest: there are messages, which an embedding model knows nothing of."""
    prompts = tuple(one for one in request.prompts if not isinstance(one, ChatPrompt))
    if len(prompts) < len(request.prompts):
        raise InvalidRequest("An embedding model takes no messages.", param="messages")
    return EmbeddingRequest(prompts=prompts, model=request.model, counted=request.counted)


def _none_loaded(task: Task, name: str | None) -> ModelNotFound:
    """For a request that any model for ``task`` would suit, where there is none."""
    kind = "embedding model" if task == "embed" else "model"
    whose = f"{name[:200]!r}" if name else "no name"
    return ModelNotFound(
        f"No {kind} is loaded.",
        hint=f"A request for {whose} is answered by whichever is loaded: name one, or load one.",
    )


def _not_served(name: str) -> ModelNotFound:
    return ModelNotFound(
        f"The model {name[:200]!r} is not being served.",
        hint="(Other models are served with --enable-on-demand-loading.)",
    )
