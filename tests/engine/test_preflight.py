"""No torch here: the checks run before anything heavy is imported."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotswap.engine import preflight
from hotswap.engine.preflight import (
    check_tokenizer_files,
    check_weights,
    read_config,
    resolve,
)
from hotswap.errors import CheckpointRefused
from tests.work import LINEAR, growth

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


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_becomes_a_pipe_when_it_has_been_looked_at_is_told_as_one(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def looked_at(directory: Path, name: str) -> Path:
        file = resolve(directory, name)
        file.unlink()
        os.mkfifo(file)
        return file

    if not (model / name).exists():
        (model / name).write_text("{}")
    monkeypatch.setattr(preflight, "resolve", looked_at)
    read = check_weights if name == WEIGHTS else partial(read_config, trust_remote_code=False)
    with pytest.raises(CheckpointRefused, match=rf"{name}' is not a regular file"):
        read(model)


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


def look_at_all(model: Path) -> None:
    read_config(model, trust_remote_code=False)
    check_tokenizer_files(model, trust_remote_code=False)
    check_weights(model)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", WEIGHTS, INDEX]
)
def test_no_pipe_is_waited_for(model: Path, name: str) -> None:
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    (model / "tokenizer.json").write_text("{}")
    look_at_all(model)
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(CheckpointRefused, match=f"'{name}' is not a regular file"):
        look_at_all(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_link_to_itself_is_refused(model: Path, name: str) -> None:
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    (model / "tokenizer.json").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(name)
    with pytest.raises(CheckpointRefused, match=f"'{name}' is missing"):
        look_at_all(model)


def test_a_tokenizer_must_be_there(model: Path) -> None:
    with pytest.raises(CheckpointRefused, match="tokenizer is missing"):
        check_tokenizer_files(model, trust_remote_code=False)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tools.jinja"])
def test_a_template_must_be_text(model: Path, name: str) -> None:
    template = model / name
    template.parent.mkdir(exist_ok=True)
    (model / "tokenizer.json").touch()
    template.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointRefused, match=rf"^'{template.name}' is not UTF-8 text\.$"):
        check_tokenizer_files(model, trust_remote_code=False)
    template.write_text("{{ ü }}", encoding="utf-8")
    check_tokenizer_files(model, trust_remote_code=False)
    template.unlink()
    template.symlink_to("/etc/passwd")
    with pytest.raises(CheckpointRefused, match="outside"):
        check_tokenizer_files(model, trust_remote_code=False)


def test_a_template_that_nothing_reads_may_be_anything(model: Path) -> None:
    (model / "tokenizer.json").touch()
    (model / "old_template.jinja").write_bytes(b"\xff\xfe")
    check_tokenizer_files(model, trust_remote_code=False)


# -- files that nobody wrote on purpose

anything = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
scalars = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=4)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
sizes = st.lists(st.integers(-1, 9) | st.sampled_from([2**31, 2**63, 2**70]) | scalars, max_size=3)
entries = json_values | st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I8", "BF16", "F4", ""]) | scalars,
        "shape": sizes | scalars,
        "data_offsets": sizes | scalars,
        "other": scalars,
    },
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), entries, max_size=3)


def checked(model: Path, raw: bytes) -> None:
    """That they are weights, or refused."""
    (model / WEIGHTS).write_bytes(raw)
    with suppress(CheckpointRefused):
        weights = check_weights(model)
        assert 0 <= weights.bytes <= len(raw)
        assert all(entry.bytes >= 0 for entry in weights.tensors.values())


@anything
@given(header=headers, spare=st.integers(-2, 40))
def test_any_header_is_sound_or_refused(model: Path, header: Any, spare: int) -> None:
    raw = json.dumps(header).encode()
    checked(model, struct.pack("<Q", max(0, len(raw) + min(0, spare))) + raw + bytes(max(0, spare)))


@anything
@given(length=st.integers(0, 2**64 - 1) | st.integers(0, 40), rest=st.binary(max_size=40))
def test_any_bytes_are_weights_or_refused(model: Path, length: int, rest: bytes) -> None:
    checked(model, struct.pack("<Q", length) + rest)


@anything
@given(raw=st.binary(max_size=40), value=json_values)
def test_any_configuration_and_index_is_read_or_refused(
    model: Path, raw: bytes, value: Any
) -> None:
    for name in ("config.json", "tokenizer_config.json", INDEX):
        for content in (
            raw,
            json.dumps(value).encode(),
            json.dumps({"weight_map": value}).encode(),
        ):
            (model / name).write_bytes(content)
            with suppress(CheckpointRefused):
                read_config(model, trust_remote_code=False)
            with suppress(CheckpointRefused):
                check_tokenizer_files(model, trust_remote_code=False)
            with suppress(CheckpointRefused):
                check_weights(model)


@pytest.mark.parametrize(
    "made",
    [
        lambda n: safetensors({f"t{i}": 1 for i in range(n)}),
        lambda n: struct.pack("<Q", 9 * n) + b"[" * 9 * n,
        lambda n: struct.pack("<Q", 9 * n) + b'{"a":{"b":' * n,
        lambda n: struct.pack("<Q", 9 * n) + b'{"' + b"\\n" * 9 * n,
    ],
)
@pytest.mark.slow
def test_four_times_the_header_is_about_four_times_the_work(
    model: Path, made: Callable[[int], bytes]
) -> None:
    assert growth(lambda raw: checked(model, raw), made(1_500), made(6_000), tries=2) < LINEAR
