"""The numbers of ``config.json`` that say how large a model is, held against the headers of its
weight files. One that is wrong makes transformers build for minutes, and nothing interrupts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from hotswap.engine.preflight import WeightFiles
from hotswap.errors import CheckpointRefused

_LAYERS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers"),
    *("num_decoder_layers", "encoder_layers", "decoder_layers", "num_nextn_predict_layers"),
)
_LISTS_OF_LAYERS = (
    *("layer_types", "layers_block_type", "block_types", "hybrid_override_pattern"),
    *("mlp_layer_types", "no_rope_layers"),
)
_EXPERTS = (
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    *("num_routed_experts", "n_experts"),
)
_WIDTHS = (
    *("vocab_size", "hidden_size", "n_embd", "d_model", "head_dim", "num_attention_heads"),
    *("n_head", "n_heads", "num_key_value_heads"),
)
"""Of tensors: one dimension of some tensor is that or more."""
_INNER_WIDTHS = ("intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim", "d_ff")
"""As `_WIDTHS`, but a model may have no layer that uses it."""
_POSITIVE = ("vocab_size", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer")
_HOLDERS = ("text_config", "llm_config", "language_config")

_MOST_LAYERS = 10_000
"""Of any model. A configuration makes lists with an entry for each of its layers."""
_SMALL_STACK = 128
"""Layers that are built in a second, and that may share their weights (ALBERT's do)."""
_FEW_EXPERTS = 1024
"""That may lie in one tensor, in whatever layout."""
_INNER_FACTOR = 8


def refuse_nonsense(config: Mapping[str, Any]) -> None:
    """What no weights can make right; before transformers makes anything of the configuration.

    Raises:
        CheckpointRefused
    """
    for holder in _language_models(config):
        for key in _POSITIVE:
            value = holder.get(key)
            if type(value) is int and value < 1:
                raise CheckpointRefused(f"config.json: {key} is {value}, and must be at least 1.")
    for key, count in _layer_counts(config):
        if count > _MOST_LAYERS:
            raise _too_many(key, count, f"more than the {_MOST_LAYERS} that are built here")


def refuse_more_than_the_files_hold(config: Mapping[str, Any], files: WeightFiles) -> None:
    """
    Args:
        config: As ``config.json`` has it, or with the defaults of its type.

    Raises:
        CheckpointRefused
    """
    many_layers = [(key, count) for key, count in _layer_counts(config) if count > _SMALL_STACK]
    many_experts = [
        (key, count) for key, count in _numbers(config, _EXPERTS) if count > _FEW_EXPERTS
    ]
    if many_layers or many_experts:
        stacked, beside = _stack_sizes(files)
        for key, count in many_layers:
            if count > min(2 * stacked, len(files.tensors)):
                told = (
                    f"and the weight files hold {len(files.tensors)} tensors, of {stacked} layers"
                )
                raise _too_many(key, count, told)
        for key, count in many_experts:
            if count > beside:
                raise _too_many(key, count, "more than the weight files hold")
    widest = max((max(entry.shape, default=1) for entry in files.tensors.values()), default=1)
    for holder in _language_models(config):
        for keys, factor in ((_WIDTHS, 1), (_INNER_WIDTHS, _INNER_FACTOR)):
            for key in keys:
                value = holder.get(key)
                if type(value) is int and value > factor * widest:
                    told = f"and no tensor of the weight files is larger than {widest}"
                    raise _too_many(key, value, told)


def _too_many(key: str, count: int, told: str) -> CheckpointRefused:
    shown = str(count) if count < 10**18 else f"{count:.1e}" if count < 10**300 else "endless"
    return CheckpointRefused(f"config.json: {key} is {shown}, {told}.")


def _layer_counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    yield from _numbers(config, _LAYERS)
    for holder in _objects(config):
        for key in _LISTS_OF_LAYERS:
            value = holder.get(key)
            if isinstance(value, list | tuple | str):
                yield f"the length of {key}", len(value)


def _numbers(config: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for holder in _objects(config):
        for key in keys:
            value = holder.get(key)
            if type(value) is int:
                yield key, value


def _objects(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """``config`` and all that lie in it."""
    waiting: list[Mapping[str, Any]] = [config]
    while waiting:
        holder = waiting.pop()
        yield holder
        waiting += [value for value in holder.values() if isinstance(value, dict)]


def _language_models(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Without those of pictures or sound, which count other things by the same names."""
    yield config
    for key in _HOLDERS:
        if isinstance(config.get(key), dict):
            yield config[key]


def _stack_sizes(files: WeightFiles) -> tuple[int, int]:
    """How many layers the names of tensors number at most in one stack, and how many parts in one
    layer: names have the layer's number first, that of an expert next."""
    stacks: defaultdict[int, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name in files.tensors:
        parts = name.split(".")
        numbered = [at for at, part in enumerate(parts) if part.isascii() and part.isdigit()]
        for depth, at in enumerate(numbered[:2]):
            stacks[depth][".".join(parts[:at])].add(int(parts[at][:18]))
    layers, beside = (max(map(len, stacks[depth].values()), default=0) for depth in (0, 1))
    return layers, beside
