"""The threads that take a step together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from hotswap.engine.native import step
from hotswap.engine.native.description import Description
from hotswap.engine.native.records import WORD

_PATIENCE = 20_000
"""Looks for the next step before a worker goes to sleep: about two milliseconds."""


class Team:
    """The calling thread and others that help it."""

    def __init__(self, description: Description, threads: int) -> None:
        self._description = description
        half = description.half
        self._lead: Any = step.lead_bfloat16 if half else step.lead_float32
        self._follow: Any = step.follow_bfloat16 if half else step.follow_float32
        words = np.zeros((threads + 1) * step.LINE * len(description.phases), WORD)
        control = np.zeros(step.WORKERS + step.LINE * (threads + 1), WORD)
        self._memory = words, control
        self._words, self._control = int(words.ctypes.data), int(control.ctypes.data)
        self._tokens = description.tokens.data_ptr()
        self._calls = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"decode-{i}", daemon=True)
            for i in range(1, threads)
        ]
        started: list[threading.Thread] = []
        with ExitStack() as undo:
            undo.callback(self._send_home, started)
            for thread in self._threads:
                thread.start()
                started.append(thread)
            undo.pop_all()

    def run(self, tokens: int, sampled: int) -> None:
        """One step."""
        words, control, arrays = self._words, self._control, self._description.arrays
        matrices = int(tokens >= self._description.matrices_from)
        workers, phases = 1 + len(self._calls), len(self._description.phases)
        number = step.begin(words, control, tokens, sampled, matrices, workers, phases)
        for worker, call in enumerate(self._calls, 1):
            if step.wake(control, worker):
                call.release()
        self._lead(number, words, control, sampled, self._tokens, *arrays)

    def close(self) -> None:
        """Send the threads home."""
        self._send_home(self._threads)

    def _send_home(self, threads: Sequence[threading.Thread]) -> None:
        step.set_word(self._control, step.STOP, 1)
        for call in self._calls:
            call.release()
        for thread in threads:
            thread.join()

    def _work(self, worker: int) -> None:
        seen = 0
        while not self._memory[1][step.STOP]:
            seen = self._follow(
                worker, seen, _PATIENCE, self._words, self._control, *self._description.arrays
            )
            self._calls[worker - 1].acquire()
