"""What holds for every test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hotswap.config import settle_threads

# As the command does, before any test imports torch.
settle_threads()

# A machine that does something else meanwhile is no fault of the tests. Every run
# tries a little, each something else; `--hypothesis-profile thorough` a hundred times as much.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("patient", patient, max_examples=25)
settings.register_profile("thorough", patient, max_examples=2_500)
settings.load_profile("patient")


def without(mark: str, config: pytest.Config) -> bool:
    """Tests with this mark are left out, as ``make fast`` does."""
    return f"not {mark}" in config.getoption("markexpr")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules of tests that are left out are not imported either: that alone takes seconds."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text()
    needs_torch = without("torch", config) and "pytest.mark.torch" in text
    all_slow = without("slow", config) and "pytestmark = pytest.mark.slow" in text
    return needs_torch or all_slow or None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> None:
    """What needs torch is tested with transformers imported as a server imports it."""
    if file_path.match("test_*.py") and "pytest.mark.torch" in file_path.read_text():
        assert not without("torch", parent.config)
        from hotswap.engine.without_compiler import import_transformers

        import_transformers()


def pytest_collection_finish(session: pytest.Session) -> None:
    if without("torch", session.config) and "torch" in sys.modules:
        raise pytest.UsageError("something that the tests without torch import imports torch")


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
