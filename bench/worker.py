"""Contenders in processes of their own, asked to do one thing at a time.

Each gets its own torch, thread pool and memory, and does nothing while another one is measured.
A question is a line of JSON on the child's standard input, an answer one on its standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Answer = Mapping[str, Any]
Tasks = Mapping[str, Callable[..., Awaitable[Answer]]]


class WorkerFailed(Exception):
    """A contender's process ended; what it said is on the standard error that it shares."""


class Worker:
    """A contender's process, seen from the one that measures. A context manager."""

    def __init__(self, contender: str, model: Path, device: str) -> None:
        self.contender = contender
        module = contender.replace(" ", "_")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.contenders", module, str(model), device],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask("ready")

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Raises: WorkerFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = json.dumps({"task": task, "arguments": arguments})
        try:
            print(question, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerFailed(self.contender) from None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{self.contender}: {task}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """The end of its input ends the process."""
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def answer_questions(tasks: Tasks) -> None:
    """The child's side: until its input ends. Whatever libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        # In a thread: an engine's event loop goes on while nothing is asked of it.
        while line := await asyncio.to_thread(sys.stdin.readline):
            question = json.loads(line)
            if question["task"] == "ready":
                answer: Answer = {}
            else:
                answer = await tasks[question["task"]](**question["arguments"])
            print(json.dumps(answer), file=answers, flush=True)
