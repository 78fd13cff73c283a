"""Threads for what is computed beside the event loop, no more of them than there are places."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Places:
    """Belongs to the event loop."""

    def __init__(self, count: int, name: str) -> None:
        """``name``: of the threads."""
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in a thread, as soon as there is a place, in the order of asking.

        Who is cancelled returns at once. What has not begun then is not done; what has begun goes
        on to its end, for no thread can be stopped, and keeps its place for as long.
        """
        job = self._executor.submit(partial(function, *arguments))
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Nothing more is begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)
