"""One generation request's life over ASGI: parse, be admitted, answer, stop on disconnect."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hotswap.api.body import read_object
from hotswap.api.dialect import Call, Frames, Stamp
from hotswap.api.errors import presentable
from hotswap.api.outbox import Outbox
from hotswap.api.pace import Pace
from hotswap.api.query import truth
from hotswap.api.sse import EventStream, progress_text, while_connected
from hotswap.api.traffic import Traffic
from hotswap.contracts.answers import Finished, Generation, GenerationEvent
from hotswap.contracts.service import ModelService
from hotswap.errors import EngineFailed, HotswapError


class GenerationEndpoint:
    """An ASGI app for one completion route.

    ``keepalive_s`` is how long a streaming request is held before its 200, so that a failure
    still has a status, and afterwards the longest silence on the wire. ``pace`` and ``traffic``
    are shared by all routes that answer.
    """

    def __init__(
        self,
        service: ModelService,
        parse: Callable[[dict[str, Any]], Call],
        *,
        keepalive_s: float,
        pace: Pace,
        traffic: Traffic,
    ) -> None:
        self._service = service
        self._parse = parse
        self._keepalive_s = keepalive_s
        self._pace = pace
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(await read_object(receive, scope, self._parse), scope, receive, send)

    async def answer(self, parsed: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """What follows when the body has been read."""
        request = replace(parsed.request, request_id=scope["state"]["request_id"])
        call = replace(parsed, request=request)
        show_loading = truth(QueryParams(scope["query_string"]), "show_loading")
        stamp = Stamp()
        try:
            if call.stream:
                await self._stream(call, stamp, show_loading, receive, send)
            else:
                async with while_connected(receive):
                    body = await _answer(self._service, call, stamp)
                await Response(body, media_type="application/json")(scope, receive, send)
        finally:
            self._traffic.ended(stamp)

    async def _stream(
        self,
        call: Call,
        stamp: Stamp,
        show_loading: bool | None,
        receive: Receive,
        send: Send,
    ) -> None:
        answer = _StreamedAnswer(self._service, call, stamp, self._pace, show_loading)
        async with while_connected(receive) as tasks:
            tasks.start_soon(answer.produce)
            tasks.start_soon(answer.show_life, self._keepalive_s)
            await answer.write(EventStream(send, call.media_type))


async def _answer(service: ModelService, call: Call, stamp: Stamp) -> bytes:
    document = call.document(stamp)
    unfinished = call.choices
    async with service.generate(call.request) as generation:
        stamp.admitted = time.monotonic()
        stamp.prompt_tokens = generation.prompt_tokens
        async for events in generation:
            stamp.note_events()
            unfinished -= _finished(events)
            for event in events:
                document.add(event)
    _check_whole(unfinished)
    return document.body(generation.model, generation.prompt_tokens)


class _StreamedAnswer:
    """A producer that lives inside the generation and a writer that lives on the connection.

    The producer leaves the generation when that ends, however much the reader has still to read.
    """

    def __init__(
        self,
        service: ModelService,
        call: Call,
        stamp: Stamp,
        pace: Pace,
        show_loading: bool | None,
    ) -> None:
        """
        Args:
            show_loading: As text that a person sees; None: as the model's settings have it.
        """
        self._service = service
        self._call = call
        self._pace = pace
        self._show_loading = show_loading
        self._stamp = stamp
        self._frames = call.frames(self._stamp, call.request.model or "")
        self._outbox = Outbox()

    async def produce(self) -> None:
        try:
            async with self._service.generate(self._call.request) as generation:
                self._stamp.admitted = time.monotonic()
                self._stamp.prompt_tokens = generation.prompt_tokens
                self._frames = self._call.frames(self._stamp, generation.model)
                with self._pace.stream():
                    await self._collect(generation)
        except Exception as raised:
            self._outbox.close(presentable(raised, self._call.request.request_id))
        else:
            self._outbox.close()

    async def _collect(self, generation: Generation) -> None:
        frames = self._frames
        unfinished = self._call.choices
        self._outbox.put(frames.opening)
        async for events in generation:
            self._stamp.note_events()
            self._outbox.put(partial(_written, frames, events))
            unfinished -= _finished(events)
            if unfinished:  # else the model is held up for nothing
                await self._pace.rest()
        _check_whole(unfinished)
        self._outbox.put(partial(frames.closing, generation.prompt_tokens))

    async def write(self, stream: EventStream) -> None:
        """Send what comes.

        Raises:
            HotswapError: the request failed before anything was sent.
        """
        await stream.send_from(self._outbox, self._failure)

    def _failure(self, error: HotswapError) -> bytes:
        return self._frames.failure(error)

    async def show_life(self, keepalive_s: float) -> None:
        """Signs of life for as long as nothing else comes."""
        await self._outbox.silent(keepalive_s)
        if self._show_loading is None:
            self._show_loading = await self._service.shows_loading(self._call.request.model)
        while True:
            self._outbox.put(self._sign_of_life)
            await self._outbox.silent(keepalive_s)

    def _sign_of_life(self) -> bytes:
        if self._stamp.admitted is not None:
            return self._frames.alive("generating")
        text = progress_text(self._service.snapshot())
        if self._show_loading:
            return self._frames.loading(f"{text}\n")
        return self._frames.alive(text)


def _written(frames: Frames, events: tuple[GenerationEvent, ...]) -> bytes:
    return b"".join(map(frames.event, events))


def _finished(events: tuple[GenerationEvent, ...]) -> int:
    """How many choices these events end."""
    return sum([isinstance(event, Finished) for event in events])


def _check_whole(unfinished: int) -> None:
    if unfinished:
        raise EngineFailed("the engine ended the answer early")
