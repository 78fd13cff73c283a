"""The part of a model that is read before and without its weights: configuration, tokenizer,
template, defaults. Recent ones stay warm, so that a swap does not read them again."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from jinja2 import TemplateSyntaxError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hotswap.contracts.models import EngineConfig, ModelSpec, Task
from hotswap.contracts.requests import SamplingParams
from hotswap.engine.blame import blamed
from hotswap.engine.decoding import Vocabulary
from hotswap.engine.embedding.recipe import RECIPE_FILES, Recipe, default_recipe, read_recipe
from hotswap.engine.guide import Guides
from hotswap.engine.preflight import check_tokenizer_files, read_config, read_object
from hotswap.engine.sizes import refuse_nonsense
from hotswap.engine.speech.families import Speech, speech_of
from hotswap.engine.template import ChatTemplate
from hotswap.errors import CheckpointRefused, HotswapError

_log = logging.getLogger(__name__)

_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "special_tokens_map.json", "added_tokens.json"),
)
_COLD_LOADS = 4
"""Fronts that are read at the same time."""
_TEMPLATE_CHARS = 128 << 10
"""Of a chat template's source at most. It takes 50 us a character to compile, and a kilobyte."""
_UNBOUNDED_CONTEXT = 32768
"""Context of a model that has no maximum of its own (recurrent ones)."""


FrontKey = tuple[Any, ...]
"""Names the files and the settings that a front was made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Shared between threads, never changed."""

    key: FrontKey
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    guides: Guides
    config: PreTrainedConfig
    chat_template: str | None
    template: ChatTemplate | None
    """``chat_template``, compiled."""
    template_fault: str | None
    """Why the model has no template although it brings one, or was given one."""
    speech: Speech
    """What template and vocabulary know of tools and of reasoning."""
    vocab_size: int
    """Ids below it may be fed to the model."""
    eos_ids: frozenset[int]
    max_model_len: int
    sampling: SamplingParams
    """The model's own defaults."""
    greedy: bool
    """The model asks to be decoded greedily (``do_sample: false``)."""
    recipe: Recipe | None = None
    """How it embeds a text; None: it is not for that, but generates."""


