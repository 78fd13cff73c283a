"""The real server as a process, and checkpoints for it to serve."""

from __future__ import annotations

import os
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


def _not_json(model: Path) -> None:
    (model / "config.json").write_text("{")


def _without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def _without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _wrong_settings(model: Path) -> None:
    (model / "hotswap_config.yaml").write_text("max_modle_len: 64")


def _wrong_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("\n{% for m in messages %}{{ m.content")


def _pipe(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")


BREAKS = {
    "not-json": _not_json,
    "no-weights": _without_weights,
    "no-tokenizer": _without_tokenizer,
    "pickled": _pickled,
    "pipe": _pipe,
    "wrong-settings": _wrong_settings,
    "wrong-template": _wrong_template,
}


@pytest.fixture(scope="module")
def broken_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the demo models, and copies of one that are each broken in another way."""
    directory = tmp_path_factory.mktemp("broken") / "models"
    shutil.copytree(MODELS_DIR, directory)
    for name, spoil in BREAKS.items():
        spoil(Path(shutil.copytree(directory / "hotswap" / "sums", directory / name)))
    return directory
