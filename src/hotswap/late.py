"""The engine floor while its libraries are being imported: there at once, and it holds what comes.

Importing torch and what stands on it takes seconds, and the server is to answer meanwhile. So it
happens in a thread, and in a way that lets the event loop have its turns.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import anyio

from hotswap.contracts.engines import Engine, EngineRegistry, ParkedModel, PreparedModel, Rendered
from hotswap.contracts.models import ChatFacts, ModelSpec
from hotswap.contracts.progress import Report
from hotswap.contracts.reports import Estimate, MemoryReport
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest
from hotswap.errors import HotswapError

T = TypeVar("T")
_IMPORTING = "hotswap-importing"


class LateRegistry:
    """An `EngineRegistry` in front of one that is still to come. Who needs the other one waits for
    it; who only asks how things are is told that there is nothing yet."""

    def __init__(self) -> None:
        self._registry: EngineRegistry | None = None
        self._refusal: HotswapError | None = None
        self._decided = anyio.Event()

    def arrive(self, registry: EngineRegistry) -> None:
        """It is there: from now on it is asked."""
        self._registry = registry
        self._decided.set()

    def refuse(self, error: HotswapError) -> None:
        """Whoever waits for it, or is going to, gets ``error``; if it is there already, nobody."""
        self._refusal = error
        self._decided.set()

    async def arrival(self) -> EngineRegistry:
        """Wait for it.

        Raises:
            HotswapError: what `refuse` was told.
        """
        await self._decided.wait()
        if self._registry is None:
            assert self._refusal is not None
            raise self._refusal
        return self._registry

    @property
    def arrived(self) -> bool:
        return self._registry is not None

    # -- the registry's own protocol

    @property
    def current(self) -> Engine | None:
        return None if self._registry is None else self._registry.current

    @property
    def memory(self) -> MemoryReport | None:
        return None if self._registry is None else self._registry.memory

    async def render(self, spec: ModelSpec, request: GenerationRequest) -> Rendered:
        return await (await self.arrival()).render(spec, request)

    async def render_embedding(self, spec: ModelSpec, request: EmbeddingRequest) -> Rendered:
        return await (await self.arrival()).render_embedding(spec, request)

    async def detokenize(self, spec: ModelSpec, ids: Sequence[int]) -> str:
        return await (await self.arrival()).detokenize(spec, ids)

    async def chat_facts(self, spec: ModelSpec) -> ChatFacts:
        return await (await self.arrival()).chat_facts(spec)

    async def prepare(self, spec: ModelSpec, report: Report) -> PreparedModel:
        return await (await self.arrival()).prepare(spec, report)

    def start(
        self, prepared: Any, report: Report, changed: Callable[[], None]
    ) -> AbstractAsyncContextManager[Engine]:
        assert self._registry is not None, "nobody else can have prepared the model"
        return self._registry.start(prepared, report, changed)

    def parked(self) -> Sequence[ParkedModel]:
        return () if self._registry is None else self._registry.parked()

    def forget(self, model: str) -> None:
        if self._registry is not None:
            self._registry.forget(model)

    async def estimate(self, spec: ModelSpec) -> Estimate:
        return await (await self.arrival()).estimate(spec)


async def imported(libraries: Callable[[], T]) -> T:
    """Call a function that imports libraries, in a thread of its own, and freeze what they are
    made of.

    Who is cancelled here leaves the thread behind, see `import_under_way`.

    Raises:
        Exception: what the function raised.
    """
    future: Future[T] = Future()

    def bring() -> None:
        try:
            with _frozen():
                result = libraries()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()
    threading.Thread(target=bring, name=_IMPORTING, daemon=True).start()
    return await asyncio.wrap_future(future)


def import_under_way() -> bool:
    """A thread of `imported` has not ended. Then the process must: Python itself cannot end well
    while a library is being loaded, and nothing stops that."""
    return any(thread.name == _IMPORTING for thread in threading.enumerate())


@contextmanager
def _frozen() -> Iterator[None]:
    """What comes into being in this block, and survives, is not looked through for garbage again.

    The libraries are 440,000 objects. With all of them to look through, each full collection
    stopped every thread for 25 to 120 ms, five times during the import, and for 130 to 200 ms every
    few seconds of work. Frozen at the end only, they cost one stop of 240 ms; as they come, none
    that is longer than a few milliseconds.
    """

    def freeze(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] > 0:
            gc.freeze()

    gc.callbacks.append(freeze)
    try:
        yield
    finally:
        gc.callbacks.remove(freeze)
        gc.collect()
        gc.freeze()


def load_libtorch() -> None:
    """Map libtorch before torch is imported. Python would do it with its lock held, 140 ms without
    an answer to anybody; a call through ctypes lets go of it.

    Where that does not work nothing is lost: the import does it then, or tells why it cannot.
    """
    package = find_spec("torch")
    if package is None or package.origin is None:
        return
    library = Path(package.origin).parent / "lib" / "libtorch.so"
    load = ctypes.CDLL(None).dlopen
    load.restype = ctypes.c_void_p
    load(os.fsencode(library), os.RTLD_NOW)
