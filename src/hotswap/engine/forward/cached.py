"""Tier B: one forward per sequence with transformers' own cache, the way `generate` does it.

Slow, and right for every model that `generate` is right for: state-space models, hybrids,
attention of a model's own.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hotswap.engine.forward.base import Segment


class CachedForward:
    """Prompts are computed whole: not every cache can take a second chunk."""

    tier = "B"
    chunked = False

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        """
        Args:
            device: Where tokens go in and logits come out.
        """
        self._model = model
        self._device = device
        self._accepted = inspect.signature(model.forward).parameters
        self._states: dict[int, dict[str, Any]] = {}

    @property
    def state_bytes(self) -> int:
        """What the caches of the running sequences take."""
        return sum(self.state_bytes_on.values())

    @property
    def state_bytes_on(self) -> Mapping[torch.device, int]:
        """The same, by the device that they lie on."""
        tensors = {id(t): t for t in _tensors(list(self._states.values()))}
        found = Counter[torch.device]()
        for tensor in tensors.values():
            found[tensor.device] += tensor.nbytes
        return found

    def reserve(self, blocks: int) -> None:
        """Caches grow by themselves; the scheduler counts blocks that are none."""

    def copy(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Nothing is shared, so nothing is copied."""

    def logits(self, segments: Sequence[Segment], ids: Tensor | None = None) -> Tensor:
        if ids is None:
            tokens = [torch.tensor(s.ids, device=self._device) for s in segments]
        else:
            tokens = [ids[row : row + 1] for row in range(len(segments))]
        return torch.cat(list(map(self._advance, segments, tokens)))

    def drop(self, sequence: int) -> None:
        self._states.pop(sequence, None)

    def close(self) -> None:
        self._states.clear()

    def _advance(self, segment: Segment, ids: Tensor) -> Tensor:
        model: Any = self._model
        tokens = ids[None]
        first = segment.start == 0
        state = self._fresh_state(tokens) if first else self._states[segment.sequence]
        inputs = model.prepare_inputs_for_generation(tokens, is_first_iteration=first, **state)
        output = model(**inputs, return_dict=True)
        self._states[segment.sequence] = model._update_model_kwargs_for_generation(output, state)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _fresh_state(self, tokens: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "use_cache": True}
        model: Any = self._model
        if model._supports_default_dynamic_cache():
            name = "cache_params" if "cache_params" in self._accepted else "past_key_values"
            state[name] = DynamicCache(config=self._model.config)
        if "logits_to_keep" in self._accepted:
            state["logits_to_keep"] = 1
        return state


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors that a cache holds, in whatever way it holds them."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith("transformers"):
        yield from _tensors(vars(value), seen)
