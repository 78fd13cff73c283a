"""The app behind a real Hypercorn on loopback, for official clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from tests.api.stage import ScriptedService, app_of

KEY = "key"


@contextmanager
def serving(service: ScriptedService, **server: Any) -> Iterator[str]:
    """A server with ``service`` behind it, in a thread; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # open already: nobody has to wait for the start
    config.errorlog = None
    config.graceful_timeout = 1
    app: Any = app_of(service, api_keys=(KEY,), **server)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    running = serve(app, config, shutdown_trigger=stop.wait)
    thread = threading.Thread(target=loop.run_until_complete, args=[running])
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
