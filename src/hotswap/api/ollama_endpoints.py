"""Ollama's routes that a model answers or comes for: chat, generate, embed and pull."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hotswap.api.body import read_object
from hotswap.api.dialect import Call, Stamp
from hotswap.api.documents import encode
from hotswap.api.endpoint import GenerationEndpoint
from hotswap.api.errors import ollama_envelope, presentable
from hotswap.api.ollama_answers import NDJSON
from hotswap.api.ollama_models import digest, naming
from hotswap.api.ollama_orders import EmbedCall, Presence, Pull, parse_pull
from hotswap.api.outbox import Outbox
from hotswap.api.pace import Pace
from hotswap.api.sse import EventStream, while_connected
from hotswap.contracts.answers import Embeddings
from hotswap.contracts.service import ModelService
from hotswap.errors import HotswapError

PARTS = 1000
"""What a download's ``total`` is: how many bytes there will be is not known here."""


class OllamaEndpoint:
    """An ASGI app for a route that takes a prompt. Without one it loads the model, or lets go of
    it where ``keep_alive`` is 0."""

    def __init__(
        self,
        service: ModelService,
        parse: Callable[[dict[str, Any]], Call],
        presence: Callable[[dict[str, Any]], Presence | None],
        *,
        keepalive_s: float,
        pace: Pace,
    ) -> None:
        self._service = service
        self._generation = GenerationEndpoint(service, parse, keepalive_s=keepalive_s, pace=pace)
        self._read: Callable[[dict[str, Any]], Call | Presence] = lambda fields: (
            presence(fields) or parse(fields)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wish = await read_object(receive, scope, self._read)
        if isinstance(wish, Call):
            with naming(wish.request.model):
                await self._generation.answer(wish, scope, receive, send)
            return
        with naming(wish.model):
            async with while_connected(receive):
                body = await self._fulfil(wish)
        await Response(body, media_type="application/json")(scope, receive, send)

    async def _fulfil(self, wish: Presence) -> bytes:
        stamp = Stamp()
        if wish.leaves:
            return wish.body(stamp, await self._service.let_go(wish.model), "unload")
        model = await self._service.warm(wish.model, keep_alive_s=wish.keep_alive_s)
        return wish.body(stamp, model, "load")


class EmbedEndpoint:
    """An ASGI app for a route that embeds."""

    def __init__(self, service: ModelService, parse: Callable[[dict[str, Any]], EmbedCall]) -> None:
        self._service = service
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await read_object(receive, scope, self._parse)
        stamp = Stamp()
        with naming(call.request.model):
            async with while_connected(receive):
                body = call.body(stamp, await self._embed(call))
        await Response(body, media_type="application/json")(scope, receive, send)

    async def _embed(self, call: EmbedCall) -> Embeddings:
        """Of nothing there are no vectors, but the model is loaded all the same."""
        request = call.request
        if request.prompts:
            return await self._service.embed(request)
        model = await self._service.warm(request.model, keep_alive_s=request.keep_alive_s)
        return Embeddings(model, (), 0)


class PullEndpoint:
    """``/api/pull``: a model is brought to this machine's disk."""

    def __init__(self, service: ModelService, *, keepalive_s: float) -> None:
        self._service = service
        self._keepalive_s = keepalive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        order = await read_object(receive, scope, parse_pull)
        if order.stream:
            await self._stream(order, scope, receive, send)
            return
        with naming(order.model):
            async with while_connected(receive):
                await self._service.pull(order.model, _unheard)
        await Response(_line(status="success"), media_type="application/json")(scope, receive, send)

    async def _stream(self, order: Pull, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = Outbox()
        progress = _PullProgress(outbox, order.model)
        stream = EventStream(send, NDJSON)
        async with while_connected(receive) as tasks:
            tasks.start_soon(self._pull, order, progress, scope["state"]["request_id"])
            tasks.start_soon(progress.show_life, self._keepalive_s)
            await stream.send_from(outbox, _failure)

    async def _pull(self, order: Pull, progress: _PullProgress, request_id: str) -> None:
        try:
            with naming(order.model):
                await self._service.pull(order.model, progress.report)
        except Exception as raised:
            progress.outbox.close(presentable(raised, request_id))
        else:
            progress.end()


class _PullProgress:
    """A download's progress as lines."""

    def __init__(self, outbox: Outbox, model: str) -> None:
        self.outbox = outbox
        self._digest = digest(model)
        self._stage = "downloading"
        self._done = -1
        """Parts that were told; -1: nothing was."""

    def report(self, stage: str, value: float) -> None:
        done = int(value * PARTS)
        if done == self._done:
            return
        self._begin()
        self._stage, self._done = stage, done
        self._tell()

    def end(self) -> None:
        self._begin()
        self.outbox.put(partial(_line, status="success"))
        self.outbox.close()

    async def show_life(self, keepalive_s: float) -> None:
        """Say it again for as long as nothing else is to be said."""
        while True:
            await self.outbox.silent(keepalive_s)
            self._begin()
            self._tell()

    def _begin(self) -> None:
        if self._done < 0:
            self._done = 0
            self.outbox.put(partial(_line, status="pulling manifest"))

    def _tell(self) -> None:
        self.outbox.put(
            partial(
                _line,
                status=f"{self._stage} {self._digest[:12]}",
                digest=self._digest,
                total=PARTS,
                completed=self._done,
            )
        )


def _unheard(_: str, __: float) -> None:
    """Progress that nobody waits for."""


def _failure(error: HotswapError) -> bytes:
    return _line(**ollama_envelope(error))


def _line(**fields: Any) -> bytes:
    return encode(fields) + b"\n"
