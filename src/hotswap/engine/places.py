"""Threads for what is computed beside the event loop, no more of them than there are places."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from hotswap.errors import ShuttingDown

T = TypeVar("T")


class Places:
    """Belongs to the event loop."""

    def __init__(self, count: int, name: str) -> None:
        """``name``: of the threads."""
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._closed = False

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in a thread, as soon as there is a place, in the order of asking.

        Who is cancelled returns at once. What has not begun then is not done; what has begun goes
        on to its end, for no thread can be stopped, and keeps its place for as long.

        Raises:
            ShuttingDown: it has not begun, and will not.
        """
        if self._closed:
            raise _closed()
        job = self._executor.submit(partial(function, *arguments))
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise _closed() from None  # the job was cancelled, and not who waits for it
            raise

    def close(self) -> None:
        """Nothing more is begun."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)


def _closed() -> ShuttingDown:
    return ShuttingDown("The server is shutting down.")
