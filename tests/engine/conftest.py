from __future__ import annotations

import os

# Before torch is imported: the models are so small that a second thread only gets in the way, and
# its spinning triples the time of the run where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny checkpoint of an architecture, written once."""
    from tests.engine.checkpoints import write_checkpoint  # torch: not in the fast run

    written: dict[str, Path] = {}

    def directory(architecture: str = "qwen3") -> Path:
        if architecture not in written:
            path = tmp_path_factory.mktemp("models") / architecture
            written[architecture] = write_checkpoint(path, architecture)
        return written[architecture]

    return directory


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that are spread may fill their devices: what is kept free there is much larger than
    the models of tests."""
    from hotswap.engine import device_map, fit, stage

    for module in (device_map, fit, stage):
        monkeypatch.setattr(module, "DEVICE_RESERVE_BYTES", 0)
