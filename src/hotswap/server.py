"""The composition root: builds the parts in order, listens, and takes them down in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import cast

import anyio
from anyio import to_thread
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config as HypercornConfig
from hypercorn.typing import ASGIFramework

from hotswap import __version__, console, logs
from hotswap.api.app import create_app
from hotswap.audit import Cause
from hotswap.catalog import Catalog
from hotswap.config import ConfigError, Settings, SwapRules, warnings_about
from hotswap.contracts.engines import EngineRegistry
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.progress import Report
from hotswap.departure import Departure, leave_at_once
from hotswap.errors import (
    DeviceLost,
    HotswapError,
    ModelLoadFailed,
    ModelUnloaded,
    ShuttingDown,
)
from hotswap.handover import HEEDED, Image, Note
from hotswap.hub import Hub
from hotswap.late import LateRegistry, import_under_way, imported, load_libtorch
from hotswap.reread import merged
from hotswap.residency.drain import ABORT_GRACE_S
from hotswap.service import SwapService
from hotswap.swap import SwapController
from hotswap.watchdog import Fault, Problem, Watchdog, WatchRules

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""The interpreter's default of 5 ms lets a busy event loop delay every step of the engine."""

BACKLOG = 1024
FORCED_EXIT = 130
UNUSABLE = 2
"""Exit code for whatever the person who typed the command can mend."""
SETTLE_S = 0.1
"""How long, after a fault, a request may take to arrive whose connection was accepted before it."""
FLUSH_S = 2.0
"""How long clients may take to read the ends of their answers then."""
STUCK_S = SETTLE_S + FLUSH_S + 1.0
"""An event loop that has not managed all that by then is left as it is."""


def run(settings: Settings, image: Image, read_settings: Callable[[], Settings]) -> int:
    """Serve until told to stop.

    Args:
        image: What the process began with: perhaps a socket, and a note of the image before it.
        read_settings: Reads them anew; raises ConfigError.

    Returns:
        The exit code: 0 after an orderly stop, 2 when torch cannot be imported or the start-up
        model cannot be loaded, 70 when the device is gone.

    Raises:
        ConfigError: the address cannot be listened on, or the start-up model does not exist.
    """
    # Until it is heeded: whoever sends it wants the settings read, not the process ended.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    logs.configure(settings.server.log_level, settings.server.log_format)
    if settings.server.log_format == "json":  # else they have been printed
        for warning in warnings_about(settings):
            logger.warning("%s", warning)
    # First of all: a port in use is known before anything else is begun.
    listener = image.listener or listen(settings.server.host, settings.server.port)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    exit_code = anyio.run(_serve, settings, listener, image, read_settings)
    if import_under_way():
        leave_at_once(exit_code)
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


async def _serve(
    settings: Settings,
    listener: socket.socket,
    image: Image,
    read_settings: Callable[[], Settings],
) -> int:
    catalog = _catalog_of(settings, {} if image.note is None else image.note.startup_places)
    first = None
    if image.note is None:  # a mistyped name is told before anything is served
        first = await catalog.startup_spec()
    logger.info("starting hotswap %s at %s", __version__, _url(listener))
    server = _Server(
        settings,
        listener,
        image=image,
        catalog=catalog,
        first=first,
        read_settings=read_settings,
    )
    return await server.run()


def _catalog_of(settings: Settings, startup_places: Mapping[str, str]) -> Catalog:
    return Catalog(settings.catalog, settings.engine, Hub(), startup_places=startup_places)


async def _noted_model(catalog: Catalog, note: Note) -> ModelSpec | None:
    """The model that was there before this image, with the settings that it had.

    Raises:
        HotswapError: it is not there any more.
    """
    if note.model is None:
        return None
    spec = await catalog.resolve(note.model)
    for source, settings in note.settings.items():
        spec = catalog.override(spec, settings, source)
    return spec


def _import_engines(
    rules: SwapRules, device: str | None
) -> Callable[[], AbstractAsyncContextManager[EngineRegistry]]:
    """What makes the registry. Takes seconds, and --help must not wait for it.

    Args:
        device: What must be there: another one would do, but not as anybody expects.

    Raises:
        ModelLoadFailed: it is not.
    """
    load_libtorch()
    from hotswap.engine.without_compiler import import_transformers  # noqa: PLC0415

    import_transformers()
    from hotswap.engine.device import torch_device  # noqa: PLC0415
    from hotswap.engine.native.code import compiled_on_disk, native_forward  # noqa: PLC0415
    from hotswap.engine.registry import TorchEngineRegistry  # noqa: PLC0415

    if device is not None:
        torch_device(device)
    if torch_device("auto").type == "cpu" and compiled_on_disk():
        native_forward()  # or the first load would import Numba, and leave it unfrozen
    logs.gather()
    return partial(TorchEngineRegistry, park_bytes=rules.park_memory)


