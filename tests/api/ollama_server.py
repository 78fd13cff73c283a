"""The official `ollama` package in front of a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ollama

from tests.api.stage import ScriptedService
from tests.api.test_loopback import served


@contextmanager
def client(service: ScriptedService, **server: Any) -> Iterator[ollama.Client]:
    with served(service, **server) as port, official(port) as ours:
        yield ours


def official(port: int, **options: Any) -> ollama.Client:
    return ollama.Client(host=f"http://127.0.0.1:{port}", timeout=30, **options)
