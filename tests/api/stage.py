"""A scripted `ModelService`, and a client that speaks ASGI to the app without a network."""

from __future__ import annotations

import json
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from starlette.types import ASGIApp, Message, Scope

from hotswap.api.app import create_app
from hotswap.config import ServerConfig, Settings
from hotswap.contracts.answers import Embeddings, Finished, GenerationEvent, TextDelta, Tokenized
from hotswap.contracts.listing import ModelDescription, ModelListing
from hotswap.contracts.models import ChatFacts, ModelFacts
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import Estimate, LoadForecast, LoadReport, UnloadReport
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest, SamplingParams
from hotswap.contracts.service import UnloadMode
from hotswap.contracts.snapshot import SwapPhase, SwapSnapshot, UnloadReason
from hotswap.errors import ModelNotFound

T = TypeVar("T")
Step = tuple[GenerationEvent, ...] | Exception | anyio.Event | threading.Event
"""Events to hand out, an error to raise, or something to wait for, perhaps from another thread."""

KEEPALIVE_S = 30.0
"""Never reached by a test that is not about it."""


def hello(choices: int = 1) -> tuple[Step, ...]:
    """What an engine answers: "Hello" for each choice, in two deltas."""
    each = range(choices)
    return (
        tuple(TextDelta(index=i, text=text) for text in ("Hel", "lo") for i in each),
        tuple(Finished(index=i, reason="stop", completion_tokens=2) for i in each),
    )


HELLO = hello()
READY = SwapSnapshot(
    version=1,
    phase=SwapPhase.READY,
    resident=None,
    progress=None,
    waiting={},
    leases=0,
    parked=(),
    failures={},
    last_error=None,
    engine=None,
    loads=1,
    swaps=0,
    unloads_by_reason=dict.fromkeys(UnloadReason, 0),
    tokens=0,
    serviceable=True,
    timings={},
    phase_seconds={},
    memory=None,
)
SUMS = ModelListing(
    id="hotswap/sums",
    aliases=("sums",),
    created_unix=1700000000,
    owned_by="hotswap",
    status="loaded",
    max_model_len=512,
    facts=ModelFacts(
        family="qwen3", dtype="bfloat16", weights_bytes=1_200_000_000, parameters=600_000_000
    ),
)
TALES = replace(
    SUMS, id="hotswap/tales", aliases=(), status="unloaded", facts=ModelFacts(family="qwen3")
)


class ScriptedGeneration:
    def __init__(self, model: str, steps: Sequence[Step]) -> None:
        self.model = model
        self.prompt_tokens = 7
        self._steps = steps

    async def __aiter__(self) -> AsyncIterator[tuple[GenerationEvent, ...]]:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, anyio.Event):
                await step.wait()
            elif isinstance(step, threading.Event):
                await anyio.to_thread.run_sync(step.wait, 5)
            else:
                yield step


