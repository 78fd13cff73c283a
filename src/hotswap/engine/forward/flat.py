"""Tier A: the step's tokens as one flat row through transformers' modules, our attention inside.

The modules call our function by the name "hotswap" through transformers' attention interface; what
step they are in is told by a context variable.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from hotswap.engine.forward.attention import FlatStep
from hotswap.engine.forward.base import Segment, UnsupportedForward
from hotswap.engine.forward.scores import AttentionOptions
from hotswap.engine.kv_pool import KVPool

NAME = "hotswap"

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_WITHOUT_MEANING = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
    | {"output_hidden_states", "output_router_logits", "position_embeddings", "deterministic"}
)
"""Keyword arguments that change nothing in a causal forward without a mask."""


class FlatForward:
    """One forward a step, whatever the mix of prompts and decoding sequences."""

    tier = "A"
    chunked = True

    def __init__(self, model: PreTrainedModel, pool: KVPool) -> None:
        """Raises: UnsupportedForward."""
        _refuse_by_config(model)
        self.pool = pool
        self.windows: dict[int, int | None] = {}
        """The sliding window that each layer asked for in the last step."""
        self._model = model
        self._attention_before = model.config._attn_implementation
        model.set_attn_implementation(NAME)

    def reserve(self, blocks: int) -> None:
        self.pool.resize(blocks)

    def grow(self, blocks: int) -> None:
        self.pool.grow(blocks)

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        running = _Running(FlatStep(self.pool, segments, self._model.device))
        step = running.step
        with _during(running):
            output = self._model(
                input_ids=(step.ids if ids is None else ids)[None],
                position_ids=step.positions[None],
                use_cache=False,
                logits_to_keep=0 if step.sampled is None else step.sampled,
                return_dict=True,
            )
        self.windows = running.windows
        logits: Tensor = output.logits[0]
        return logits

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        self.pool.copy(blocks)

    def drop(self, sequence: int) -> None:
        """Everything is in the blocks."""

    def close(self) -> None:
        self.pool.close()
        self._model.set_attn_implementation(self._attention_before)


@dataclass(frozen=True, slots=True)
class _Running:
    step: FlatStep
    windows: dict[int, int | None] = field(default_factory=dict)


_running: ContextVar[_Running] = ContextVar("hotswap_flat_step")


@contextmanager
def _during(running: _Running) -> Iterator[None]:
    """What `attend` works on inside the block, on this thread."""
    token = _running.set(running)
    try:
        yield
    finally:
        _running.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: query [1, heads, tokens, size] to
    [1, tokens, heads, size].

    Raises:
        UnsupportedForward: the model wants something of its attention that we do not know.
    """
    _refuse_unknown(module, attention_mask, others)
    running = _running.get()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    running.windows[layer] = sliding_window
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    options = AttentionOptions(scale, sliding_window, softcap, s_aux)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    return running.step.attend(layer, rows[0], rows[1], rows[2], options)[None], None


def _refuse_unknown(module: nn.Module, mask: Tensor | None, others: dict[str, Any]) -> None:
    causal = others.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if mask is not None or not causal:
        raise UnsupportedForward("attention with a mask of its own")
    for name, value in others.items():
        if name not in _WITHOUT_MEANING and value is not None and value is not False:
            raise UnsupportedForward(f"attention with {name}")
    if not isinstance(getattr(module, "layer_idx", None), int):
        raise UnsupportedForward("attention layers without an index")


def expected_windows(model: PreTrainedModel) -> dict[int, int | None]:
    """The sliding window of each layer, by transformers' own reading of the configuration."""
    layers = DynamicCache(config=model.config).layers
    return {index: getattr(layer, "sliding_window", None) for index, layer in enumerate(layers)}


def _refuse_by_config(model: PreTrainedModel) -> None:
    if not model._can_set_attn_implementation():
        raise UnsupportedForward("attention that is not replaceable")
    accepted = inspect.signature(model.forward).parameters
    if not {"position_ids", "logits_to_keep"} <= accepted.keys():
        raise UnsupportedForward("a forward without positions")
    config = model.config.get_text_config(decoder=True)
    unknown = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if unknown:
        raise UnsupportedForward(f"layers of type {sorted(unknown)}")
    # Such a rotary embedding depends on the longest position in the batch, so one sequence would
    # change the answers of the others.
    if _rope_types(getattr(config, "rope_parameters", None)) & _LENGTH_DEPENDENT_ROPE:
        raise UnsupportedForward("a rotary embedding that depends on the length")


def _rope_types(parameters: object) -> set[str]:
    if not isinstance(parameters, dict):
        return set()
    own = parameters.get("rope_type")
    nested = set().union(*(_rope_types(value) for value in parameters.values()))
    return nested | {own} if isinstance(own, str) else nested


AttentionInterface.register(NAME, attend)
