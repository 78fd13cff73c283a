"""What is checked of a model's directory before anything is loaded from it.

Nothing here imports torch, opens a pickle or runs code of the checkpoint. No message names a path
of this machine: files go by their base names.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hotswap.errors import CheckpointRefused
from hotswap.files import content, inside, opened

_MAX_JSON_BYTES = 64 << 20
_MAX_HEADER_BYTES = 100 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
"""Directory of those with a name."""
_CODE_KEYS = (
    *("_attn_implementation", "_experts_implementation", "attn_implementation"),
    *("experts_implementation", "kernel_config", "use_kernels"),
)
"""Keys (or beginnings of keys) by which a configuration can make transformers fetch kernels."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", ".model", ".tiktoken")

_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
    "I16": 2, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The checked weight files of a model."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.tensors.values())

    def bytes_as(self, item_bytes: int | None) -> int:
        """With so many bytes for each floating-point number; None: for what was saved."""
        if item_bytes is None:
            return self.bytes
        return sum(
            entry.bytes * item_bytes // _ITEM_BYTES[entry.dtype]
            if entry.dtype in _FLOATS
            else entry.bytes
            for entry in self.tensors.values()
        )


def read_config(directory: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """``config.json``, without the keys by which it could bring in foreign code.

    Raises:
        CheckpointRefused
    """
    config = read_object(directory, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointRefused("config.json names no model_type.")
    _refuse_code(config, "config.json", trust_remote_code)
    architectures = config.get("architectures")
    if architectures is not None and not _is_list_of_str(architectures):
        raise CheckpointRefused("config.json: architectures is not a list of names.")
    return {key: _without_code_keys(v) for key, v in config.items() if not _brings_code(key)}


def check_tokenizer_files(directory: Path, *, trust_remote_code: bool) -> None:
    """Raises: CheckpointRefused: no vocabulary, foreign code, a file that is not its own, or a
    chat template that is no text."""
    for entry in sorted(directory.iterdir()):
        if entry.suffix in {".json", ".model", ".txt", ".tiktoken"}:
            resolve(directory, entry.name)
    _check_templates(directory)
    if (directory / "tokenizer_config.json").exists():
        config = read_object(directory, "tokenizer_config.json")
        _refuse_code(config, "tokenizer_config.json", trust_remote_code)
    # Without one transformers makes up an empty tokenizer rather than fail.
    if not any(entry.name.endswith(_VOCABULARIES) for entry in directory.iterdir()):
        raise CheckpointRefused("The tokenizer is missing.")


def _check_templates(directory: Path) -> None:
    """Of all that transformers reads with the tokenizer; one that is no text is an error there."""
    templates = [(directory, _TEMPLATE)] if os.path.lexists(directory / _TEMPLATE) else []
    if (directory / _MORE_TEMPLATES).is_dir():
        inner = inner_directory(directory, _MORE_TEMPLATES)
        templates += [(inner, file.name) for file in sorted(inner.glob("*.jinja"))]
    for where, name in templates:
        if not _is_text(_content(where, name)):
            raise CheckpointRefused(f"{_shown(name)} is not UTF-8 text.")


def check_weights(directory: Path) -> WeightFiles:
    """Look at every header of the model's safetensors files.

    Raises:
        CheckpointRefused
    """
    names = _weight_names(directory)
    files: list[Path] = []
    tensors: dict[str, TensorEntry] = {}
    for name in names:
        file = resolve(directory, name)
        files.append(file)
        tensors.update(_read_header(file, name))
    if not tensors:
        raise CheckpointRefused("The weight files hold no tensors.")
    return WeightFiles(tuple(files), tensors)


def resolve(directory: Path, name: str) -> Path:
    """The regular file that ``name`` is, inside the model's own directory, see `inside`.

    Raises:
        CheckpointRefused
    """
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        raise CheckpointRefused(f"{_shown(name)} is not a plain file name.")
    try:
        file = inside(directory, name)
        mode = file.stat().st_mode
    except OSError:
        raise CheckpointRefused(f"{_shown(name)} is missing.") from None
    except ValueError as error:
        raise CheckpointRefused(f"{error}.") from None
    if not stat.S_ISREG(mode):
        raise CheckpointRefused(f"{_shown(name)} is not a regular file.")
    if not os.access(file, os.R_OK):
        raise CheckpointRefused(f"{_shown(name)} is not readable.")
    return file


def read_object(directory: Path, name: str) -> dict[str, Any]:
    """A JSON object of the model's directory.

    Raises:
        CheckpointRefused
    """
    return _object(_content(directory, name), name)


def read_list(directory: Path, name: str) -> list[Any]:
    """A JSON list of the model's directory.

    Raises:
        CheckpointRefused
    """
    value = _json(_content(directory, name), name)
    if not isinstance(value, list):
        raise CheckpointRefused(f"{name} is not a JSON list.")
    return value


def inner_directory(directory: Path, name: str) -> Path:
    """The directory ``name`` inside the model's own.

    Raises:
        CheckpointRefused
    """
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name or "\0" in name:
        raise CheckpointRefused(f"{_shown(name)} is not a plain name.")
    inner = directory / name
    if not inner.is_dir():
        raise CheckpointRefused(f"The directory {_shown(name)} is missing.")
    if not inner.resolve().is_relative_to(directory.resolve()):
        raise CheckpointRefused(f"{_shown(name)} lies outside the model's directory.")
    return inner


def _weight_names(directory: Path) -> list[str]:
    if (directory / _INDEX).is_symlink() or (directory / _INDEX).exists():
        shards = read_object(directory, _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not _is_list_of_str(list(shards.values())):
            raise CheckpointRefused(f"{_INDEX} has no weight_map of file names.")
        return sorted(set(shards.values()))
    if (directory / _WEIGHTS).is_symlink() or (directory / _WEIGHTS).exists():
        return [_WEIGHTS]
    if any(entry.suffix in _PICKLES for entry in directory.iterdir()):
        raise CheckpointRefused("Only safetensors are read; this model has pickled weights only.")
    raise CheckpointRefused(f"{_WEIGHTS} is missing.")


def _read_header(file: Path, name: str) -> Iterator[tuple[str, TensorEntry]]:
    try:
        stream = opened(file)
    except ValueError as error:
        raise CheckpointRefused(f"{error}.") from None
    with stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointRefused(f"{name} is truncated or not a safetensors file.")
        header = _object(stream.read(length), name)
    header.pop("__metadata__", None)
    end = 0
    for tensor, entry in header.items():
        described = _entry(name, entry)
        if described is None:
            raise CheckpointRefused(f"{name} has a malformed header.")
        end = max(end, entry["data_offsets"][1])
        yield tensor, described
    if 8 + length + end != size:
        raise CheckpointRefused(f"{name} is truncated or has bytes to spare.")


def _entry(file: str, entry: Any) -> TensorEntry | None:
    """The described tensor; None where its description contradicts itself."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _is_sizes(shape) or not _is_sizes(offsets):
        return None
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        return None
    count = 1
    for dimension in shape:
        count *= dimension
    item = _ITEM_BYTES.get(dtype)
    if item is not None and item * count != offsets[1] - offsets[0]:
        return None
    return TensorEntry(file, dtype, tuple(shape), offsets[1] - offsets[0])


def _content(directory: Path, name: str) -> bytes:
    try:
        return content(resolve(directory, name), _MAX_JSON_BYTES)
    except ValueError as error:
        raise CheckpointRefused(f"{error}.") from None


def _json(raw: bytes, name: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointRefused(f"{name} is not valid JSON.") from None


def _object(raw: bytes, name: str) -> dict[str, Any]:
    value = _json(raw, name)
    if not isinstance(value, dict):
        raise CheckpointRefused(f"{name} is not a JSON object.")
    return value


def _refuse_code(config: Mapping[str, Any], name: str, trusted: bool) -> None:
    if "auto_map" in config and not trusted:
        raise CheckpointRefused(
            f"{name} asks for code of its own (auto_map); that needs --trust-remote-code."
        )


def _without_code_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_code_keys(item) for key, item in value.items() if not _brings_code(key)
        }
    return value


def _brings_code(key: str) -> bool:
    return key.startswith(_CODE_KEYS)


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_list_of_str(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(name: str) -> str:
    return repr(Path(name).name[:100])
