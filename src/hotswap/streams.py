"""Standard output and error where nobody can read them: a full disk, a reader that has gone, a
descriptor that was closed. The server serves without a log then."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def settle_streams() -> None:
    """Let nothing that is written to `sys.stdout` or `sys.stderr` raise for want of a place to put
    it, and leave no standard descriptor closed: the next socket would get its number, and whatever
    native code or a child process writes to it."""
    for descriptor in range(3):
        _open_if_closed(descriptor)
    sys.stdout = _lossy(sys.stdout, 1)
    sys.stderr = _lossy(sys.stderr, 2)


class _LossyText(io.TextIOWrapper):
    """Loses what cannot be written. At most the few kilobytes of the buffer below are kept for when
    there is room again."""

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def _open_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        # In order, so it is the lowest that is free: the system gives it this number.
        null = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(null, True)


def _lossy(stream: TextIO | None, descriptor: int) -> TextIO:
    """
    Args:
        stream: None: Python found the descriptor closed.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return _LossyText(os.fdopen(descriptor, "wb", closefd=False), "utf-8", line_buffering=True)
    encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
    return _LossyText(
        stream.buffer,
        encoding,
        "backslashreplace",  # a name may hold what the terminal's encoding does not have
        line_buffering=by_line,
        write_through=at_once,
    )
