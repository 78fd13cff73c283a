"""What there is to serve: a model, and everything settled about how to serve it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hotswap.contracts.requests import SamplingParams

Task = Literal["generate", "embed"]
"""What a model is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine is built. The fields are the keys of ``load_model`` and of config files."""

    device: str = "auto"
    device_map: str = "none"
    """none or auto; auto: a model that has no room on the device is spread over all CUDA devices
    and, as to the rest, host memory."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16; auto: what the checkpoint was saved in."""
    no_mmap: bool = False
    """Read the weights into memory of this process's own instead of mapping their files."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together at most; None: what the model was made for."""
    max_num_seqs: int = 64
    """Answers that run at the same time at most; more wait in the engine's queue."""
    kv_cache_memory: int | None = None
    """Bytes for keys and values at most; None: a share of what is free."""
    chat_template: str | None = None
    """Jinja source that replaces the tokenizer's own template."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's files say about it; empty and 0 where they do not, or are not here."""

    family: str = ""
    """What its configuration calls the architecture: "qwen3"."""
    dtype: str = ""
    """Of its weights as they were saved: "bfloat16"."""
    quantization: str = ""
    """How its weights are quantized: "fp8"."""
    weights_bytes: int = 0
    parameters: int = 0
    """Numbers in its weights, to within the headers of the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacts:
    """How a model chats, as its template and its vocabulary say."""

    template: str | None = None
    """As Jinja source; None: it has none, and cannot chat."""
    tools: bool = False
    """It can be told of tools, and its calls are understood."""
    thinking: bool = False
    """It knows of reasoning."""


@dataclass(frozen=True, slots=True)
class AppliedSetting:
    value: Any
    source: str
    """"request", "uploaded", "config_file" or "model_dir"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model and everything settled about how to serve it. Two specs of one ``id`` are the
    same model, perhaps with other settings."""

    id: str
    path: Path | None
    """The model's directory; None: a Hub repository that must be downloaded first."""
    task: Task = "generate"
    """Means nothing before the model is here: its files say what it is for."""
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    engine: EngineConfig = EngineConfig()
    sampling: SamplingParams = SamplingParams()
    """Defaults for what a request leaves unset."""
    applied: Mapping[str, AppliedSetting] = field(default_factory=dict)
    """The settings above that do not come from start-up flags or defaults."""
    ttl_s: float | None = None
    """Idle seconds after which the model is let go; None: the server's ``--idle-timeout-s``."""
    pin: bool = False
    """Parked, it stays so, whatever else would like its place."""
    background: bool = False
    """Its requests are answered by whichever model is resident, and never cause a swap."""
    show_loading: bool = False
    """A stream that waits for it tells how far it is as reasoning, which a person sees."""
    max_position_embeddings: int | None = None
    created_unix: int = 0
    facts: ModelFacts = ModelFacts()
    fault: str | None = None
    """Why it cannot be loaded: its files make no model, or settings for it are wrong. A layer of
    settings with a mistake in it is left out above."""