class _Server:
    """The running parts, in the order in which they depend on one another."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        *,
        image: Image,
        catalog: Catalog,
        first: ModelSpec | None,
        read_settings: Callable[[], Settings],
    ) -> None:
        """
        Args:
            first: The model to begin with, where no image before this one had any.
        """
        self._settings = settings
        self._catalog = catalog
        self._read_settings = read_settings
        self._note = image.note
        registry = self._registry = LateRegistry()
        self._controller = SwapController(
            registry,
            self._fetch,
            settings.swap,
            restarts=0 if image.note is None else image.note.restarted,
        )
        self._service = SwapService(self._controller, registry, catalog)
        self._first = first
        self._watchdog = Watchdog(
            lambda: registry.current,
            WatchRules(hang_s=settings.server.hang_timeout_s),
            lost=lambda: self._controller.lost,
            alarm=self._sound_alarm,
        )
        self._departure = Departure(
            image=image,
            listener=listener,
            rules=lambda: self._settings.server,
            resident=self._to_go_on_with,
            engine=lambda: registry.current,
            startup_places=lambda: self._catalog.startup_places,
        )
        self._url = _url(listener)
        self._listener = listener
        # Of its own: Hypercorn closes it when it stops, and clients are to wait at the other one.
        self._accepting = os.dup(listener.fileno())
        self._hypercorn = self._hypercorn_config()
        self._loop = asyncio.get_running_loop()
        self._problem: Problem | None = None
        self._alarmed, self._stopping = anyio.Event(), anyio.Event()
        self._served = anyio.Event()
        self._rereading = anyio.Lock()
        self._terminal = os.isatty(0)
        self._exit_code = 0

    async def run(self) -> int:
        """Serve until a signal, or until the engines or the start-up model turn out to be
        unusable."""
        async with AsyncExitStack() as engines:
            with self._watchdog:
                async with self._controller.running(), anyio.create_task_group() as tasks:
                    tasks.start_soon(self._heed_signals)
                    tasks.start_soon(self._heed_alarm)
                    tasks.start_soon(self._bring_engines, engines)
                    tasks.start_soon(self._start_up)  # the load is wished for by the first probe
                    tasks.start_soon(self._listen, tasks.cancel_scope)
        return self._exit_code

    async def _fetch(self, spec: ModelSpec, report: Report) -> ModelSpec:
        return await self._catalog.fetch(spec, report)

    async def _bring_engines(self, until_end: AsyncExitStack) -> None:
        """Import torch while the server answers already; requests wait for it."""
        device = None if self._note is None else self._note.device
        try:
            make_registry = await imported(partial(_import_engines, self._settings.swap, device))
        except ModelLoadFailed as error:
            logger.critical("%r, where the last model was, is gone: %s", device, error)
            self._stop(Fault.DEVICE_LOST)
            return
        except Exception as error:
            logger.exception("importing the engines failed")
            if not self._writes_json:
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
            self._hypercorn,
            shutdown_trigger=self._stopping.wait,
            mode="asgi",
        )
        self._served.set()
        if self._problem is None:
            everything.cancel()

    def _hypercorn_config(self) -> HypercornConfig:
        config = HypercornConfig()
        config.bind = [f"fd://{self._accepting}"]
        config.backlog = BACKLOG  # it listens once more
        config.accesslog = None
        config.errorlog = logging.getLogger("hotswap.hypercorn")
        # It would close a connection after its 1,000th request.
        config.keep_alive_max_requests = sys.maxsize
        # Its default of 3 s would cut answers that the controller lets run to their end.
        config.graceful_timeout = self._graceful_s
        return config

    @property
    def _graceful_s(self) -> float:
        return self._settings.swap.drain_timeout_s + 2 * ABORT_GRACE_S

    # -- signals

    async def _heed_signals(self) -> None:
        with anyio.open_signal_receiver(*HEEDED) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
            async with anyio.create_task_group() as tasks:
                async for received in signals:
                    if received == signal.SIGHUP and not self._terminal_gone:
                        tasks.start_soon(self._reread)
                    else:
                        self._heed_stop(received)

    @property
    def _terminal_gone(self) -> bool:
        """The terminal that the server was started from was closed, which is told by SIGHUP too."""
        return self._terminal and not os.isatty(0)

    def _heed_stop(self, received: signal.Signals) -> None:
        if self._problem is not None and not self._departure.for_good:
            logger.info("received %s on the way out: not starting again", received.name)
            self._departure.for_good = True
            return
        if self._stopping.is_set():
            logger.warning("second signal: leaving at once")
            leave_at_once(FORCED_EXIT)
        running = self._service.snapshot().leases
        logger.info(
            "received %s; %d running answers end first (a second time: leave at once)",
            received.name,
            running,
        )
        self._stop()

    def _stop(self, exit_code: int = 0) -> None:
        self._exit_code = exit_code
        self._departure.for_good = True
        if not self._stopping.is_set():
            # Hypercorn does so too, but some turns of the loop later: whom it takes until then is
            # refused, or cut, and could have waited for the next server at systemd's socket.
            self._loop.remove_reader(self._accepting)
        self._listener.close()
        self._controller.stop_admitting()
        self._registry.refuse(ShuttingDown("The server is shutting down."))
        self._stopping.set()

    async def _reread(self) -> None:
        """Take over settings that were changed, and look for models afresh. What is wrong with them
        changes nothing."""
        async with self._rereading:
            try:
                asked = await to_thread.run_sync(self._read_settings)
                found = merged(self._settings, asked)
                catalog = _catalog_of(found.settings, self._catalog.startup_places)
                await catalog.startup_spec()
                models = await catalog.models()
            except ConfigError as error:
                logger.error("SIGHUP: nothing is changed: %s", " ".join(str(error).splitlines()))
                return
            settings = self._settings = found.settings
            self._catalog = catalog
            self._service.obey(catalog, settings.swap)
            self._watchdog.rules = WatchRules(hang_s=settings.server.hang_timeout_s)
            self._hypercorn.graceful_timeout = self._graceful_s
            logs.configure(settings.server.log_level, settings.server.log_format)
            if found.kept:
                logger.warning("SIGHUP: only a restart changes %s", ", ".join(found.kept))
            changed = ", ".join(found.changed) or "no setting"
            logger.info("SIGHUP: changed: %s; models: %d", changed, len(models))

    # -- what cannot be mended

    def _sound_alarm(self, problem: Problem) -> None:
        """On the watchdog's thread: the event loop is to leave in good order, if it can."""
        self._problem = problem
        self._loop.call_soon_threadsafe(self._alarmed.set)
        time.sleep(STUCK_S)
        self._departure.leave(problem)

    async def _heed_alarm(self) -> None:
        """End every answer with an error that its client can read, then leave. Who connects from
        now on waits for the next image."""
        await self._alarmed.wait()
        assert self._problem is not None
        self._loop.remove_reader(self._accepting)
        error = DeviceLost(f"The server cannot go on: {self._problem.text}.")
        self._controller.give_up(error)
        self._registry.refuse(error)
        await anyio.sleep(SETTLE_S)
        self._controller.give_up(error)
        self._stopping.set()
        with anyio.move_on_after(FLUSH_S):
            await self._served.wait()
        self._departure.leave(self._problem)

    def _to_go_on_with(self) -> ModelSpec | None:
        untried = self._controller.history.last_resident is None
        return self._first if untried else self._controller.occupancy.last_good

    # -- the beginning

    async def _start_up(self) -> None:
        """Load the first model, show how far it is, and say what there is to do then."""
        if not await self._first_loaded():
            return
        with suppress(ShuttingDown, DeviceLost):
            await self._registry.arrival()
        if self._stopping.is_set():
            return
        if self._writes_json:
            logger.info("hotswap is ready at %s", self._url)
            return
        models = await self._service.models()
        console.print_banner(self._settings, self._url, self._service.snapshot(), models)

    @property
    def _writes_json(self) -> bool:
        """Whoever reads what this process writes takes it apart line by line."""
        return self._settings.server.log_format == "json"

    async def _first_loaded(self) -> bool:
        """False: the server ends for want of it. One that goes on after a fault does not: what was
        good once is tried again when it is asked for."""
        note = self._note
        cause = Cause("start-up", "it is the start-up model")
        name = None if self._first is None else self._first.id
        try:
            if note is not None:
                name, cause = note.model, Cause("watchdog", note.reason)
                logger.warning("started again because %s; the model is %r", note.reason, name)
                self._first = await _noted_model(self._catalog, note)
            if self._first is not None:
                async with self._progress_shown():
                    await self._controller.orders.load(self._first, cause)
        except DeviceLost:  # the alarm is sounded, and what follows is up to that
            return False
        except (ModelUnloaded, ShuttingDown) as error:
            logger.info("%r is not loaded: %s", name, error)
        except HotswapError as error:
            if self._writes_json:
                logger.error("%s: %s", name, error.message)
            else:
                console.print_error(f"{name}: {error.message}")
            if note is None:
                self._stop(UNUSABLE)
                return False
        return True

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
            if not self._writes_json:
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
