"""No torch here: the checks run before anything heavy is imported."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from hotswap.engine.preflight import (
    check_tokenizer_files,
    check_weights,
    read_config,
    resolve,
)
from hotswap.errors import CheckpointRefused

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def safetensors(tensors: dict[str, int]) -> bytes:
    header, end = {}, 0
    for name, count in tensors.items():
        offsets = [end, end + 4 * count]
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": offsets}
        end = offsets[1]
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(end)


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointRefused) as caught:
        check_weights(directory)
    message = caught.value.message
    assert str(directory) not in message
    assert "/" not in message
    return message


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / WEIGHTS).write_bytes(safetensors({"a": 3, "b": 5}))
    return directory


def test_the_tensors_of_a_sound_model_are_listed(model: Path) -> None:
    weights = check_weights(model)
    assert {name: entry.shape for name, entry in weights.tensors.items()} == {"a": (3,), "b": (5,)}
    assert weights.bytes == 32


def test_shards_are_found_through_their_index(model: Path) -> None:
    (model / "one.safetensors").write_bytes(safetensors({"a": 1}))
    (model / "two.safetensors").write_bytes(safetensors({"b": 1}))
    shards = {"a": "one.safetensors", "b": "two.safetensors"}
    (model / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert [file.name for file in check_weights(model).files] == list(shards.values())
    (model / "two.safetensors").unlink()
    assert "'two.safetensors' is missing" in refusal(model)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": "../x.safetensors"}, {"a": ""}])
def test_an_index_that_names_no_plain_files_is_refused(model: Path, weight_map: Any) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refusal(model)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"garbage that is long enough to be read as a header of a length",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        safetensors({"a": 100})[:-1],
        safetensors({"a": 100}) + b"x",
        struct.pack("<Q", 40_000) + b"[" * 40_000,
    ],
)
def test_damaged_weights_are_refused(model: Path, content: bytes) -> None:
    (model / WEIGHTS).write_bytes(content)
    refusal(model)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": 7, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(model: Path, entry: Any) -> None:
    raw = json.dumps({"a": entry}).encode()
    (model / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    assert "malformed" in refusal(model)


def test_pickles_are_refused_and_never_opened(model: Path) -> None:
    (model / WEIGHTS).unlink()
    pickle = model / "pytorch_model.bin"
    pickle.write_bytes(b"")
    pickle.chmod(0)
    assert "Only safetensors" in refusal(model)


def test_weights_must_be_there(model: Path) -> None:
    (model / WEIGHTS).unlink()
    assert "is missing" in refusal(model)


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "nowhere", "."])
def test_links_out_of_the_model_are_refused(model: Path, target: str) -> None:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).symlink_to(target)
    refusal(model)


def test_a_pipe_is_not_opened(model: Path) -> None:
    (model / WEIGHTS).unlink()
    os.mkfifo(model / WEIGHTS)
    assert "regular file" in refusal(model)


def test_a_snapshot_of_the_hub_cache_may_link_to_its_own_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "f00").write_bytes(safetensors({"a": 1}))
    (snapshot / WEIGHTS).symlink_to("../../blobs/f00")
    assert check_weights(snapshot).bytes == 4
    other = tmp_path / "models--org--other"
    other.mkdir()
    (other / "f00").write_bytes(safetensors({"a": 1}))
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to("../../../models--org--other/f00")
    with pytest.raises(CheckpointRefused, match="outside"):
        check_weights(snapshot)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/etc/passwd", "a\0b", "a\\b"])
def test_only_plain_names_are_resolved(model: Path, name: str) -> None:
    with pytest.raises(CheckpointRefused):
        resolve(model, name)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"a": ' * 100_000, "{}", "nul"])
def test_a_configuration_must_be_an_object_that_names_its_type(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(CheckpointRefused, match=r"config\.json"):
        read_config(model, trust_remote_code=False)


def test_a_configuration_cannot_choose_kernels(model: Path) -> None:
    config = {
        "model_type": "qwen3",
        "_attn_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "text_config": {"_experts_implementation_internal": "evil/kernel", "hidden_size": 3},
    }
    (model / "config.json").write_text(json.dumps(config))
    read = read_config(model, trust_remote_code=False)
    assert read == {"model_type": "qwen3", "text_config": {"hidden_size": 3}}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_foreign_code_needs_the_flag(model: Path, name: str) -> None:
    content = {"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}
    (model / "config.json").write_text(json.dumps({"model_type": "x"}))
    (model / name).write_text(json.dumps(content))
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointRefused, match="trust-remote-code"):
        _read_all(model, trusted=False)
    _read_all(model, trusted=True)


def _read_all(model: Path, *, trusted: bool) -> None:
    read_config(model, trust_remote_code=trusted)
    check_tokenizer_files(model, trust_remote_code=trusted)


def test_a_tokenizer_file_may_not_be_a_link_out(model: Path) -> None:
    (model / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointRefused, match="outside"):
        check_tokenizer_files(model, trust_remote_code=False)


def test_a_tokenizer_must_be_there(model: Path) -> None:
    with pytest.raises(CheckpointRefused, match="tokenizer is missing"):
        check_tokenizer_files(model, trust_remote_code=False)
