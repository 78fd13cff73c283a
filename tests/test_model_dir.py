from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hotswap.contracts.models import ModelFacts
from hotswap.model_dir import Remembered, files_of, look_at
from tests.model_files import CONFIG, WEIGHTS, sharded, write_cached, write_model


def defect(path: Path) -> str | None:
    found = look_at(str(path))
    assert found is not None
    return found.defect


def test_a_complete_checkpoint_is_a_chat_model(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    os.utime(tmp_path / "m" / "config.json", (1000, 1000))
    found = look_at(str(tmp_path / "m"))
    assert found is not None
    assert found.defect is None
    assert found.task == "generate"
    assert found.max_position_embeddings == 512
    assert found.created_unix == 1000


def test_a_checkpoint_in_several_files_needs_all_of_them(tmp_path: Path) -> None:
    files = sharded("1.safetensors", "2.safetensors") | {"1.safetensors": WEIGHTS}
    path = write_model(tmp_path, files=files, without=("model.safetensors",))
    assert defect(path) == "'2.safetensors' is missing: the download did not finish"
    (path / "2.safetensors").write_text(WEIGHTS)
    assert defect(path) is None


@pytest.mark.parametrize(
    ("config", "files", "without", "reason"),
    [
        (CONFIG, {}, ("config.json",), "config.json is missing"),
        ("{", {}, (), "config.json is not JSON"),
        ("[" * 100_000, {}, (), "config.json is not JSON"),
        ("[]", {}, (), "config.json is not a JSON object"),
        ({}, {}, (), "names no architecture"),
        ({"architectures": []}, {}, (), "names no architecture"),
        ({"architectures": ["BertForMaskedLM"]}, {}, (), "'BertForMaskedLM' is not a chat model"),
        ({"architectures": ["BertModel", "CLIPModel"]}, {}, (), "is not a chat model"),
        (
            {"architectures": ["WhisperForConditionalGeneration"]},
            {},
            (),
            "is not a chat model",
        ),
        ({**CONFIG, "is_encoder_decoder": True}, {}, (), "encoder-decoder"),
        ({"architectures": ["BertModel"]}, {}, ("tokenizer.json",), "tokenizer is missing"),
        (CONFIG, {}, ("tokenizer.json",), "tokenizer is missing"),
        (CONFIG, {"pytorch_model.bin": "x"}, ("model.safetensors",), "weights, only pickles"),
        (CONFIG, {"model.gguf": "x"}, ("model.safetensors",), "no safetensors weights"),
        (CONFIG, sharded("../x.safetensors"), ("model.safetensors",), "is missing"),
        (
            CONFIG,
            {"model.safetensors.index.json": '{"weight_map": []}'},
            ("model.safetensors",),
            "names no files",
        ),
        ({**CONFIG, "model_type": None}, {}, (), "config.json names no model_type"),
        (CONFIG, {"tokenizer.json": ""}, (), "tokenizer.json is not a JSON object"),
        (CONFIG, {"tokenizer.json": "<html>"}, (), "tokenizer.json is not a JSON object"),
        (CONFIG, {"model.safetensors": ""}, (), "'model.safetensors' is cut short"),
        (CONFIG, {"model.safetensors": WEIGHTS[:7]}, (), "'model.safetensors' is cut short"),
        (CONFIG, {"model.safetensors": WEIGHTS[:-1]}, (), "'model.safetensors' is cut short"),
        (
            CONFIG,
            {"model.safetensors": "version https://git-lfs.github.com/spec/v1"},
            (),
            "not a safetensors file",
        ),
        (
            CONFIG,
            sharded("1.safetensors", "2.safetensors")
            | {"1.safetensors": WEIGHTS, "2.safetensors": ""},
            ("model.safetensors",),
            "'2.safetensors' is cut short",
        ),
    ],
)
def test_anything_else_says_what_is_wrong(
    tmp_path: Path, config: Any, files: dict[str, str], without: tuple[str, ...], reason: str
) -> None:
    path = write_model(tmp_path / "m", config=config, files=files, without=without)
    found = defect(path)
    assert found is not None
    assert reason in found
    assert str(tmp_path) not in found


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"architectures": ["BertModel"]}, {}),
        ({"architectures": ["XLMRobertaModel"]}, {}),
        ({"architectures": ["ModernBertModel"]}, {}),
        (CONFIG, {"modules.json": "[]"}),
        (CONFIG, {"config_sentence_transformers.json": "{}"}),
        ({"architectures": ["BertForMaskedLM"]}, {"modules.json": "[]"}),
    ],
)
def test_an_embedding_model_is_told_by_its_files_or_its_architecture(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str]
) -> None:
    found = look_at(str(write_model(tmp_path, config=config, files=files)))
    assert found is not None
    assert (found.defect, found.task) == (None, "embed")


