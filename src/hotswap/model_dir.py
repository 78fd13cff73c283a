"""What one directory holds: whether it is a model that can be served, what for, and what it says
about itself."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from hotswap.config import parse_yaml
from hotswap.contracts.models import ModelFacts, Task
from hotswap.errors import InvalidRequest
from hotswap.files import beginning, content, inside

CONFIG = "config.json"
SETTINGS = "hotswap_config.yaml"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
_TOKENIZERS = (
    *(_TOKENIZER, "tokenizer.model", "vocab.json", "tekken.json", "spiece.model"),
    *("vocab.txt", "sentencepiece.bpe.model"),
)
# Embedding models of causal architecture (Qwen3-Embedding) are told by these.
_EMBEDDING_MARKS = ("modules.json", "config_sentence_transformers.json")
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
_EMBEDDED_LENGTH = "sentence_bert_config.json"
_ENCODERS = frozenset(
    f"{family}Model"
    for family in (
        *("Albert", "Bert", "Camembert", "DebertaV2", "DistilBert", "Electra", "EuroBert", "Gte"),
        *("JinaEmbeddingsV3", "MPNet", "ModernBert", "NomicBert", "Roberta", "XLMRoberta"),
        *("Gemma3Text", "Llama", "Mistral", "Qwen2", "Qwen3"),
    )
)
"""Architectures without a head for any task, as models that embed texts are saved."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HEAD_BYTES = 64
_LENGTH_BYTES = 8
"""Of the number that a safetensors file begins with, its header's length."""
_MAX_JSON_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDir:
    path: Path
    identity: tuple[int, int]
    """Device and inode: equal for two names of one directory."""
    defect: str | None = None
    """Why this cannot be served, with no path in it; None: it can."""
    task: Task = "generate"
    max_position_embeddings: int | None = None
    created_unix: int = 0
    facts: ModelFacts = field(default_factory=ModelFacts)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its ``hotswap_config.yaml`` says, unchecked."""
    settings_error: InvalidRequest | None = None
    """Why that file cannot be read."""


def look_at(place: str) -> ModelDir | None:
    """What is in the directory ``place``; None if it is none."""
    path = Path(place)
    try:
        status = path.stat()
        names = frozenset(os.listdir(path))
    except (OSError, ValueError):
        return None
    found = ModelDir(path=path, identity=(status.st_dev, status.st_ino))
    try:
        config = _json_object(path / CONFIG)
        task = _task(config, names)
        defect = _defect(config, task) or _missing_file(path, names) or _damage(path, names)
        longest = _longest(path, names, config, task)
        created_unix = int((path / CONFIG).stat().st_mtime)
        facts = ModelFacts() if defect else _facts(path, config)
    except (OSError, ValueError) as error:
        return _with_defect(found, _reason(error))
    if defect:
        return _with_defect(found, defect)
    settings, settings_error = _settings(path)
    return ModelDir(
        path=path,
        identity=found.identity,
        task=task,
        max_position_embeddings=longest,
        created_unix=created_unix,
        facts=facts,
        settings=settings,
        settings_error=settings_error,
    )


def _with_defect(found: ModelDir, defect: str) -> ModelDir:
    return ModelDir(path=found.path, identity=found.identity, defect=defect)


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    name = os.path.basename(str(error.filename))[:80]
    shown = CONFIG if name == CONFIG else repr(name)
    if isinstance(error, FileNotFoundError):
        return f"{shown} is missing"
    return f"{shown} cannot be read: {error.strerror}"


def _json_object(path: Path) -> dict[str, Any]:
    text = content(path, _MAX_JSON_BYTES)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _task(config: Mapping[str, Any], names: frozenset[str]) -> Task:
    if names.intersection(_EMBEDDING_MARKS):
        return "embed"
    architectures = config.get("architectures")
    is_encoder = isinstance(architectures, list) and _ENCODERS.issuperset(map(str, architectures))
    return "embed" if architectures and is_encoder else "generate"


def _defect(config: Mapping[str, Any], task: Task) -> str | None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return f"{CONFIG} names no architecture"
    # GPT-2 is older than the naming rule.
    is_causal = any(
        str(name).endswith(("ForCausalLM", "GPT2LMHeadModel")) for name in architectures
    )
    if task == "generate" and not is_causal:
        return f"{str(architectures[0])[:80]!r} is not a chat model"
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder model"
    if not isinstance(config.get("model_type"), str):
        return f"{CONFIG} names no model_type"
    return None


def _missing_file(path: Path, names: frozenset[str]) -> str | None:
    if not names.intersection(_TOKENIZERS):
        return "its tokenizer is missing"
    if _WEIGHTS in names:
        return None if (path / _WEIGHTS).exists() else f"{_WEIGHTS} is missing"
    if _INDEX not in names:
        pickled = any(name.endswith(_PICKLES) for name in names)
        return "it has no safetensors weights" + ", only pickles, which are not read" * pickled
    for shard in sorted(_shards(_json_object(path / _INDEX))):
        # Only plain names: the files of a checkpoint are in its own directory.
        if "/" in shard or not (path / shard).exists():
            return f"{shard[:80]!r} is missing: the download did not finish"
    return None


def _damage(path: Path, names: frozenset[str]) -> str | None:
    """Of files that are there, as far as their first bytes tell.

    Raises:
        OSError, ValueError: one that cannot be read.
    """
    if _TOKENIZER in names and not _begins_object(path / _TOKENIZER):
        return f"{_TOKENIZER} is not a JSON object"
    if _TEMPLATE in names:
        beginning(path / _TEMPLATE, _HEAD_BYTES)
    for name in sorted(_weight_files(path)):
        size = (path / name).stat().st_size
        header_bytes = int.from_bytes(beginning(path / name, _LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or header_bytes > size - _LENGTH_BYTES:
            return f"{name[:80]!r} is cut short or not a safetensors file"
    return None


def _begins_object(file: Path) -> bool:
    return beginning(file, _HEAD_BYTES).lstrip().startswith(b"{")


def _shards(index: Mapping[str, Any]) -> set[str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{_INDEX} names no files")
    return {str(shard) for shard in weight_map.values()}


def _longest(
    path: Path, names: frozenset[str], config: Mapping[str, Any], task: Task
) -> int | None:
    """Tokens that it sees at most; an embedding model may be meant for shorter texts than it has
    positions."""
    positions = _max_position_embeddings(config)
    if task != "embed" or _EMBEDDED_LENGTH not in names:
        return positions
    own = _json_object(path / _EMBEDDED_LENGTH).get("max_seq_length")
    told = own if isinstance(own, int) and not isinstance(own, bool) and own > 0 else None
    return min(filter(None, (told, positions)), default=None)


def _max_position_embeddings(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            value = holder.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _facts(path: Path, config: Mapping[str, Any]) -> ModelFacts:
    inner = config.get("text_config")
    holders = (config, inner if isinstance(inner, dict) else {})
    dtypes = [holder.get(key) for holder in holders for key in ("dtype", "torch_dtype")]
    dtype = next((str(name)[:20] for name in dtypes if isinstance(name, str)), "")
    quantized = config.get("quantization_config")
    quantization = ""
    if isinstance(quantized, dict):
        quantization = str(quantized.get("quant_method", "unknown"))[:20]
    weights_bytes = sum((path / name).stat().st_size for name in _weight_files(path))
    width = 0 if quantization else _WIDTHS.get(dtype, 0)
    return ModelFacts(
        family=str(config.get("model_type", ""))[:80],
        dtype=dtype,
        quantization=quantization,
        weights_bytes=weights_bytes,
        parameters=weights_bytes // width if width else 0,
    )


def _weight_files(path: Path) -> set[str]:
    return {_WEIGHTS} if (path / _WEIGHTS).exists() else _shards(_json_object(path / _INDEX))


def _settings(path: Path) -> tuple[dict[str, Any], InvalidRequest | None]:
    try:
        inside(path, SETTINGS)
        text = content(path / SETTINGS, _MAX_JSON_BYTES)
    except FileNotFoundError:
        return {}, None
    except OSError:
        return {}, InvalidRequest(f"{SETTINGS} cannot be read.")
    except ValueError as error:
        return {}, InvalidRequest(f"{error}.")
    try:
        settings = parse_yaml(text, SETTINGS)
        template = settings.get("chat_template")
        if isinstance(template, str) and "{{" not in template and "{%" not in template:
            settings["chat_template"] = _template_file(path, template)
    except InvalidRequest as error:
        return {}, error
    return settings, None


def _template_file(path: Path, name: str) -> str:
    if Path(name).name != name:
        problem = "must be Jinja text or the name of a file beside it"
        raise InvalidRequest(f"{SETTINGS}: chat_template {problem}.", param="chat_template")
    try:
        return content(inside(path, name), _MAX_JSON_BYTES).decode()
    except (OSError, ValueError):
        problem = f"the file {name!r} cannot be read"
        raise InvalidRequest(f"{SETTINGS}: {problem}.", param="chat_template") from None


K = TypeVar("K")
V = TypeVar("V")
Stamp = tuple[int, ...]

_SETTLED_NS = 100_000_000
"""A file system's clock ticks every few milliseconds: a directory that changed just now may
change again without a new time."""


class Remembered(Generic[K, V]):
    """Answers about files, computed again only when one of the files has changed."""

    def __init__(self, compute: Callable[[K], V], files: Callable[[K], Iterable[str]]) -> None:
        self._compute = compute
        self._files = files
        self._answers: dict[K, tuple[Stamp, V]] = {}

    def __call__(self, key: K) -> V:
        stamp = tuple(_changed_ns(path) for path in self._files(key))
        known = self._answers.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        answer = self._compute(key)
        if max(stamp) < time.time_ns() - _SETTLED_NS:
            self._answers[key] = (stamp, answer)
        else:
            self._answers.pop(key, None)
        return answer


def files_of(place: str) -> tuple[str, ...]:
    """The files whose change can change what `look_at` says of ``place``."""
    try:
        weights = [name for name in os.listdir(place) if name.endswith(".safetensors")]
    except (OSError, ValueError):
        weights = []
    names = (CONFIG, SETTINGS, _TOKENIZER, _TEMPLATE, *sorted(weights))
    return (place, *(f"{place}/{name}" for name in names))


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