class Fronts:
    """Loads fronts and keeps the most recent ones. Safe to use from several threads."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: OrderedDict[FrontKey, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, spec: ModelSpec) -> Front:
        """Raises: CheckpointRefused."""
        return self.load(front_key(spec), spec)

    def kept(self, key: FrontKey) -> Front | None:
        """A front that is warm. Never waits."""
        with self._lock:
            slot = self._kept.get(key)
            if slot is not None:
                self._kept.move_to_end(key)
        return None if slot is None else slot.front

    def load(self, key: FrontKey, spec: ModelSpec) -> Front:
        """Raises: CheckpointRefused."""
        with self._lock:
            slot = self._kept.setdefault(key, _Slot())
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        # Ten requests for one model load its tokenizer once, and nobody else waits for it.
        with slot.lock:
            if slot.front is None:
                slot.front = _load(local_path(spec), spec.engine, spec.task, key)
            return slot.front


@dataclass(slots=True)
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    front: Front | None = None


class SharedFronts:
    """`Fronts` for the event loop. However many wait for a front, one thread reads it."""

    def __init__(self, fronts: Fronts) -> None:
        self._fronts = fronts
        self._reads: dict[FrontKey, _Read] = {}
        self._cold = anyio.CapacityLimiter(_COLD_LOADS)

    async def get(self, spec: ModelSpec) -> Front:
        """Raises: CheckpointRefused."""
        key = await to_thread.run_sync(front_key, spec, abandon_on_cancel=True)
        while (front := self._fronts.kept(key)) is None:
            read = self._reads.get(key)
            if read is None:
                return await self._read(key, spec)
            await read.ended.wait()
            if read.error is not None:
                raise copy.copy(read.error)
        return front

    async def _read(self, key: FrontKey, spec: ModelSpec) -> Front:
        read = self._reads[key] = _Read()
        try:
            return await to_thread.run_sync(
                self._fronts.load, key, spec, abandon_on_cancel=True, limiter=self._cold
            )
        except HotswapError as error:
            read.error = copy.copy(error)
            raise
        finally:
            # Also when this one was cancelled: then the next of those who wait reads.
            del self._reads[key]
            read.ended.set()


@dataclass(slots=True)
class _Read:
    ended: anyio.Event = field(default_factory=anyio.Event)
    error: HotswapError | None = None


def front_key(spec: ModelSpec) -> FrontKey:
    """Raises: CheckpointRefused: nothing is on disk."""
    path = local_path(spec)
    files = RECIPE_FILES if spec.task == "embed" else ()
    return path, _stamp(path, files), spec.task, _relevant(spec.engine)


def fits(front: Front, spec: ModelSpec) -> bool:
    """``front`` was made with the settings of ``spec``, as far as they matter to it."""
    return bool(front.key[-1] == _relevant(spec.engine))


def local_path(spec: ModelSpec) -> Path:
    """Raises: CheckpointRefused: nothing is on disk."""
    if spec.path is None or not spec.path.is_dir():
        raise CheckpointRefused(f"The files of {spec.id!r} are not on this machine.")
    return spec.path


def _relevant(engine: EngineConfig) -> tuple[Any, ...]:
    return engine.chat_template, engine.trust_remote_code, engine.max_model_len


def _stamp(path: Path, others: Sequence[str]) -> tuple[float, ...]:
    return tuple(_mtime(path / name) for name in (*_FILES, *others))


def _mtime(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _load(path: Path, engine: EngineConfig, task: Task, key: FrontKey) -> Front:
    raw = read_config(path, trust_remote_code=engine.trust_remote_code)
    refuse_nonsense(raw)
    check_tokenizer_files(path, trust_remote_code=engine.trust_remote_code)
    config = _config(path, raw, engine.trust_remote_code)
    if task == "embed":
        _refuse_what_does_not_embed(raw, config, engine.trust_remote_code)
    else:
        _refuse_other_tasks(raw, config, engine.trust_remote_code)
    tokenizer = _tokenizer(path, config, engine.trust_remote_code)
    generation = _generation_defaults(path) if task == "generate" else {}
    text_config = config.get_text_config(decoder=True)
    recipe = _recipe(path, text_config) if task == "embed" else None
    own, asked = _own_context(text_config), engine.max_model_len
    if recipe is not None:
        own = _embedded_at_once(text_config, recipe, tokenizer, own)
        asked = min(asked or own, own)
    vocabulary, vocab_size = Vocabulary(tokenizer), int(text_config.vocab_size)
    eos_ids = (
        _ids(generation.get("eos_token_id"))
        | _ids(getattr(text_config, "eos_token_id", None))
        | _ids(tokenizer.eos_token_id)
    )
    given = engine.chat_template or _own_template(tokenizer) if task == "generate" else None
    template, fault = _compiled(given)
    if fault is not None:
        _log.warning("The chat template of %s cannot be read, so it refuses chats: %s", path, fault)
    source = None if template is None else given
    speech = _speech(template, source, vocabulary)
    eos_ids = speech.end_ids(eos_ids)
    return Front(
        key=key,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        guides=Guides(tokenizer, vocabulary, vocab_size, eos_ids),
        config=config,
        chat_template=source,
        template=template,
        template_fault=fault,
        speech=speech,
        vocab_size=vocab_size,
        eos_ids=eos_ids,
        max_model_len=_max_model_len(own, asked),
        sampling=_sampling(generation),
        greedy=generation.get("do_sample") is False,
        recipe=recipe,
    )


def _config(path: Path, raw: dict[str, Any], trusted: bool) -> PreTrainedConfig:
    try:
        if trusted and "auto_map" in raw:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                path, trust_remote_code=True, local_files_only=True
            )
            return config
        if raw["model_type"] not in CONFIG_MAPPING:
            raise CheckpointRefused(f"Models of type {raw['model_type'][:100]!r} are not known.")
        known: PreTrainedConfig = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    except HotswapError:
        raise
    except Exception as error:  # whatever a configuration class makes of wrong values
        _log.warning("config.json of %s cannot be read", path, exc_info=True)
        raise CheckpointRefused(blamed(raw, error)) from None
    return known


def _refuse_other_tasks(raw: dict[str, Any], config: PreTrainedConfig, trusted: bool) -> None:
    if trusted and "auto_map" in raw:
        return
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise CheckpointRefused(f"{raw['model_type'][:100]!r} is not a causal language model.")
    classes = mapping[type(config)]
    known = {c.__name__ for c in (classes if isinstance(classes, tuple) else (classes,)) if c}
    named = raw.get("architectures") or []
    if named and not any(n in known or n.endswith("LMHeadModel") for n in named):
        raise CheckpointRefused(
            f"The architecture {named[0][:100]!r} is not a causal language model."
        )


def _refuse_what_does_not_embed(
    raw: dict[str, Any], config: PreTrainedConfig, trusted: bool
) -> None:
    if config.is_encoder_decoder:
        raise CheckpointRefused("Embedding models with an encoder and a decoder are not supported.")
    text_config = config.get_text_config(decoder=True)
    known = (trusted and "auto_map" in raw) or type(config) in AutoModel._model_mapping
    if not known or not all(hasattr(text_config, name) for name in ("vocab_size", "hidden_size")):
        raise CheckpointRefused(f"{raw['model_type'][:100]!r} is not a model of texts.")


def _recipe(path: Path, config: PreTrainedConfig) -> Recipe:
    if (path / "modules.json").exists():
        return read_recipe(path, config.hidden_size)
    # Many encoders can be made to decode as well; what can fill gaps looks both ways.
    is_causal = type(config) not in AutoModelForMaskedLM._model_mapping
    return default_recipe(path, config.hidden_size, is_causal=is_causal)


def _embedded_at_once(
    config: PreTrainedConfig,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    positions: int | None,
) -> int:
    """Tokens of a text at most."""
    if positions is not None and config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    told = min(filter(None, (recipe.max_tokens, positions)), default=_UNBOUNDED_CONTEXT)
    return min(told, tokenizer.model_max_length)


_POSITIONS_AFTER_PADDING = frozenset(
    {"camembert", "data2vec-text", "ibert", "luke", "longformer", "mpnet", "roberta"}
    | {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Model types whose first token has the position after that of the padding token's id."""