def test_a_text_to_be_embedded_is_no_longer_than_its_model_was_made_for(tmp_path: Path) -> None:
    files = {"sentence_bert_config.json": '{"max_seq_length": 256}'}
    config = {"architectures": ["BertModel"], "max_position_embeddings": 512}
    found = look_at(str(write_model(tmp_path, config=config, files=files)))
    assert found is not None
    assert found.max_position_embeddings == 256


READ = (
    *("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"),
    "sentence_bert_config.json",
)
"""Files that the look at a directory opens, without those of its settings and the index."""


def embedder(path: Path) -> Path:
    """A model of which more files are looked at than of others."""
    return write_model(path, config={"architectures": ["BertModel"]})


def socket_at(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))


IRREGULAR: Mapping[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": socket_at,
    "directory": Path.mkdir,
    "device": partial(Path.symlink_to, target="/dev/zero"),
}


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", READ)
def test_what_is_no_regular_file_is_told_and_not_waited_for(
    tmp_path: Path, name: str, kind: str
) -> None:
    path = embedder(tmp_path / "m")
    (path / name).unlink(missing_ok=True)
    IRREGULAR[kind](path / name)
    assert defect(path) == f"{name!r} is not a regular file"


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "1.safetensors"])
def test_nor_are_pipes_among_the_weights(tmp_path: Path, name: str) -> None:
    files = sharded("1.safetensors") | {"1.safetensors": WEIGHTS}
    path = write_model(tmp_path, files=files, without=("model.safetensors",))
    (path / name).unlink()
    os.mkfifo(path / name)
    assert defect(path) == f"{name!r} is not a regular file"


@pytest.mark.parametrize("name", READ)
def test_a_link_to_itself_is_told(tmp_path: Path, name: str) -> None:
    path = embedder(tmp_path / "m")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(name)
    found = defect(path)
    assert found is not None
    assert name in found
    assert ("symbolic links" in found) == (name != "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_what_is_mended_in_place_is_seen(tmp_path: Path, name: str) -> None:
    look = Remembered(look_at, files_of)
    path = write_model(tmp_path / "m", files={name: ""})
    os.utime(path / name, (1, 1))
    for place in (path, path / "config.json"):
        os.utime(place, (1, 1))
    broken = look(str(path))
    assert broken is not None
    assert broken.defect is not None
    (path / name).write_text({"model.safetensors": WEIGHTS, "tokenizer.json": "{}"}[name])
    os.utime(path, (1, 1))
    mended = look(str(path))
    assert mended is not None
    assert mended.defect is None


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    path = write_model(tmp_path, without=("model.safetensors",))
    (path / "model.safetensors").symlink_to("nowhere")
    assert defect(path) == "model.safetensors is missing"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 7}, 7),
        ({"n_positions": 8}, 8),
        ({"text_config": {"max_position_embeddings": 9}}, 9),
        ({"max_position_embeddings": "7"}, None),
        ({"text_config": []}, None),
    ],
)
def test_the_longest_context_is_where_the_architecture_keeps_it(
    tmp_path: Path, config: dict[str, Any], expected: int | None
) -> None:
    architectures = {"architectures": CONFIG["architectures"]}
    found = look_at(str(write_model(tmp_path, config=architectures | config)))
    assert found is not None
    assert found.max_position_embeddings == expected


