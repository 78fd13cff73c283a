"""An engine that embeds: texts in, batch after batch, vectors out.

As in `hotswap.engine.engine`, each thing has one owner of two threads. The device thread owns the
texts that wait; the event loop owns the requests that clients wait for. A request that is given up
is only marked, and the device thread looks at the marks, also between two layers of a model.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import queue
import time
from array import array
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hotswap.contracts.answers import Embeddings, Generation
from hotswap.contracts.engines import EngineStats
from hotswap.engine.device import is_out_of_memory
from hotswap.engine.embedding.batches import next_batch
from hotswap.engine.embedding.encoder import Encoder
from hotswap.engine.embedding.rendering import RenderedEmbedding
from hotswap.engine.engine import is_device_lost
from hotswap.errors import (
    DeviceLost,
    EngineFailed,
    HotswapError,
    InsufficientMemory,
    InvalidRequest,
    ModelUnloaded,
)

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Job:
    """One request."""

    rendered: RenderedEmbedding
    done: asyncio.Future[Embeddings]
    """The event loop's."""
    is_left: bool = False
    """Nobody waits for it any more."""
    # The device thread's.
    vectors: dict[int, array[float]] = field(default_factory=dict)
    """By the number of their text."""
    begun: bool = False
    ended: bool = False

    @property
    def embeddings(self) -> Embeddings:
        rendered = self.rendered
        vectors = tuple(self.vectors[number] for number in range(len(rendered.token_ids)))
        return Embeddings(rendered.model, vectors, rendered.prompt_tokens)


@dataclass(frozen=True, slots=True)
class _Text:
    job: _Job
    number: int

    @property
    def ids(self) -> tuple[int, ...]:
        return self.job.rendered.token_ids[self.number]


class _GivenUp(Exception):
    """Nobody waits for what is being computed."""