@dataclass
class ScriptedService:
    """Answers every request with ``steps`` and notes what it was asked."""

    steps: Sequence[Step] | None = None
    """None: each choice says hello."""
    refusal: Exception | None = None
    admission: anyio.Event | None = None
    """Where set, a request waits for it before it is admitted."""
    listings: tuple[ModelListing, ...] = (SUMS, TALES)
    load_result: LoadReport | Exception = field(
        default_factory=lambda: LoadReport(
            model="hotswap/sums",
            previous_model="hotswap/tales",
            load_time_s=44.031,
            already_loaded=False,
            timings={"prepare": 44.0},
            config_applied={"max_model_len": {"value": 64, "source": "request"}},
        )
    )
    forecast_result: LoadForecast | Exception = field(
        default_factory=lambda: LoadForecast(
            model="hotswap/sums",
            already_loaded=False,
            leaves="hotswap/tales",
            expected_s=1.5,
            estimate=Estimate(
                weights_bytes=700,
                kv_bytes=200,
                device_free_bytes=1000,
                host_free_bytes=5000,
                fits=True,
            ),
        )
    )
    unload_result: UnloadReport | Exception = field(
        default_factory=lambda: UnloadReport(model="hotswap/sums", total_time_s=1.284)
    )
    requests: list[GenerationRequest] = field(default_factory=list)
    embedding_requests: list[EmbeddingRequest] = field(default_factory=list)
    pulled: Sequence[float] = (0.0, 0.5, 0.5, 1.0)
    """What is reported of a download."""
    orders: list[tuple[Any, ...]] = field(default_factory=list)
    running: int = 0
    shown: bool = False
    """Whether the settings of every model have its loading shown."""
    surveys: int = 0
    """How often it was asked for its models."""

    def __post_init__(self) -> None:
        self._snapshot = READY
        self._changed = anyio.Event()

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[ScriptedGeneration]:
        self.requests.append(request)
        with self._at_work():
            if self.admission is not None:
                await self.admission.wait()
            if self.refusal is not None:
                raise self.refusal
            steps = self.steps
            if steps is None:
                steps = hello(len(request.prompts) * request.n)
            yield ScriptedGeneration(self._answering(request), steps)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.running += 1
        self._poke()
        try:
            yield
        finally:
            self.running -= 1
            self._poke()

    def _answering(self, request: GenerationRequest) -> str:
        if request.any_name and request.model not in [one.id for one in self.listings]:
            return "hotswap/sums"
        return request.model or "hotswap/sums"

    async def shows_loading(self, name: str | None) -> bool:
        return self.shown

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Each prompt as its number, 0.5 and -1."""
        self.embedding_requests.append(request)
        with self._at_work():
            if self.admission is not None:
                await self.admission.wait()
            if self.refusal is not None:
                raise self.refusal
            numbers = range(len(request.prompts))
            vectors = tuple(array("f", [float(number), 0.5, -1.0]) for number in numbers)
            return Embeddings(request.model or "hotswap/sums", vectors, 7 * len(vectors))

    async def tokenize(self, request: GenerationRequest, *, texts: bool = False) -> Tokenized:
        self.requests.append(request)
        with self._at_work():
            if self.admission is not None:
                await self.admission.wait()
            if self.refusal is not None:
                raise self.refusal
        each = range(len(request.prompts))
        words = tuple(("a", "b", "c") for _ in each) if texts else ()
        return Tokenized("hotswap/sums", tuple((1, 2, 3) for _ in each), words)

    async def detokenize(self, model: str | None, ids: Sequence[int]) -> tuple[str, str]:
        return "hotswap/sums", " ".join(map(str, ids))

    def snapshot(self) -> SwapSnapshot:
        return self._snapshot

    async def changed(self, since: int) -> SwapSnapshot:
        await self.until(lambda: self._snapshot.version > since)
        return self._snapshot

    def become(self, **fields: Any) -> None:
        """Change the snapshot."""
        self._snapshot = replace(self._snapshot, version=self._snapshot.version + 1, **fields)
        self._poke()

    def relist(self, *listings: ModelListing, **fields: Any) -> None:
        self.listings = listings
        self.become(**fields)

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something about this service to be true."""
        with anyio.fail_after(120):
            while not ready():
                await self._changed.wait()

    def _poke(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def models(self) -> tuple[ModelListing, ...]:
        self.surveys += 1
        return self.listings

    def unusable(self) -> Mapping[str, str]:
        return {"broken": "'broken' cannot be served: config.json is not JSON."}

    async def model(self, name: str) -> ModelListing:
        for listing in self.listings:
            if name in (listing.id, *listing.aliases):
                return listing
        raise ModelNotFound(f"there is no model {name[:200]!r}")

    async def describe(self, name: str) -> ModelDescription:
        return ModelDescription(
            listing=await self.model(name),
            sampling=SamplingParams(temperature=0.7, top_k=20),
            chat=ChatFacts(template="{{ messages }}", tools=True, thinking=True),
        )

    async def warm(self, name: str | None, *, keep_alive_s: float | None = None) -> str:
        self.orders.append(("warm", name, keep_alive_s))
        return await self._known(name)

    async def let_go(self, name: str | None) -> str:
        self.orders.append(("let_go", name))
        return await self._known(name)

    async def _known(self, name: str | None) -> str:
        if self.admission is not None:
            await self.admission.wait()
        if self.refusal is not None:
            raise self.refusal
        return (await self.model(name or self.listings[0].id)).id

    async def pull(self, name: str, report: Report) -> str:
        self.orders.append(("pull", name))
        for share in self.pulled:
            report("downloading", share)
        return await self._known(name)

    async def load(self, name: str | None, overrides: Mapping[str, Any], source: str) -> LoadReport:
        self.orders.append(("load", name, dict(overrides), source))
        return _or_raise(self.load_result)

    async def request_load(self, name: str) -> None:
        self.orders.append(("request_load", name))
        await self.model(name)

    async def unload(
        self,
        name: str | None = None,
        *,
        drain_timeout_s: float | None = None,
        mode: UnloadMode = "drain",
        park: bool = True,
    ) -> UnloadReport:
        self.orders.append(("unload", name, drain_timeout_s, mode, park))
        return _or_raise(self.unload_result)

    async def forecast(
        self, name: str | None, overrides: Mapping[str, Any], source: str
    ) -> LoadForecast:
        self.orders.append(("forecast", name, dict(overrides), source))
        return _or_raise(self.forecast_result)

    async def sleep(self, *, park: bool, mode: UnloadMode = "drain") -> UnloadReport:
        self.orders.append(("sleep", park, mode))
        return _or_raise(self.unload_result)

    async def wake_up(self) -> LoadReport:
        self.orders.append(("wake_up",))
        return _or_raise(self.load_result)


def service_with(**fields: Any) -> ScriptedService:
    """A service whose snapshot is `READY` but for ``fields``."""
    service = ScriptedService()
    service.become(**fields)
    return service


def _or_raise(result: T | Exception) -> T:
    if isinstance(result, Exception):
        raise result
    return result


@dataclass
class Problems:
    """A `HealthSource` that finds what it is told to."""

    found: tuple[str, ...] = ()

    def problems(self) -> tuple[str, ...]:
        return self.found


def app_of(
    service: ScriptedService | None = None, health: Problems | None = None, **server: Any
) -> ASGIApp:
    config = ServerConfig(**{"keepalive_s": KEEPALIVE_S, "dev_mode": True, **server})
    return create_app(service or ScriptedService(), Settings(server=config), health or Problems())


class Exchange:
    """One request to an ASGI app, seen from the client's side of the wire."""

    def __init__(
        self,
        method: str,
        target: str,
        body: bytes | Sequence[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        path, _, query = target.partition("?")
        parts = [body] if isinstance(body, bytes) else list(body)
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in {"host": "localhost:8000", **(headers or {})}.items()
            ],
        }
        self._incoming: list[Message] = [
            {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
            for i, part in enumerate(parts)
        ]
        self.unread = self._incoming
        self.bodies: list[bytes] = []
        self.complete = False
        self._start: Message | None = None
        self._left = False
        self._changed = anyio.Event()

    async def run(self, app: ASGIApp) -> Exchange:
        with anyio.fail_after(120):
            await app(self.scope, self._receive, self._send)
        return self

    def leave(self) -> None:
        """The client closes the connection."""
        self._left = True
        self._poke()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something about the answer to be true."""
        with anyio.fail_after(120):
            while not ready():
                await self._changed.wait()

    async def _receive(self) -> Message:
        if self._incoming and not self._left:
            self._poke()
            return self._incoming.pop(0)
        await self._wait_to_leave()
        return {"type": "http.disconnect"}

    async def _wait_to_leave(self) -> None:
        while not self._left:
            await self._changed.wait()

    async def _send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            assert self._start is None
            self._start = message
        else:
            self.complete = not message.get("more_body", False)
            if message.get("body"):
                self.bodies.append(message["body"])
        self._poke()

    def _poke(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    @property
    def status(self) -> int:
        assert self._start is not None, "no answer"
        return int(self._start["status"])

    @property
    def answered(self) -> bool:
        return self._start is not None

    @property
    def headers(self) -> dict[str, str]:
        assert self._start is not None, "no answer"
        return {name.decode(): value.decode() for name, value in self._start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The envelope's inside, checked for its shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        return dict(error)

    @property
    def events(self) -> list[Any]:
        """The server-sent events: decoded objects, "[DONE]", and comments as they are."""
        return [_event(part) for part in self.body.decode().split("\n\n") if part]


def _event(part: str) -> Any:
    if part.startswith(":"):
        return part
    name, _, data = part.rpartition("data: ")
    assert not name or f'"type":"{name[7:-1]}"' in data  # the name is told twice, or not at all
    return data if data == "[DONE]" else json.loads(data)


def ask(
    app: ASGIApp,
    method: str,
    target: str,
    body: Any = b"",
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    """One whole request; a ``body`` that is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes | list) else json.dumps(body).encode()
    return anyio.run(Exchange(method, target, raw, headers).run, app)


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], **fields}
