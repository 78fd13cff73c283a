"""The real server as a process, and checkpoints for it to serve."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotswap.demo import MODELS_DIR
from tests.e2e.served import Server, serving


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`hotswap demo`, as `make demo` starts it."""
    with serving("demo", home=tmp_path_factory.mktemp("demo")) as server:
        yield server


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A directory with the demo models and one whose weights are cut short."""
    directory = tmp_path / "models"
    shutil.copytree(MODELS_DIR, directory)
    broken = directory / "broken" / "truncated"
    shutil.copytree(directory / "hotswap" / "sums", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return directory
