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


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoints of the benchmarks with a tokenizer that knows the words of prompts and
    template and no others: to train it takes no time, and the usual one half a minute. "assistant"
    has three tokens in both."""
    from bench import checkpoints, prompts

    lines = [f"{word} {word}\n" for word in (*prompts.WORDS, "user", "ass", "ist", "ant")]
    folder = tmp_path_factory.mktemp("tiny-models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_standard_library", lambda: lines)
        for seed in checkpoints.SEEDS:
            checkpoints.checkpoint(folder, "tiny", seed)
    return folder
