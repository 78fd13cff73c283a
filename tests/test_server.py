from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hotswap.server import _Server


def test_nothing_cuts_a_connection_that_is_only_quiet() -> None:
    """Hypercorn's `read_timeout` cuts streams whose client has nothing to say, too."""
    parts: Any = SimpleNamespace(_accepting=7, _graceful_s=1.0)
    assert _Server._hypercorn_config(parts).read_timeout is None
