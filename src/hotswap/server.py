"""The composition root: builds the parts in order, listens, and takes them down in reverse."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import cast

import anyio
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig
from hypercorn.typing import ASGIFramework

from hotswap import __version__, console, logs
from hotswap.api.app import create_app
from hotswap.catalog import Catalog
from hotswap.config import ConfigError, Settings, SwapRules
from hotswap.contracts import EngineRegistry, ModelSpec
from hotswap.errors import HotswapError, ModelUnloaded, ShuttingDown
from hotswap.hub import Hub
from hotswap.late import LateRegistry, import_under_way, imported, load_libtorch
from hotswap.service import SwapService
from hotswap.swap import ABORT_GRACE_S, SwapController
from hotswap.watchdog import Watchdog

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""The interpreter's default of 5 ms lets a busy event loop delay every step of the engine."""

BACKLOG = 1024
FORCED_EXIT = 130
UNUSABLE = 2
"""Exit code for whatever the person who typed the command can mend."""


def run(settings: Settings) -> int:
    """Serve until told to stop.

    Returns:
        The exit code: 0 after an orderly stop, 2 when torch cannot be imported or the start-up
        model cannot be loaded.

    Raises:
        ConfigError: the address cannot be listened on, or the start-up model does not exist.
    """
    logs.configure(settings.server.log_level, settings.server.log_format)
    # First of all: a port in use is known before anything else is begun.
    listener = listen(settings.server.host, settings.server.port)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    exit_code = anyio.run(_serve, settings, listener)
    if import_under_way():
        _leave_at_once(exit_code)
    return exit_code


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; connections wait in the backlog until the server takes them.

    Raises:
        ConfigError: naming the address and the reason.
    """
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = info[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason.lower()}") from error
    return listener


async def _serve(settings: Settings, listener: socket.socket) -> int:
    catalog = Catalog(settings.catalog, settings.engine, Hub())
    startup = await catalog.startup_spec()  # a mistyped name is told before anything is served
    logger.info("starting hotswap %s at %s", __version__, _url(listener))
    return await _Server(settings, listener, catalog, startup).run()


def _import_engines(
    rules: SwapRules,
) -> Callable[[], AbstractAsyncContextManager[EngineRegistry]]:
    """What makes the registry. Takes seconds, and --help must not wait for it."""
    load_libtorch()
    from hotswap.engine.device import torch_device  # noqa: PLC0415
    from hotswap.engine.native.code import compiled_on_disk, native_forward  # noqa: PLC0415
    from hotswap.engine.registry import TorchEngineRegistry  # noqa: PLC0415

    if torch_device("auto").type == "cpu" and compiled_on_disk():
        native_forward()  # or the first load would import Numba, and leave it unfrozen
    return partial(TorchEngineRegistry, park_bytes=rules.park_memory)


class _Server:
    """The running parts, in the order in which they depend on one another."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        catalog: Catalog,
        startup: ModelSpec | None,
    ) -> None:
        self._settings = settings
        self._startup = startup
        registry = self._registry = LateRegistry()
        self._controller = SwapController(registry, catalog.fetch, settings.swap)
        self._service = SwapService(self._controller, registry, catalog, settings.swap)
        self._watchdog = Watchdog(lambda: registry.current)
        self._url = _url(listener)
        self._listener = listener
        self._stopping = anyio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        """Serve until a signal, or until the engines or the start-up model turn out to be
        unusable."""
        async with AsyncExitStack() as engines:
            with self._watchdog:
                async with self._controller.running(), anyio.create_task_group() as tasks:
                    tasks.start_soon(self._heed_signals)
                    tasks.start_soon(self._bring_engines, engines)
                    tasks.start_soon(self._start_up)  # the load is wished for by the first probe
                    tasks.start_soon(self._listen, tasks.cancel_scope)
        return self._exit_code

    async def _bring_engines(self, until_end: AsyncExitStack) -> None:
        """Import torch while the server answers already; requests wait for it."""
        try:
            make_registry = await imported(partial(_import_engines, self._settings.swap))
        except Exception as error:
            logger.exception("importing the engines failed")
            console.print_error(f"the engines cannot be imported: {error!r}")
            self._stop(UNUSABLE)
            return
        self._registry.arrive(await until_end.enter_async_context(make_registry()))

    async def _listen(self, everything: anyio.CancelScope) -> None:
        # In a task of its own: Hypercorn cancels the task it runs in when it stops, and leaves
        # the count of cancellations above zero, which anyio takes for somebody else's wish.
        app = create_app(self._service, self._settings, self._watchdog)
        await hypercorn_serve(
            cast("ASGIFramework", app),  # Hypercorn spells ASGI's types in its own way
            self._hypercorn_config(),
            shutdown_trigger=self._stopping.wait,
            mode="asgi",
        )
        everything.cancel()

    def _hypercorn_config(self) -> HypercornConfig:
        config = HypercornConfig()
        config.bind = [f"fd://{self._listener.detach()}"]
        config.accesslog = None
        config.errorlog = logging.getLogger("hotswap.hypercorn")
        # It would close a connection after its 1,000th request.
        config.keep_alive_max_requests = sys.maxsize
        # Its default of 3 s would cut answers that the controller lets run to their end.
        config.graceful_timeout = self._settings.swap.drain_timeout_s + 2 * ABORT_GRACE_S
        return config

    async def _heed_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for received in signals:
                if self._stopping.is_set():
                    logger.warning("second signal: leaving at once")
                    _leave_at_once(FORCED_EXIT)
                running = self._service.snapshot().leases
                logger.info(
                    "received %s; %d running answers end first (a second time: leave at once)",
                    received.name,
                    running,
                )
                self._stop()

    def _stop(self, exit_code: int = 0) -> None:
        self._exit_code = exit_code
        self._controller.stop_admitting()
        self._registry.refuse(ShuttingDown("The server is shutting down."))
        self._stopping.set()

    async def _start_up(self) -> None:
        """Load the start-up model, show how far it is, and say what there is to do then."""
        if self._startup is not None:
            try:
                async with self._progress_shown():
                    await self._controller.load(self._startup)
            except (ModelUnloaded, ShuttingDown) as error:
                logger.info("the start-up model is not loaded: %s", error)
            except HotswapError as error:
                console.print_error(f"{self._startup.id}: {error.message}")
                self._stop(UNUSABLE)
                return
        with suppress(ShuttingDown):
            await self._registry.arrival()
        if self._stopping.is_set():
            return
        models = await self._service.models()
        console.print_banner(self._settings, self._url, self._service.snapshot(), models)

    @asynccontextmanager
    async def _progress_shown(self) -> AsyncIterator[None]:
        async def show() -> None:
            with console.LoadProgress() as progress:
                snapshot = self._service.snapshot()
                while True:
                    if snapshot.progress is not None:
                        progress.show(snapshot.progress)
                    snapshot = await self._service.changed(snapshot.version)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(show)
            failure: HotswapError | None = None
            try:
                yield
            except HotswapError as error:  # raised below: a task group would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _leave_at_once(exit_code: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(exit_code)
