"""The bundled model folders are complete, small and share one tokenizer."""

import json
from pathlib import Path

import pytest

from hotswap.demo import MODELS_DIR, NAMES

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
MOST_BYTES = 4_000_000


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return MODELS_DIR / str(request.param)


def test_each_folder_has_its_name() -> None:
    folders = [str(path.relative_to(MODELS_DIR)) for path in MODELS_DIR.glob("*/*")]
    assert sorted(folders) == list(NAMES)


def test_folder_is_complete(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES


def test_model_is_small(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES


def test_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["tie_word_embeddings"] is True


def test_card_has_front_matter_and_scores(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "## Scores" in card


def test_tokenizer_is_shared() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        one, other = ((MODELS_DIR / name / file).read_bytes() for name in NAMES)
        assert one == other, file