class EmbeddingEngine:
    """`hotswap.contracts.engines.Engine`. `drive` runs on the device thread; the other public
    methods belong to the event loop, `stats` and `failure` to anyone."""

    def __init__(
        self,
        *,
        generation: int,
        model: str,
        max_model_len: int,
        encoder: Encoder,
        batch_tokens: int,
        details: Mapping[str, Any],
        changed: Callable[[], None],
    ) -> None:
        """
        Args:
            batch_tokens: tokens that are computed together at most, if a text is not longer.
            changed: called on the event loop when a waiting request has begun or all has failed.
        """
        self.generation = generation
        self.max_model_len = max_model_len
        self._model = model
        self._encoder = encoder
        self._batch_tokens = batch_tokens
        self._details = details
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._wishes: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        """Requests; None ends it."""
        # The event loop's.
        self._jobs: set[_Job] = set()
        self._accepted = 0
        self._work_since = 0.0
        self._closing = False
        # The device thread's; read by others.
        self._waiting: list[_Text] = []
        """The oldest first."""
        self._failure: HotswapError | None = None
        self._stopping = False
        self._alive = True
        self._running = 0
        self._ended = 0
        self._steps = 0
        self._last_progress = time.monotonic()

    @property
    def failure(self) -> HotswapError | None:
        return self._failure

    def stats(self) -> EngineStats:
        running, waiting = self._running, len(self._waiting)
        return EngineStats(
            generation=self.generation,
            model=self._model,
            running=running,
            waiting=max(0, self._accepted - self._ended - running),
            steps=self._steps,
            tokens=0,
            last_progress=max(self._last_progress, self._work_since),
            alive=self._alive,
            details={**self._details, "waiting_texts": waiting},
        )

    # -- on the event loop -------------------------------------------------------------------

    def generate(self, rendered: Any) -> AbstractAsyncContextManager[Generation]:  # noqa: ARG002
        """See `hotswap.contracts.engines.Engine.generate`."""
        raise InvalidRequest(f"{self._model!r} is an embedding model.", param="model")

    async def embed(self, rendered: RenderedEmbedding) -> Embeddings:
        """See `hotswap.contracts.engines.Engine.embed`."""
        job = self._accept(rendered)
        try:
            return await job.done
        finally:
            job.is_left = True
            self._jobs.discard(job)

    def abort(self, error: HotswapError) -> None:
        """See `hotswap.contracts.engines.Engine.abort`."""
        for job in list(self._jobs):
            job.is_left = True
            _refuse(job, error)

    def stop(self) -> None:
        """Fail what runs and let `drive` return. Nothing is accepted from here on."""
        self._closing = True
        self.abort(ModelUnloaded(f"{self._model!r} was unloaded."))
        self._wishes.put(None)

    def _accept(self, rendered: RenderedEmbedding) -> _Job:
        if self._failure is not None:
            raise copy.copy(self._failure)
        if self._closing:
            raise ModelUnloaded(f"{self._model!r} is being unloaded.")
        if rendered.model != self._model:
            raise EngineFailed(f"A request for {rendered.model!r} reached {self._model!r}.")
        if any(len(ids) > self.max_model_len for ids in rendered.token_ids):
            raise InvalidRequest(f"A text is too long for {self._model!r}.", param="input")
        job = _Job(rendered, self._loop.create_future())
        self._jobs.add(job)
        if self._accepted == self._ended:  # that nothing moved until now is no hang
            self._work_since = time.monotonic()
        self._accepted += 1
        self._wishes.put(job)
        return job

    def _tell_failure(self) -> None:
        assert self._failure is not None
        self.abort(self._failure)
        self._changed()

    # -- on the device thread ----------------------------------------------------------------

    def drive(self) -> None:
        """Compute until stopped or failed; sleep while there is nothing to do."""
        try:
            while self._heed_wishes():
                self._drop_left()
                if self._waiting:
                    self._step()
        except Exception as error:
            _log.exception("The engine of %r failed between its steps", self._model)
            self._fail(error)
        finally:
            self._alive = False
            for text in self._waiting:
                text.job.is_left = True
            self._drop_left()

    def _heed_wishes(self) -> bool:
        if not self._waiting:
            self._heed(self._wishes.get())
            self._last_progress = time.monotonic()
        while not self._wishes.empty():
            self._heed(self._wishes.get())
        return not self._stopping and self._failure is None

    def _heed(self, job: _Job | None) -> None:
        if job is None:
            self._stopping = True
        else:
            self._waiting += [_Text(job, n) for n in range(len(job.rendered.token_ids))]

    def _drop_left(self) -> None:
        for text in self._waiting:
            if text.job.is_left:
                self._end(text.job)
        self._waiting = [text for text in self._waiting if not text.job.ended]

    def _step(self) -> None:
        lengths = [len(text.ids) for text in self._waiting]
        chosen = set(next_batch(lengths, self._batch_tokens))
        batch = [text for index, text in enumerate(self._waiting) if index in chosen]
        self._begin(batch)
        try:
            vectors = self._compute(batch)
        except _GivenUp:
            return
        except Exception as error:  # whatever a model's forward can raise
            self._recover(error, batch)
            return
        finally:
            self._last_progress = time.monotonic()
        self._steps += 1
        for text, vector in zip(batch, vectors, strict=True):
            if vector is None:
                self._refuse(text.job, EngineFailed("The model came to no numbers for a text."))
            else:
                text.job.vectors[text.number] = vector
        self._waiting = [text for i, text in enumerate(self._waiting) if i not in chosen]
        for job in {id(text.job): text.job for text in batch}.values():
            if len(job.vectors) == len(job.rendered.token_ids) and not job.ended:
                self._end(job)
                self._loop.call_soon_threadsafe(_grant, job, job.embeddings)

    def _begin(self, batch: list[_Text]) -> None:
        fresh = {id(text.job): text.job for text in batch if not text.job.begun}
        for job in fresh.values():
            job.begun = True
        self._running += len(fresh)
        if fresh:
            self._loop.call_soon_threadsafe(self._changed)

    def _end(self, job: _Job) -> None:
        if not job.ended:
            job.ended = True
            self._ended += 1
            self._running -= job.begun

    def _compute(self, batch: list[_Text]) -> list[array[float] | None]:
        """None: the model came to no numbers.

        Raises:
            _GivenUp
        """

        def look_up() -> None:
            self._last_progress = time.monotonic()
            if all(text.job.is_left for text in batch):
                raise _GivenUp

        vectors = self._encoder([text.ids for text in batch], look_up)
        vectors = vectors.cpu()
        finite = torch.isfinite(vectors).all(dim=1).tolist()
        return [
            _numbers(vector, text.job.rendered.dimensions) if sound else None
            for text, vector, sound in zip(batch, vectors, finite, strict=True)
        ]

    def _recover(self, error: Exception, batch: list[_Text]) -> None:
        """Out of memory makes the next batches smaller, or costs the only request of one; anything
        else costs the engine."""
        if is_out_of_memory(error):
            _log.warning("A step of %r ran out of memory", self._model)
            if len(batch) > 1:
                self._batch_tokens = max(1, sum(len(text.ids) for text in batch) // 2)
                return
            short = InsufficientMemory("The device ran out of memory for this request.")
            self._refuse(batch[0].job, short)
        else:
            _log.error("A step of %r failed", self._model, exc_info=error)
            self._fail(error)

    def _refuse(self, job: _Job, error: HotswapError) -> None:
        self._end(job)
        self._loop.call_soon_threadsafe(_refuse, job, error)

    def _fail(self, error: Exception) -> None:
        kind = DeviceLost if is_device_lost(error) else EngineFailed
        self._failure = kind("The engine failed while it answered.")
        self._loop.call_soon_threadsafe(self._tell_failure)


def _numbers(vector: Tensor, dimensions: int | None) -> array[float]:
    """``vector``, float32 [numbers]; cut to so many, and then of length 1."""
    if dimensions is not None:
        vector = functional.normalize(vector[:dimensions], dim=0)
    return array("f", vector.contiguous().numpy().tobytes())


def _grant(job: _Job, embeddings: Embeddings) -> None:
    if not job.done.done():
        job.done.set_result(embeddings)


def _refuse(job: _Job, error: HotswapError) -> None:
    if not job.done.done():
        job.done.set_exception(copy.copy(error))
