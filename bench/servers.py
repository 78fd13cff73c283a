"""Servers as processes, started for a benchmark; all but the measured one are held still."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from bench.client import LOOPBACK, Connection

START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 20.0
_PAUSE_S = 0.02


class ServerFailed(Exception):
    """A server ended, or did not get ready; its log says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """How a server is started, given a model and a port, and where it says that it is ready."""

    name: str
    command: tuple[str, ...]
    model_flag: str | None
    """None: the model is the last word."""
    ready_path: str
    live_path: str
    batches: bool = True
    """Answers to several streams are computed together."""

    def line(self, model: Path, port: int) -> list[str]:
        words = [*self.command, "--host", LOOPBACK, "--port", str(port)]
        return [*words, *([self.model_flag] if self.model_flag else []), str(model)]


def hotswap() -> ServerKind:
    return ServerKind(
        name="hotswap",
        command=(sys.executable, "-m", "hotswap", "serve"),
        model_flag="--model",
        ready_path="/readyz",
        live_path="/livez",
    )


def both_transformers(executable: Path) -> tuple[ServerKind, ServerKind]:
    """``transformers serve`` as it is, and with continuous batching."""
    plain = ServerKind(
        name="transformers serve",
        command=(str(executable), "serve"),
        model_flag=None,
        ready_path="/health",
        live_path="/health",
        batches=False,
    )
    flag = "--continuous-batching"
    batching = replace(
        plain, name=f"{plain.name} {flag}", command=(*plain.command, flag), batches=True
    )
    return plain, batching


@dataclass(frozen=True, slots=True)
class Server:
    """A running one."""

    kind: ServerKind
    process: subprocess.Popen[bytes]
    port: int
    model: str
    """As requests name it."""

    @property
    def resident_bytes(self) -> int:
        root = psutil.Process(self.process.pid)
        family = [root, *root.children(recursive=True)]
        return sum(process.memory_info().rss for process in family)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Between such blocks its processes are stopped and take no time from the others."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.rest()

    def rest(self) -> None:
        self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


@contextmanager
def serving(kind: ServerKind, model: Path, home: Path) -> Iterator[Server]:
    """A server that is ready, with ``home`` for its log and as the home of an empty Hub cache.
    It is left asleep."""
    (home / "hub").mkdir(parents=True, exist_ok=True)
    port = _free_port()
    log = home / f"{kind.name.replace(' ', '-')}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            kind.line(model, port),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(os.environ, home),
            start_new_session=True,
        )
        server = Server(kind, process, port, str(model) if kind.model_flag is None else "current")
        try:
            asyncio.run(_ready(server, log))
            server.rest()
            yield server
        finally:
            server.stop()


def _environment(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    kept = {key: value for key, value in environ.items() if not key.startswith(("HOTSWAP_", "HF_"))}
    return {**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def _ready(server: Server, log: Path) -> None:
    """Raises: ServerFailed."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            async with Connection(server.port) as connection:
                if await connection.get(server.kind.ready_path) == 200:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass  # it does not listen yet
        await asyncio.sleep(_PAUSE_S)
    raise ServerFailed(f"{server.kind.name} did not get ready, see {log}")
