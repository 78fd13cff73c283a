"""Continuous batching: wishes in, one step after the other, events out.

Two threads share an engine, and each thing has one owner. The device thread owns the scheduler and
the sequences. The event loop owns the generations that clients iterate. Wishes (add, drop, stop)
go to the device thread through a queue that wakes it; results come back as one post per step. So
a busy event loop never delays a step, and a step never delays the event loop.

Where the device computes by itself, the next step is launched before the tokens of the last one
are looked at, as long as that changes nothing but the order of things. What such a step draws for
an answer that turns out to have ended is not used.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import queue
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hotswap.contracts.answers import Embeddings, Finished
from hotswap.contracts.engines import EngineStats
from hotswap.engine.answer import AnswerText
from hotswap.engine.device import is_out_of_memory
from hotswap.engine.drawing import SamplingRow, seed_of_choice
from hotswap.engine.generation import Post, Postbox, TorchGeneration
from hotswap.engine.growth import Growth
from hotswap.engine.runner import Launched, ModelRunner
from hotswap.engine.scheduler import Plan, Scheduler
from hotswap.engine.sequence import Sequence
from hotswap.engine.spoken import SpokenText
from hotswap.engine.text import RenderedPrompt, RenderedRequest, answer_room, prompt_name
from hotswap.errors import (
    DeviceLost,
    EngineFailed,
    HotswapError,
    InsufficientMemory,
    InvalidRequest,
    ModelUnloaded,
)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request on the device thread."""

    number: int
    """Of its generation."""
    unfinished: int
    """Sequences of it."""
    begun: bool = False
    """One of them has been in a step."""