class TestSettings:
    def test_a_models_own_settings_are_read(self, tmp_path: Path) -> None:
        files = {
            "hotswap_config.yaml": "max_model_len: 9\nchat_template: chat.jinja\n",
            "chat.jinja": "{{ messages }}",
        }
        found = look_at(str(write_model(tmp_path, files=files)))
        assert found is not None
        assert found.settings == {"max_model_len": 9, "chat_template": "{{ messages }}"}

    @pytest.mark.parametrize(
        "text", ["- a", "a: *b", "chat_template: ../../secret", "chat_template: none.jinja"]
    )
    def test_a_mistake_in_them_is_kept_for_who_asks(self, tmp_path: Path, text: str) -> None:
        found = look_at(str(write_model(tmp_path, files={"hotswap_config.yaml": text})))
        assert found is not None
        assert found.defect is None
        assert found.settings == {}
        assert found.settings_error is not None
        assert str(tmp_path) not in found.settings_error.message

    @pytest.mark.parametrize("kind", IRREGULAR)
    def test_they_are_a_regular_file(self, tmp_path: Path, kind: str) -> None:
        path = write_model(tmp_path / "m")
        IRREGULAR[kind](path / "hotswap_config.yaml")
        found = look_at(str(path))
        assert found is not None
        assert found.settings_error is not None
        outside = kind == "device"
        reason = "lies outside the model's directory" if outside else "is not a regular file"
        assert found.settings_error.message == f"'hotswap_config.yaml' {reason}."

    @pytest.mark.parametrize("kind", IRREGULAR)
    def test_so_is_a_template_that_they_name(self, tmp_path: Path, kind: str) -> None:
        files = {"hotswap_config.yaml": "chat_template: mine.jinja"}
        path = write_model(tmp_path / "m", files=files)
        IRREGULAR[kind](path / "mine.jinja")
        found = look_at(str(path))
        assert found is not None
        assert found.settings_error is not None
        assert "the file 'mine.jinja' cannot be read" in found.settings_error.message

    @pytest.mark.parametrize("name", ["hotswap_config.yaml", "mine.jinja"])
    def test_what_lies_outside_is_not_read(self, tmp_path: Path, name: str) -> None:
        files = {"hotswap_config.yaml": "chat_template: mine.jinja", "mine.jinja": "{{ messages }}"}
        path = write_model(tmp_path / "m", files=files)
        (path / name).rename(tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
        found = look_at(str(path))
        assert found is not None
        assert found.settings == {}
        assert found.settings_error is not None
        assert name in found.settings_error.message
        assert str(tmp_path) not in found.settings_error.message
        (path / name).unlink()
        (path / "own").write_text(files[name])
        (path / name).symlink_to("own")
        mended = look_at(str(path))
        assert mended is not None
        assert mended.settings == {"chat_template": "{{ messages }}"}

    def test_those_of_a_snapshot_may_lie_among_its_own_blobs(self, tmp_path: Path) -> None:
        files = {"hotswap_config.yaml": "max_model_len: 9"}
        own = write_cached(tmp_path, "org/m", files=files)
        found = look_at(str(own))
        assert found is not None
        assert found.settings == {"max_model_len": 9}
        other = write_cached(tmp_path, "org/other") / "hotswap_config.yaml"
        other.symlink_to((own / "hotswap_config.yaml").resolve())
        found = look_at(str(other.parent))
        assert found is not None
        assert found.settings_error is not None


def test_what_is_no_directory_is_nothing(tmp_path: Path) -> None:
    assert look_at(str(tmp_path / "none")) is None
    assert look_at("a\0b") is None


class TestRemembered:
    @pytest.fixture
    def looks(self) -> list[str]:
        return []

    @pytest.fixture
    def remembered(self, looks: list[str]) -> Remembered[str, int]:
        def count(place: str) -> int:
            looks.append(place)
            return len(looks)

        return Remembered(count, files_of)

    def test_an_unchanged_directory_is_looked_at_once(
        self, tmp_path: Path, remembered: Remembered[str, int]
    ) -> None:
        for file in write_model(tmp_path).iterdir():
            os.utime(file, (1, 1))
        os.utime(tmp_path, (1, 1))
        place = str(tmp_path)
        assert [remembered(place), remembered(place)] == [1, 1]
        os.utime(tmp_path / "config.json", (2, 2))
        assert [remembered(place), remembered(place)] == [2, 2]

    def test_what_changed_just_now_may_change_again_unseen(
        self, tmp_path: Path, remembered: Remembered[str, int]
    ) -> None:
        place = str(write_model(tmp_path))
        assert [remembered(place), remembered(place)] == [1, 2]


def facts(path: Path) -> ModelFacts:
    found = look_at(str(path))
    assert found is not None
    return found.facts


def test_what_a_models_files_say_about_it(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "qwen3", "torch_dtype": "bfloat16"}
    path = write_model(tmp_path, config=config)
    assert facts(path) == ModelFacts(
        family="qwen3", dtype="bfloat16", weights_bytes=10, parameters=5
    )


def test_the_weights_of_several_files_are_added_up(tmp_path: Path) -> None:
    files = sharded("1.safetensors", "2.safetensors")
    files |= {"1.safetensors": WEIGHTS, "2.safetensors": WEIGHTS + "1234"}
    path = write_model(tmp_path, files=files, without=("model.safetensors",))
    assert facts(path) == ModelFacts(family="qwen3", weights_bytes=24)


def test_quantized_weights_do_not_tell_how_many_numbers_they_are(tmp_path: Path) -> None:
    quantized = {"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}
    path = write_model(tmp_path, config={**CONFIG, **quantized})
    assert facts(path).quantization == "fp8"
    assert facts(path).parameters == 0
