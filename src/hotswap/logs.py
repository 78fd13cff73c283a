"""Logging: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

logger = logging.getLogger(__name__)

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def printable(text: str) -> str:
    """``text`` with all that a terminal would obey, or could not show, as `repr` has it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and whatever came as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _PLAIN)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


def configure(level: str, style: Literal["text", "json"]) -> None:
    """Send everything to stderr; our own loggers at ``level``, the libraries' from warning on. So
    goes what Python would write there in its own way: warnings, and exceptions that nobody caught.
    """
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hotswap").setLevel(level.upper())
    # It says that it runs before there is anything to be asked; the banner says when there is.
    logging.getLogger("hotswap.hypercorn").setLevel(logging.WARNING)
    # It logs what a client got wrong, which the client is told anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    sys.excepthook = _tell_uncaught
    sys.unraisablehook = _tell_unraisable
    threading.excepthook = _tell_of_thread


def gather() -> None:
    """Take the streams from loggers of libraries that write to them on their own, past the root
    logger and its format."""
    for one in list(logging.root.manager.loggerDict.values()):
        if not isinstance(one, logging.Logger):
            continue
        streaming = [handler for handler in one.handlers if type(handler) is logging.StreamHandler]
        for handler in streaming:
            one.removeHandler(handler)
        if streaming:
            one.propagate = True


def _tell_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    logger.critical("nobody caught %s", kind.__name__, exc_info=(kind, error, trace))


def _tell_of_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is SystemExit:
        return
    name = "a thread" if raised.thread is None else raised.thread.name
    logger.error("%s ended with %s", name, raised.exc_type.__name__, exc_info=raised.exc_value)


def _tell_unraisable(raised: UnraisableHookArgs) -> None:
    what = raised.err_msg or "Exception ignored in"
    logger.error("%s: %r", what, raised.object, exc_info=raised.exc_value)
