"""How the process goes on, or ends, when something is wrong that this image of it cannot mend."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from hotswap.config import ServerConfig
from hotswap.contracts.engines import Engine
from hotswap.contracts.models import ModelSpec
from hotswap.handover import Image, Note, hand_over
from hotswap.model_settings import overrides_of
from hotswap.watchdog import Problem

logger = logging.getLogger(__name__)

RESTARTS_TOLERATED = 3
RESTART_WINDOW_S = 600.0
_A_LOADS_OWN = ("request", "uploaded")


def too_often(restarts: Sequence[float], now: float, hang_s: float) -> bool:
    """Whether the process has begun again so often of late that it had better end.

    Args:
        restarts: Monotonic times.
        hang_s: How long it takes until a hang is noticed, which is no time of going well.
    """
    window_s = RESTART_WINDOW_S + RESTARTS_TOLERATED * hang_s
    return sum(now - at < window_s for at in restarts) >= RESTARTS_TOLERATED


@dataclass(kw_only=True)
class Departure:
    """The way out of this image, which can be taken once, on any thread."""

    image: Image
    listener: socket.socket
    rules: Callable[[], ServerConfig]
    resident: Callable[[], ModelSpec | None]
    """The model to go on with."""
    engine: Callable[[], Engine | None]
    startup_places: Callable[[], Mapping[str, str]]
    for_good: bool = False
    """The server was told to stop: it does not begin again."""
    _taken: threading.Lock = field(default_factory=threading.Lock)

    def leave(self, problem: Problem) -> NoReturn:
        """Begin again as a new image that keeps the listening socket, so that clients wait there
        and none is refused; where that is not to be, exit with the fault's code. Open connections
        are cut."""
        self._taken.acquire()  # for ever: who comes second waits for the end
        assert problem.fault is not None
        now = time.monotonic()
        obstacle = self._obstacle(now)
        if obstacle is None:
            note = self._note(problem, now)
            logger.warning("starting again because %s; the model is %r", problem.text, note.model)
            _flush()
            try:
                hand_over(self.listener, note, self.image.environment)
            except OSError as error:
                obstacle = f"the interpreter cannot be started: {error}"
        logger.critical("leaving with %d because %s: %s", problem.fault, problem.text, obstacle)
        leave_at_once(problem.fault)

    def _obstacle(self, now: float) -> str | None:
        """Why the process must not begin again."""
        rules = self.rules()
        if self.for_good:
            return "the server was told to stop"
        if rules.no_self_restart:
            return "--no-self-restart"
        if too_often(self._restarts, now, rules.hang_timeout_s):
            return f"it has started again {RESTARTS_TOLERATED} times of late, and that did not help"
        return None

    @property
    def _restarts(self) -> tuple[float, ...]:
        return () if self.image.note is None else self.image.note.restarts

    def _note(self, problem: Problem, now: float) -> Note:
        spec, engine = self.resident(), self.engine()
        before = None if self.image.note is None else self.image.note.device
        return Note(
            reason=problem.text,
            model=None if spec is None else spec.id,
            settings={} if spec is None else overrides_of(spec, *_A_LOADS_OWN),
            startup_places=self.startup_places(),
            device=before if engine is None else engine.stats().details.get("device"),
            restarts=(*self._restarts, now)[-RESTARTS_TOLERATED:],
            restarted=1 + (0 if self.image.note is None else self.image.note.restarted),
        )


def leave_at_once(exit_code: int) -> NoReturn:
    """End the process without ending its threads."""
    _flush()
    os._exit(exit_code)


def _flush() -> None:
    logging.shutdown()
    sys.stdout.flush()