class TorchEngine:
    """`hotswap.contracts.engines.Engine`. `drive` runs on the device thread; the other public
    methods belong to the event loop, `stats` and `failure` to anyone."""

    def __init__(
        self,
        *,
        generation: int,
        model: str,
        max_model_len: int,
        runner: ModelRunner,
        scheduler: Scheduler,
        details: Mapping[str, Any],
        changed: Callable[[], None],
        growth: Growth | None = None,
        answered: Callable[[], None] | None = None,
        ahead: bool = False,
    ) -> None:
        """
        Args:
            changed: called on the event loop when a waiting request has begun or all has failed.
            growth: of the scheduler's pool; None: it stays as large as it is.
            answered: called once, on the device thread, when the first answer has ended.
            ahead: launch a step before the tokens of the last one are known, where possible.
        """
        self.generation = generation
        self.max_model_len = max_model_len
        self._model = model
        self._runner = runner
        self._scheduler = scheduler
        self._details = details
        self._changed = changed
        self._growth = growth
        self._answered = answered
        self._ahead = ahead
        self._outbox = Postbox(asyncio.get_running_loop(), self._receive)
        self._wishes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # The event loop's.
        self._ids = itertools.count()
        self._generations: dict[int, TorchGeneration] = {}
        """Those that more is to come for."""
        self._accepted = 0
        self._accepted_sequences = 0
        self._work_since = 0.0
        self._closing = False
        # The device thread's; read by others.
        self._sequences: dict[int, Sequence] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._under_way: Launched | None = None
        """The step whose results have not been taken."""
        self._failure: HotswapError | None = None
        self._stopping = False
        self._alive = True
        self._running = 0
        self._running_sequences = 0
        self._ended = 0
        self._ended_sequences = 0
        self._steps = 0
        self._tokens = 0
        self._last_progress = time.monotonic()
        self._first_token: float | None = None
        self._last_token: float | None = None

    @property
    def failure(self) -> HotswapError | None:
        return self._failure

    def stats(self) -> EngineStats:
        running, running_sequences = self._running, self._running_sequences
        sequences = self._accepted_sequences - self._ended_sequences
        return EngineStats(
            generation=self.generation,
            model=self._model,
            running=running,
            waiting=max(0, self._accepted - self._ended - running),
            steps=self._steps,
            tokens=self._tokens,
            last_progress=max(self._last_progress, self._work_since),
            alive=self._alive,
            first_token=self._first_token,
            last_token=self._last_token,
            details={
                **self._details,
                "running_sequences": running_sequences,
                "waiting_sequences": max(0, sequences - running_sequences),
                "kv_used_bytes": self._scheduler.used_bytes,
                "kv_remembered_bytes": self._scheduler.remembered_bytes,
                "kv_limit_bytes": self._scheduler.budget.limit_bytes,
                "reused_prompt_tokens": self._scheduler.reused_tokens,
            },
        )

    # -- on the event loop -------------------------------------------------------------------

    @asynccontextmanager
    async def generate(self, rendered: RenderedRequest) -> AsyncIterator[TorchGeneration]:
        """See `hotswap.contracts.engines.Engine.generate`."""
        generation = self._accept(rendered)
        try:
            yield generation
        finally:
            self._abandon(generation)

    async def embed(self, rendered: Any) -> Embeddings:  # noqa: ARG002
        """See `hotswap.contracts.engines.Engine.embed`."""
        raise InvalidRequest(f"{self._model!r} is not an embedding model.", param="model")

    def abort(self, error: HotswapError) -> None:
        """See `hotswap.contracts.engines.Engine.abort`."""
        for generation in list(self._generations.values()):
            generation.fail(error)
            self._abandon(generation)

    def stop(self) -> None:
        """Fail what runs and let `drive` return. Nothing is accepted from here on."""
        self._closing = True
        self.abort(ModelUnloaded(f"{self._model!r} was unloaded."))
        self._wishes.put(self._stop)

    def _accept(self, rendered: RenderedRequest) -> TorchGeneration:
        if self._failure is not None:
            raise copy.copy(self._failure)
        if self._closing:
            raise ModelUnloaded(f"{self._model!r} is being unloaded.")
        if rendered.model != self._model:
            raise EngineFailed(f"A request for {rendered.model!r} reached {self._model!r}.")
        sequences = [
            self._sequence(rendered, prompt, choice)
            for prompt in range(len(rendered.prompts))
            for choice in range(rendered.request.n)
        ]
        if self._accepted == self._ended:  # that nothing moved until now is no hang
            self._work_since = time.monotonic()
        number = self._accepted
        generation = TorchGeneration(number, self._model, rendered.prompt_tokens, sequences)
        self._generations[number] = generation
        self._accepted += 1
        self._accepted_sequences += len(sequences)
        self._wishes.put(partial(self._add, number, sequences))
        return generation

    def _sequence(self, rendered: RenderedRequest, prompt: int, choice: int) -> Sequence:
        request, source = rendered.request, rendered.prompts[prompt]
        name = prompt_name(request.prompts[prompt])
        room = answer_room(len(source.ids), request, self.max_model_len, name)
        index = prompt * request.n + choice
        tells_prompt = request.echo and request.logprobs is not None
        return Sequence(
            id=next(self._ids),
            tokens=list(source.ids[:1] if tells_prompt else source.ids),
            given=source.ids if tells_prompt else (),
            prompt_tokens=len(source.ids),
            max_tokens=room,
            min_tokens=request.min_tokens,
            end_ids=rendered.end_ids,
            row=SamplingRow(
                rendered.draw,
                seed=seed_of_choice(rendered.seed, choice),
                logprobs=request.logprobs,
            ),
            text=_answer_text(index, rendered, source),
            is_first_choice=choice == 0,
            guide=None if source.grammar is None else source.grammar.matcher(),
        )

    def _abandon(self, generation: TorchGeneration) -> None:
        if self._generations.pop(generation.number, None) is not None:
            self._wishes.put(partial(self._drop, generation.sequences))

    def _receive(self) -> None:
        changed = False
        for post in self._outbox.take():
            changed |= post.changed
            for number, events in post.events.items():
                generation = self._generations.get(number)
                if generation is None:
                    continue
                generation.deliver(events)
                if generation.complete:
                    del self._generations[number]
            for number, error in post.errors.items():
                generation = self._generations.get(number)
                if generation is not None:
                    generation.fail(error)
                    self._abandon(generation)
        if self._failure is not None:
            self.abort(self._failure)
        if changed:
            self._changed()

    # -- on the device thread ----------------------------------------------------------------

    def drive(self) -> None:
        """Step until stopped or failed; sleep while there is nothing to do."""
        try:
            while self._heed_wishes():
                if self._busy:
                    self._step()
        except Exception as error:
            _log.exception("The engine of %r failed between its steps", self._model)
            self._fail(error)
        finally:
            self._alive = False
            self._under_way = None
            for sequence in list(self._sequences.values()):
                self._forget(sequence)

    @property
    def _busy(self) -> bool:
        return bool(self._sequences) or self._under_way is not None

    def _heed_wishes(self) -> bool:
        if not self._busy:
            self._wishes.get()()
            self._last_progress = time.monotonic()
        while not self._wishes.empty():
            self._wishes.get()()
        return not self._stopping and self._failure is None

    def _stop(self) -> None:
        self._stopping = True

    def _add(self, number: int, sequences: list[Sequence]) -> None:
        ticket = _Ticket(number, len(sequences))
        for sequence in sequences:
            self._sequences[sequence.id] = sequence
            self._tickets[sequence.id] = ticket
            self._scheduler.add(sequence)

    def _drop(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        if self._sequences.pop(sequence.id, None) is None:
            return
        self._scheduler.remove(sequence)
        self._runner.drop(sequence)
        self._ended_sequences += 1
        self._running_sequences = len(self._scheduler.running)
        ticket = self._tickets.pop(sequence.id)
        ticket.unfinished -= 1
        if not ticket.unfinished:
            self._ended += 1
            self._running -= ticket.begun

    def _count_begun(self, plan: Plan) -> None:
        for chunk in plan.chunks:
            ticket = self._tickets[chunk.sequence.id]
            if not ticket.begun:
                ticket.begun = True
                self._running += 1

    def _step(self) -> None:
        """Launch a step, take the results of one, or both."""
        post = Post()
        last, self._under_way = self._under_way, None
        try:
            if last is None or self._scheduler.steady:
                self._under_way = self._launch(last, post)
            if not self._ahead:
                last, self._under_way = self._under_way, None
            if last is not None:
                self._collect(last, post)
        except Exception as error:  # whatever a model's forward can raise
            self._recover(error, post)
        self._last_progress = time.monotonic()
        self._send(post)
        if not self._busy:  # only now: nobody is to wait for it
            self._scheduler.pool.settle()
        if self._ended and self._answered is not None:
            self._answered()
            self._answered = None

    def _launch(self, after: Launched | None, post: Post) -> Launched | None:
        """None: those on their way are the last tokens of all answers."""
        waiting = len(self._scheduler.waiting)
        if self._growth is not None:
            self._growth.provide()
        plan = self._scheduler.plan()
        self._running_sequences = len(self._scheduler.running)
        self._count_begun(plan)
        post.changed = len(self._scheduler.waiting) < waiting
        for sequence in plan.preempted:
            self._runner.drop(sequence)
        if after is not None and not plan.chunks:
            return None
        if self._scheduler.stuck:
            self._refuse(self._scheduler.waiting[0], post)
            return None
        launched = self._runner.launch(plan, after)
        self._scheduler.computed(plan)
        self._steps += 1
        return launched

    def _collect(self, launched: Launched, post: Post) -> None:
        results = launched.results()
        if results:
            self._last_token = time.monotonic()
            self._first_token = self._first_token or self._last_token
        for sequence, draw in results:
            if sequence.id not in self._sequences:  # it ended, or its client left, meanwhile
                continue
            sequence.accept(draw)
            self._tokens += sequence.answer_tokens > 0
            if sequence.lost:
                self._give_up(sequence, post)
            else:
                self._report(sequence, post)

    def _report(self, sequence: Sequence, post: Post) -> None:
        text, finished = sequence.text, sequence.finished
        if finished is not None:
            text.finish(cut=finished == "length")
        number = self._tickets[sequence.id].number
        for event in text.events():
            post.add(number, event)
        if finished is not None:
            stopped = text.stop_sequence is not None
            calls = finished == "stop" and text.called and not stopped
            end = Finished(
                index=text.index,
                reason="tool_calls" if calls else "stop" if stopped else finished,
                completion_tokens=sequence.answer_tokens,
                reasoning_tokens=text.reasoning_tokens,
                cached_tokens=(sequence.cached_tokens or 0) if sequence.is_first_choice else 0,
                stop_sequence=text.stop_sequence,
            )
            post.add(number, end)
            self._forget(sequence)

    def _give_up(self, sequence: Sequence, post: Post) -> None:
        """Only its guide knows what could follow, and does not say."""
        assert sequence.guide is not None
        post.errors[self._tickets[sequence.id].number] = InvalidRequest(
            f"The answer cannot go on after {sequence.answer_tokens} tokens: what may follow takes "
            "too long to find out, or this model has no tokens for it.",
            param=sequence.guide.param,
        )
        self._forget(sequence)

    def _refuse(self, sequence: Sequence, post: Post) -> None:
        """Memory that it was promised has become another process's."""
        short = InsufficientMemory("The device has no memory for so long a request any more.")
        post.errors[self._tickets[sequence.id].number] = short
        self._forget(sequence)

    def _recover(self, error: Exception, post: Post) -> None:
        """Out of memory costs the newest of the largest requests; anything else the engine."""
        self._under_way = None
        running = self._scheduler.running
        if is_out_of_memory(error) and running:
            _log.warning("A step of %r ran out of memory", self._model)
            if self._growth is None or not self._growth.relieve():
                victim = max(running, key=lambda s: (s.table.tokens, s.id))
                short = InsufficientMemory("The device ran out of memory for this request.")
                post.errors[self._tickets[victim.id].number] = short
                self._forget(victim)
            for sequence in reversed(running.copy()):
                self._scheduler.preempt(sequence)
                self._runner.drop(sequence)
            return
        _log.error("A step of %r failed", self._model, exc_info=error)
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        kind = DeviceLost if is_device_lost(error) else EngineFailed
        self._failure = kind("The engine failed while it answered.")
        self._under_way = None
        for sequence in list(self._sequences.values()):
            self._forget(sequence)
        self._send(Post(changed=True))

    def _send(self, post: Post) -> None:
        if post:
            self._outbox.put(post)


def _answer_text(index: int, rendered: RenderedRequest, source: RenderedPrompt) -> AnswerText:
    vocabulary, stop = rendered.vocabulary, rendered.request.stop
    if source.hearing is None:
        return AnswerText(index, vocabulary, stop, source.echo)
    return SpokenText(index, vocabulary, source.hearing, stop, source.echo)


def is_device_lost(error: BaseException) -> bool:
    """The device's context is broken for the rest of the process."""
    return isinstance(error, torch.AcceleratorError)
