"""Model directories without weights worth the name, for tests that only look at them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "max_position_embeddings": 512,
}

WEIGHTS = "\x02" + "\0" * 7 + "{}"
"""A safetensors file with a header and no tensors."""


def write_model(
    path: Path,
    *,
    config: Any = CONFIG,
    files: Mapping[str, str] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """A directory that looks like a chat model, with ``files`` beside and ``without`` some. A
    ``config`` that names no type is one of the type qwen3."""
    if isinstance(config, Mapping):
        config = {"model_type": "qwen3", **config}
    content = {
        "config.json": config if isinstance(config, str) else json.dumps(config),
        "tokenizer.json": "{}",
        "model.safetensors": WEIGHTS,
        **(files or {}),
    }
    path.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        if name not in without:
            (path / name).write_text(text)
    return path


def sharded(*shards: str) -> dict[str, str]:
    """The index of a checkpoint in several files."""
    weight_map = {f"layer.{number}": shard for number, shard in enumerate(shards)}
    return {"model.safetensors.index.json": json.dumps({"weight_map": weight_map})}


def write_cached(
    cache: Path, repo_id: str, commit: str = "a" * 40, ref: str | None = "main", **options: Any
) -> Path:
    """A snapshot of ``repo_id`` as the Hub's cache keeps it."""
    repo = cache / ("models--" + repo_id.replace("/", "--"))
    blobs = write_model(repo / "blobs" / commit, **options)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    if ref is not None:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return snapshot
