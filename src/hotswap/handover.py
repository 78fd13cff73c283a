"""From one image of this process to the next: the listening socket, and a note.

Both go over as systemd hands sockets over (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES; descriptors
from 3 on), so that a socket that systemd listens on is taken in the same way. The note lies in
memory that has no name: neither the command line nor the environment tells of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from hotswap.options import ConfigError

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that the server answers to."""

_FIRST = 3
"""Descriptor; those before it are standard input, output and error."""
_LISTENER, _NOTE = "hotswap", "hotswap-note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a process image leaves to the one that takes its place."""

    reason: str = ""
    """Why it did not go on itself."""
    model: str | None = None
    """What is to be on the device; None: nothing."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of that model, by source: those that a load brought with it."""
    startup_places: Mapping[str, str] = field(default_factory=dict)
    """Directories that start-up models came from, by what ``--model`` said."""
    device: str | None = None
    """Where it was: "cuda:0"."""
    restarts: tuple[float, ...] = ()
    """Monotonic times at which images before this one ended, that of the writer included; the last
    few of them."""
    restarted: int = 0
    """How often the process has begun again, this time included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What this image of the process began with."""

    environment: Mapping[str, str]
    listener: socket.socket | None = None
    host: str | None = None
    """The address of that listener."""
    note: Note | None = None
    """None: nothing went before."""


def inherit(environ: MutableMapping[str, str]) -> Image:
    """Take what systemd or the image before left. The variables that tell of it are removed: they
    are not for this process's children.

    Raises:
        ConfigError: it is not one listening TCP socket.
    """
    pid, count, names = (
        environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    began_with = dict(environ)
    if pid != str(os.getpid()) or not count.isdecimal():
        return Image(environment=began_with)
    descriptors = dict(zip(names.split(":"), range(_FIRST, _FIRST + int(count)), strict=False))
    written = descriptors.get(_NOTE)
    if int(count) != (1 if written is None else 2):
        raise ConfigError(f"one socket to listen on is expected, and {count} were handed over")
    listener = _listener_at(_FIRST)
    return Image(
        environment=began_with,
        listener=listener,
        host=listener.getsockname()[0],
        note=None if written is None else _read(written),
    )


def hand_over(listener: socket.socket, note: Note, environment: Mapping[str, str]) -> NoReturn:
    """Begin again as another image of this process, with the same interpreter and arguments.

    Works on any thread; all others end where they are. Signals that come meanwhile wait for the
    new image to heed them. Nothing but the standard streams, the listener and the note stays open.

    Raises:
        OSError: there is no such interpreter any more. The descriptors from 3 on are not what they
            were, so the process must end.
    """
    passed = [_out_of_the_way(fd) for fd in (listener.fileno(), _written(note))]
    for name in os.listdir("/proc/self/fd"):
        _close_on_exec(int(name))
    told = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(passed)),
        "LISTEN_FDNAMES": f"{_LISTENER}:{_NOTE}",
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    for place, descriptor in enumerate(passed, _FIRST):
        os.dup2(descriptor, place)
    os.execve(sys.executable, sys.orig_argv, {**environment, **told})  # noqa: S606 - ourselves


def _listener_at(descriptor: int) -> socket.socket:
    refusal = ConfigError("what was handed over is no TCP socket that listens")
    try:
        listener = socket.socket(fileno=descriptor)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        raise refusal from None
    if not listens or listener.family not in (socket.AF_INET, socket.AF_INET6):
        raise refusal
    listener.set_inheritable(False)
    return listener


def _written(note: Note) -> int:
    descriptor = os.memfd_create(_NOTE)
    with os.fdopen(descriptor, "w", closefd=False) as file:
        json.dump(asdict(note), file)
    return descriptor


def _read(descriptor: int) -> Note:
    """Another version of hotswap may have written it: what it says beyond is left out."""
    with os.fdopen(descriptor) as file:
        file.seek(0)
        told = json.load(file)
    known = {one.name for one in fields(Note)}
    note = {key: value for key, value in told.items() if key in known}
    return Note(**{**note, "restarts": tuple(note.get("restarts", ()))})


def _out_of_the_way(descriptor: int) -> int:
    """The same, above the descriptors that are about to be replaced."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST + 2)


def _close_on_exec(descriptor: int) -> None:
    if descriptor >= _FIRST:
        try:
            os.set_inheritable(descriptor, False)
        except OSError:  # closed by now: also the one that listed them
            return