def _tokenizer(path: Path, config: PreTrainedConfig, trusted: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, config=config, local_files_only=True, trust_remote_code=trusted
        )
        tokenizer.encode("a", add_special_tokens=False)
    except Exception:  # a tokenizer's files fail in as many ways as there are tokenizers
        _log.warning("The tokenizer of %s cannot be loaded", path, exc_info=True)
        raise CheckpointRefused("The tokenizer is missing or cannot be loaded.") from None
    return tokenizer


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Some have several, by name; the one for tools writes other conversations too."""
    own: str | dict[str, str] | None = tokenizer.chat_template
    return own.get("tool_use") or own.get("default") if isinstance(own, dict) else own


def _compiled(source: str | None) -> tuple[ChatTemplate | None, str | None]:
    """The template, or what is wrong with it: the model can complete texts all the same."""
    if source is None:
        return None, None
    if len(source) > _TEMPLATE_CHARS:
        return None, f"it has more than {_TEMPLATE_CHARS} characters"
    try:
        return ChatTemplate(source), None
    except TemplateSyntaxError as error:
        problem = " ".join((error.message or "").split())[:200].rstrip(".")
        return None, f"line {error.lineno}: {problem}"
    except Exception as error:  # whatever a compiler makes of wrong source
        _log.debug("A chat template cannot be compiled", exc_info=True)
        is_deep = isinstance(error, RecursionError | MemoryError | SyntaxError)
        return None, "it is too large, or nests too deeply" if is_deep else "it is not Jinja"


def _speech(template: ChatTemplate | None, source: str | None, vocabulary: Vocabulary) -> Speech:
    if template is None or source is None:
        return Speech()
    names = template.variables | template.attributes
    return speech_of(source, names, vocabulary.added, vocabulary.special)


def _generation_defaults(path: Path) -> dict[str, Any]:
    name = "generation_config.json"
    return read_object(path, name) if (path / name).exists() else {}


_RANGES = {
    "temperature": (0.0, 100.0),
    "top_k": (-1, 2**31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
"""What generation_config.json may ask for."""


def _sampling(generation: dict[str, Any]) -> SamplingParams:
    values: dict[str, Any] = {}
    for name, (low, high) in _RANGES.items():
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointRefused(f"generation_config.json: {name} is not a number.")
        if not low <= value <= high:  # NaN is in no range
            raise CheckpointRefused(f"generation_config.json: {name} is out of range.")
        values[name] = int(value) if name == "top_k" else float(value)
    return SamplingParams(**values)


def _own_context(config: PreTrainedConfig) -> int | None:
    for name in _CONTEXT_NAMES:
        tokens = config.__dict__.get(name)
        if isinstance(tokens, int):
            if tokens < 1:
                raise CheckpointRefused(f"config.json: {name} is {tokens}, and must be at least 1.")
            return tokens
    return None


def _max_model_len(own: int | None, asked: int | None) -> int:
    if own is not None and asked is not None and asked > own:
        raise CheckpointRefused(
            f"max_model_len {asked} is more than the {own} tokens this model was made for."
        )
    return asked or own or _UNBOUNDED_CONTEXT


_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def _ids(value: Any) -> frozenset[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return frozenset(v for v in values if type(v) is int and v >= 0)
