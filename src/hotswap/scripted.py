"""A stand-in for the engine floor that does as it is told.

`ScriptedRegistry` keeps every promise of `EngineRegistry` without torch and without threads, so
that the floors above can be run in milliseconds and in virtual time. What it does is in its
`Script`, which may be changed while it runs. It checks the promises made to it as well: at most
one engine at a time, nothing generated on a dead one.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
from anyio import Event

from hotswap.contracts.answers import Embeddings, Finished, GenerationEvent, TextDelta
from hotswap.contracts.engines import EngineStats, ParkedModel
from hotswap.contracts.models import AppliedSetting, ChatFacts, ModelSpec, Task
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import Estimate, MemoryReport
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest
from hotswap.errors import (
    CheckpointRefused,
    HotswapError,
    InvalidRequest,
    ModelNotFound,
    ModelUnloaded,
    ModelUnusable,
)

MODEL_BYTES = 1000
"""What a scripted engine claims to take on the device."""


@dataclass
class Script:
    """How long things take, in seconds, and what fails."""

    render_s: float = 0.0
    prepare_s: float = 1.0
    start_s: float = 0.1
    stop_s: float = 0.01
    token_s: float = 0.1
    tokens: int = 5
    """Tokens of an answer whose request sets no ``max_tokens``."""
    answer: Sequence[GenerationEvent] = ()
    """Instead of words: what choice 0 of every request is answered with, one each ``token_s``; its
    last event must be a `Finished`."""
    device_bytes: int = 10 * MODEL_BYTES
    """What an estimate says is free."""
    parks: bool = True
    """Host memory has room for what leaves the device."""
    room_tokens: dict[str, int] = field(default_factory=dict)
    """By model: tokens of prompt and answer that there is memory for."""
    leaked_bytes: dict[str, int] = field(default_factory=dict)
    """By model: what it leaves behind on the device each time."""
    render_errors: dict[str, HotswapError] = field(default_factory=dict)
    prepare_errors: dict[str, HotswapError] = field(default_factory=dict)
    start_errors: dict[str, HotswapError] = field(default_factory=dict)
    stop_errors: dict[str, HotswapError] = field(default_factory=dict)


@dataclass(frozen=True)
class ScriptedPrompt:
    """A rendered request: the model it is for and how many tokens to answer with."""

    model: str
    prompt_tokens: int
    tokens: int
    choices: int

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        return (tuple(range(self.prompt_tokens)),)

    @property
    def token_texts(self) -> tuple[tuple[str, ...], ...]:
        return (tuple(map(str, range(self.prompt_tokens))),)


@dataclass(frozen=True)
class ScriptedModel:
    spec: ModelSpec


class ScriptedGeneration:
    """Answers ``model 0 model 1 model 2 ...``, one word per ``token_s``."""

    def __init__(self, engine: ScriptedEngine, prompt: ScriptedPrompt) -> None:
        self._engine = engine
        self._prompt = prompt
        self.model = engine.model
        self.prompt_tokens = prompt.prompt_tokens

    async def __aiter__(self) -> AsyncIterator[tuple[GenerationEvent, ...]]:
        if self._engine.script.answer:
            for event in self._engine.script.answer:
                await self._engine.step()
                yield (event,)
            return
        choices = range(self._prompt.choices)
        for number in range(self._prompt.tokens):
            await self._engine.step()
            word = f"{self.model} {number} "
            yield tuple(TextDelta(index=index, text=word) for index in choices)
        tokens = self._prompt.tokens
        yield tuple(Finished(index=i, reason="stop", completion_tokens=tokens) for i in choices)


class ScriptedEngine:
    """An engine that counts what happens to it."""

    def __init__(
        self, generation: int, model: str, script: Script, changed: Callable[[], None]
    ) -> None:
        self.generation = generation
        self.model = model
        self.alive = True
        self.running = 0
        self.waiting = 0
        self.steps = 0
        self.served = 0
        self.last_progress = anyio.current_time()
        self.first_token: float | None = None
        self.script = script
        self._room_tokens = script.room_tokens.get(model)
        self._changed = changed
        self._failure: HotswapError | None = None
        self._ended: HotswapError | None = None
        self._interrupt = Event()

    @property
    def failure(self) -> HotswapError | None:
        return self._failure

    @asynccontextmanager
    async def generate(self, rendered: ScriptedPrompt) -> AsyncIterator[ScriptedGeneration]:
        assert self.alive, "a request was sent to an engine that has left the device"
        assert rendered.model == self.model, f"{rendered.model} was sent to {self.model}"
        if self._failure is not None:
            raise self._failure
        if not self.running:
            self.last_progress = anyio.current_time()
        self.running += 1
        self.served += 1
        try:
            yield ScriptedGeneration(self, rendered)
        finally:
            self.running -= 1

    async def embed(self, rendered: ScriptedPrompt) -> Embeddings:
        """One step, and for each prompt its number as a vector of one."""
        async with self.generate(rendered):
            await self.step()
        vectors = tuple(array("f", [float(number)]) for number in range(rendered.choices))
        return Embeddings(self.model, vectors, rendered.prompt_tokens)

    async def step(self) -> None:
        """Take the time of one token.

        Raises:
            HotswapError: the engine failed, was aborted, or left meanwhile.
        """
        with anyio.move_on_after(self.script.token_s):
            await self._interrupt.wait()
        if self._ended is not None:
            raise self._ended
        self.steps += 1
        self.last_progress = anyio.current_time()
        self.first_token = self.first_token or self.last_progress

    def abort(self, error: HotswapError) -> None:
        self._ended = error
        self._interrupt.set()

    def fail(self, error: HotswapError) -> None:
        """Break down, as an engine whose step raised does."""
        self._failure = error
        self.abort(error)
        self._changed()

    def stats(self) -> EngineStats:
        return EngineStats(
            generation=self.generation,
            model=self.model,
            running=self.running,
            waiting=self.waiting,
            steps=self.steps,
            tokens=self.steps,
            last_progress=self.last_progress,
            first_token=self.first_token,
            last_token=self.last_progress if self.steps else None,
            alive=self.alive and self._failure is None,
            details={"max_model_len": room} if (room := self._room_tokens) is not None else {},
        )


class ScriptedRegistry:
    """An `EngineRegistry` of `ScriptedEngine`."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.prepared: list[str] = []
        """Models in the order in which they were prepared; a cancelled one is not in it."""
        self.started: list[str] = []
        self.engines: list[ScriptedEngine] = []
        self._current: ScriptedEngine | None = None
        self._memory: MemoryReport | None = None
        self._parked: dict[str, ParkedModel] = {}

    @property
    def current(self) -> ScriptedEngine | None:
        return self._current

    @property
    def memory(self) -> MemoryReport | None:
        return self._memory

    async def render(self, spec: ModelSpec, request: GenerationRequest) -> ScriptedPrompt:
        await self._look_up(spec)
        tokens = self.script.tokens if request.max_tokens is None else request.max_tokens
        choices = len(request.prompts) * request.n
        return ScriptedPrompt(spec.id, 7 * len(request.prompts), tokens, choices)

    async def render_embedding(self, spec: ModelSpec, request: EmbeddingRequest) -> ScriptedPrompt:
        await self._look_up(spec)
        prompts = len(request.prompts)
        return ScriptedPrompt(spec.id, 7 * prompts, tokens=0, choices=prompts)

    async def _look_up(self, spec: ModelSpec) -> None:
        await anyio.sleep(self.script.render_s)
        if spec.path is None:
            raise CheckpointRefused(f"The files of {spec.id!r} are not here.")
        if error := self.script.render_errors.get(spec.id):
            raise error

    async def detokenize(self, spec: ModelSpec, ids: Sequence[int]) -> str:
        return f"{spec.id}: {' '.join(map(str, ids))}"

    async def chat_facts(self, spec: ModelSpec) -> ChatFacts:
        """Of a model that chats by the template of its settings, if it has one."""
        await self._look_up(spec)
        template = spec.engine.chat_template
        return ChatFacts(template=template, tools="tools" in (template or ""))

    async def prepare(self, spec: ModelSpec, report: Report) -> ScriptedModel:
        report("checking", 1.0)
        report("reading", 0.0)
        await anyio.sleep(self.script.prepare_s)
        if error := self.script.prepare_errors.get(spec.id):
            raise error
        report("reading", 1.0)
        self.prepared.append(spec.id)
        return ScriptedModel(spec)

    @asynccontextmanager
    async def start(
        self, prepared: ScriptedModel, report: Report, changed: Callable[[], None]
    ) -> AsyncIterator[ScriptedEngine]:
        assert self._current is None, "two engines on one device"
        report("starting", 0.0)
        await anyio.sleep(self.script.start_s)
        if error := self.script.start_errors.get(prepared.spec.id):
            raise error
        engine = ScriptedEngine(len(self.engines) + 1, prepared.spec.id, self.script, changed)
        self.engines.append(engine)
        self.started.append(engine.model)
        self._current = engine
        self._parked.pop(engine.model, None)
        try:
            yield engine
        finally:
            engine.abort(ModelUnloaded("The model was unloaded."))
            self._current = None
            leaked = self.script.leaked_bytes.get(engine.model, 0)
            self._memory = MemoryReport(
                before_bytes=MODEL_BYTES,
                after_bytes=leaked,
                baseline_bytes=0,
                leaked_bytes=leaked,
            )
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.script.stop_s)
            engine.alive = False
            if self.script.parks:
                self._parked[engine.model] = ParkedModel(model=engine.model, bytes=MODEL_BYTES)
            if error := self.script.stop_errors.get(prepared.spec.id):
                raise error

    def parked(self) -> tuple[ParkedModel, ...]:
        """Every model that left the device while `Script.parks`, until it comes back or is
        forgotten."""
        return tuple(self._parked.values())

    def forget(self, model: str) -> None:
        self._parked.pop(model, None)

    async def estimate(self, spec: ModelSpec) -> Estimate:
        if error := self.script.prepare_errors.get(spec.id):
            raise error
        need = 2 * MODEL_BYTES
        return Estimate(
            weights_bytes=MODEL_BYTES,
            kv_bytes=MODEL_BYTES,
            device_free_bytes=self.script.device_bytes,
            host_free_bytes=self.script.device_bytes,
            fits=need <= self.script.device_bytes,
            reason=None if need <= self.script.device_bytes else "The device is too small.",
        )


