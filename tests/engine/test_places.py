from __future__ import annotations

import threading

import anyio
import pytest

from hotswap.engine.places import Places
from hotswap.errors import ShuttingDown

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_who_waits_for_a_place_when_they_close_is_told_so() -> None:
    places, goes_on = Places(1, "test"), threading.Event()
    begun = threading.Event()

    def hold() -> str:
        begun.set()
        goes_on.wait()
        return "done"

    ends: list[str | type[BaseException]] = []

    async def ask() -> None:
        try:
            ends.append(await places.call(hold))
        except ShuttingDown as error:
            ends.append(type(error))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.to_thread.run_sync(begun.wait)
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        places.close()
        with pytest.raises(ShuttingDown):
            await places.call(hold)
        goes_on.set()
    assert sorted(map(str, ends)) == sorted(["done", str(ShuttingDown)])


async def test_who_is_cancelled_is_cancelled_also_when_they_have_closed() -> None:
    places, goes_on = Places(1, "test"), threading.Event()
    begun = threading.Event()

    def hold() -> None:
        begun.set()
        goes_on.wait()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(places.call, hold)
            await anyio.to_thread.run_sync(begun.wait)
            places.close()
            scope.cancel()
    goes_on.set()
    assert scope.cancelled_caught
