"""An embedding model on the device: put there, made into an engine, taken off again."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hotswap.engine import device as devices
from hotswap.engine.embedding.encoder import Encoder
from hotswap.engine.embedding.engine import EmbeddingEngine
from hotswap.engine.prepared import TorchPrepared
from hotswap.engine.stage import as_ours
from hotswap.engine.weights import Known, Verdict
from hotswap.errors import CheckpointRefused, HotswapError

_BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
"""Computed together. On two cores more rows are not faster; on a GPU it has not been measured."""
_TRIED_TOKENS = 8
"""Of the text that shows whether a model computes."""


class EmbeddingStage:
    """As `hotswap.engine.stage.Stage`: `enter` and `leave` run on the device thread, `build` on the
    event loop between them."""

    def __init__(self, prepared: TorchPrepared, device: torch.device) -> None:
        self.prepared = prepared
        self._device = device
        self._encoder: Encoder | None = None
        self._moved: list[torch.Tensor] = []
        self._warm_up_s = 0.0

    def enter(self) -> None:
        """Put the model on the device, and see that it computes.

        Raises:
            CheckpointRefused: it does not.
            InsufficientMemory, DeviceLost
        """
        weights = self.prepared.weights
        try:
            devices.use_threads_for(weights.bytes)
            assert isinstance(weights.content, Encoder)
            self._encoder = self._placed(weights.content)
            begun = time.monotonic()
            if weights.known is None:
                self._try_out(self._encoder)
            self._warm_up_s = time.monotonic() - begun
        except HotswapError:
            raise
        except Exception as error:  # whatever a model's forward can raise
            raise as_ours(error, self.prepared.spec.id) from None
        weights.known = Known(Verdict("encoder", token_bytes=0, fixed_bytes=0), None, None)

    def _try_out(self, encoder: Encoder) -> None:
        """Raises: CheckpointRefused."""
        recipe = self.prepared.front.recipe
        assert recipe is not None
        vocab, tokens = self.prepared.front.vocab_size, self.prepared.front.max_model_len
        vectors = encoder([[i % vocab for i in range(min(_TRIED_TOKENS, tokens))]])
        if vectors.shape != (1, recipe.dimensions) or not bool(torch.isfinite(vectors).all()):
            name = self.prepared.spec.id
            raise CheckpointRefused(f"{name!r} loads but does not compute.")

    def _placed(self, encoder: Encoder) -> Encoder:
        """On the CPU the host copy itself."""
        if self._device.type == "cpu":
            return encoder
        # deepcopy takes what `memo` holds for a tensor, so only the modules around them are copied.
        memo: dict[int, Any] = {}
        for tensor in (*encoder.parameters(), *encoder.buffers()):
            moved = tensor.data.to(self._device)
            self._moved.append(moved)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(moved, requires_grad=False) if is_parameter else moved
        return copy.deepcopy(encoder, memo)

    def build(self, generation: int, changed: Callable[[], None]) -> EmbeddingEngine:
        """An engine of what `enter` put in place."""
        front, weights = self.prepared.front, self.prepared.weights
        assert self._encoder is not None
        assert front.recipe is not None
        batch_tokens = _BATCH_TOKENS[self._device.type]
        return EmbeddingEngine(
            generation=generation,
            model=self.prepared.spec.id,
            max_model_len=front.max_model_len,
            encoder=self._encoder,
            batch_tokens=batch_tokens,
            details={
                "task": "embed",
                "dimensions": front.recipe.dimensions,
                "pooling": "+".join(front.recipe.pooling),
                "device": str(self._device),
                "dtype": weights.dtype,
                "max_model_len": front.max_model_len,
                "batch_tokens": batch_tokens,
                "weights_bytes": weights.bytes,
                "warm_up_s": self._warm_up_s,
            },
            changed=changed,
        )

    def leave(self, *, room: int | None) -> None:  # noqa: ARG002
        """Free the device, also after an `enter` that failed half way. Nothing is remembered of
        texts, so nothing rests."""
        self._encoder = None
        for tensor in self._moved:
            tensor.untyped_storage().resize_(0)  # even where a stray reference to it lives
        self._moved.clear()
        devices.release_cached(self._device)
