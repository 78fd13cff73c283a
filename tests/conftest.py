"""What holds for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hotswap.config import settle_threads

# As the command does, before any test imports torch.
settle_threads()

# A machine that does something else meanwhile is no fault of the tests. Every run
# tries a little, each something else; `--hypothesis-profile thorough` a hundred times as much.
patient = settings(suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("patient", patient, max_examples=25)
settings.register_profile("thorough", patient, max_examples=2_500, deadline=None)
settings.load_profile("patient")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the tests of torch (``make fast``), their modules are not imported either: that
    alone takes seconds."""
    fast = "not torch" in config.getoption("markexpr")
    module = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return (fast and module and "pytest.mark.torch" in collection_path.read_text()) or None
