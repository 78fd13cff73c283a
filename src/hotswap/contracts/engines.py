"""An engine, and who builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from hotswap.contracts.answers import Embeddings, Generation
from hotswap.contracts.models import ChatFacts, ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import Estimate, MemoryReport
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest
from hotswap.errors import HotswapError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A reading of one engine; cheap, safe from any thread."""

    generation: int
    """Counts engines of this process. Two readings with different numbers are of two engines."""
    model: str
    running: int
    waiting: int
    steps: int
    tokens: int
    last_progress: float
    """Monotonic time of the last finished step, of the engine's start, or of when there was work
    again after there had been none, whichever came last."""
    alive: bool
    """The engine's driving thread runs."""
    first_token: float | None = None
    """Monotonic time of the first token; None: there has been none."""
    last_token: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Rendered(Protocol):
    """A request as one model's token ids, checked against that model's limits."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """Of each prompt."""

    @property
    def token_texts(self) -> tuple[tuple[str, ...], ...]:
        """What each of these tokens stands for. Made when it is asked for."""


class Engine(Protocol):
    """A model on the device."""

    @property
    def generation(self) -> int:
        """See `EngineStats.generation`."""

    @property
    def failure(self) -> HotswapError | None:
        """Why the engine stopped working; None while it works."""

    def generate(self, rendered: Any) -> AbstractAsyncContextManager[Generation]:
        """Entering: accepted, so every refusal is still an exception here. Leaving: aborted if
        unfinished; the sequences are gone before the next step.

        Raises:
            InvalidRequest: it does not fit this engine (its settings may have changed meanwhile).
        """

    async def embed(self, rendered: Any) -> Embeddings:
        """Compute what `EngineRegistry.render_embedding` made; given up when cancelled.

        Raises:
            InvalidRequest: this engine embeds nothing.
            HotswapError: the engine failed or was aborted.
        """

    def abort(self, error: HotswapError) -> None:
        """End every running answer with ``error``."""

    def stats(self) -> EngineStats: ...


class PreparedModel(Protocol):
    """A model in host memory, checked and ready to be put on the device, again and again."""

    @property
    def spec(self) -> ModelSpec: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedModel:
    model: str
    bytes: int


class EngineRegistry(Protocol):
    """Builds, parks and tears down engines. One engine at a time is on the device."""

    @property
    def current(self) -> Engine | None:
        """The engine on the device, for whoever watches it; from any thread."""

    @property
    def memory(self) -> MemoryReport | None:
        """The reading of the last teardown."""

    async def render(self, spec: ModelSpec, request: GenerationRequest) -> Rendered:
        """Resolve everything in ``request`` that depends on the model, without loading weights.

        Raises:
            InvalidRequest: what is asked cannot be done by this model.
            ModelLoadFailed: the model's tokenizer or configuration is unusable.
        """

    async def render_embedding(self, spec: ModelSpec, request: EmbeddingRequest) -> Rendered:
        """As `render`, of texts to be embedded.

        Raises:
            InvalidRequest: what is asked cannot be done by this model.
            ModelLoadFailed: as `render`.
        """

    async def detokenize(self, spec: ModelSpec, ids: Sequence[int]) -> str:
        """The text that tokens stand for, special ones included.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
            ModelLoadFailed: as `render`.
        """

    async def chat_facts(self, spec: ModelSpec) -> ChatFacts:
        """Raises: ModelLoadFailed: as `render`."""

    async def prepare(self, spec: ModelSpec, report: Report) -> PreparedModel:
        """Bring a model to host memory. Slow, may fail, leaves the device alone; stops when
        cancelled.

        Raises:
            ModelLoadFailed: with a reason fit for a client.
            InsufficientMemory: it does not fit.
        """

    def start(
        self, prepared: Any, report: Report, changed: Callable[[], None]
    ) -> AbstractAsyncContextManager[Engine]:
        """Entering puts the model on the device and starts its engine; leaving stops it, frees
        the device and measures that it is free. ``changed`` is called on the event loop whenever
        ``engine.failure`` or the engine's queue changed.

        Raises:
            ModelLoadFailed, InsufficientMemory: on entering; the device is free again.
        """

    def parked(self) -> Sequence[ParkedModel]:
        """Models that left the device and are kept in host memory."""

    def forget(self, model: str) -> None:
        """Let go of a parked model, also of a pinned one; of any other, do nothing."""

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """What ``spec`` would take. Reads headers, no weights.

        Raises:
            ModelLoadFailed: its files are unusable.
        """
