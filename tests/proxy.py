"""A proxy on loopback that does to connections what networks do: cuts them, holds them up, lets
through a byte now and then."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_READ_BYTES = 1 << 16
_SMALL_BUFFER_BYTES = 4096
_RESET = struct.pack("ii", 1, 0)
"""Linger for no time: what has not been sent is dropped, and the other side is told so."""


@dataclass(frozen=True, slots=True)
class Line:
    """What becomes of the bytes of one direction."""

    cut_after_bytes: int | None = None
    """Then both directions are reset."""
    delay_s: float = 0.0
    """Before each piece."""
    bytes_per_s: float | None = None


@contextmanager
def proxied(port: int, *, up: Line | None = None, down: Line | None = None) -> Iterator[int]:
    """A port that leads to ``port``: ``up`` there and ``down`` from there."""
    proxy = _Proxy(port, up or Line(), down or Line())
    try:
        yield proxy.port
    finally:
        proxy.close()


class _Proxy:
    def __init__(self, port: int, up: Line, down: Line) -> None:
        self._target = port
        self._lines = up, down
        self._stopping = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._begin(self._accept)

    def close(self) -> None:
        self._stopping.set()
        _shut(self._listener)
        for thread in self._threads:  # it grows by none: nothing is accepted any more
            for one in self._sockets:
                _shut(one)
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()

    def _begin(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        up, down = self._lines
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:  # it is closed
                return
            server = socket.socket()
            if down.bytes_per_s is not None:  # or the kernel would read ahead for a slow reader
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
            self._sockets += [client, server]
            server.connect(("127.0.0.1", self._target))
            self._begin(self._pump, client, server, up)
            self._begin(self._pump, server, client, down)

    def _pump(self, source: socket.socket, sink: socket.socket, line: Line) -> None:
        try:
            for data in self._pieces(source, line):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side is gone, so the other one goes
            _reset(source, sink)

    def _pieces(self, source: socket.socket, line: Line) -> Iterator[bytes]:
        rate, left = line.bytes_per_s, line.cut_after_bytes
        size = _READ_BYTES if rate is None else max(1, int(rate / 20))
        while data := source.recv(size):
            if line.delay_s:
                self._stopping.wait(line.delay_s)
            if left is not None and len(data) >= left:
                yield data[:left]
                raise ConnectionResetError
            left = None if left is None else left - len(data)
            yield data
            if rate is not None:
                self._stopping.wait(len(data) / rate)


def _shut(one: socket.socket) -> None:
    """Wake whoever reads from it."""
    with suppress(OSError):  # it is closed, or never was connected
        one.shutdown(socket.SHUT_RDWR)


def _reset(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):  # the other direction has done it
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        _shut(one)
        one.close()