class ScriptedCatalog:
    """A `ModelCatalog` over a fixed list of names."""

    def __init__(self, *specs: ModelSpec, startup: str | None = None) -> None:
        self._specs = {spec.id: spec for spec in specs}
        self._startup = startup
        self.fetch_s = 1.0
        self.fetch_errors: dict[str, HotswapError] = {}
        self.fetched: list[str] = []
        self.fetched_tasks: dict[str, Task] = {}
        """What models turn out to be for, unless it is "generate"."""

    @property
    def startup(self) -> str | None:
        return self._startup

    async def models(self) -> tuple[ModelSpec, ...]:
        """Those without files that have a fault are directories without a model."""
        specs = self._specs.values()
        return tuple(spec for spec in specs if spec.path is not None or spec.fault is None)

    def unusable(self) -> Mapping[str, str]:
        return {spec.id: spec.fault for spec in self._specs.values() if spec.fault is not None}

    async def resolve(self, name: str) -> ModelSpec:
        for spec in self._specs.values():
            if name in (spec.id, *spec.aliases):
                if spec.fault is not None:
                    raise ModelUnusable(spec.fault, model=spec.id)
                return spec
        raise ModelNotFound(f"The model {name!r} does not exist.")

    def override(self, spec: ModelSpec, overrides: Mapping[str, Any], source: str) -> ModelSpec:
        if unknown := overrides.keys() - {"max_model_len"}:
            raise InvalidRequest("Unknown setting.", param=sorted(unknown)[0])
        applied = {key: AppliedSetting(value, source) for key, value in overrides.items()}
        return replace(spec, engine=replace(spec.engine, **overrides), applied=applied)

    async def fetch(self, spec: ModelSpec, report: Report) -> ModelSpec:
        for tenth in range(10):
            report("downloading", tenth / 10)
            await anyio.sleep(self.fetch_s / 10)
        if spec.id in self.fetch_errors:
            raise self.fetch_errors[spec.id]
        self.fetched.append(spec.id)
        task = self.fetched_tasks.get(spec.id, "generate")
        local = self._specs[spec.id] = replace(spec, path=Path("downloaded"), task=task)
        return local
