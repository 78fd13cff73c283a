"""Requests on their way to token ids, and token ids back to text, beside the event loop."""

from __future__ import annotations

from collections.abc import Sequence

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import EmbeddingRequest, GenerationRequest
from hotswap.engine.embedding.rendering import EmbeddingRenderer, RenderedEmbedding
from hotswap.engine.front import Front
from hotswap.engine.places import Places
from hotswap.engine.text import PromptRenderer, RenderedRequest, text_of
from hotswap.errors import InvalidRequest

_RENDERINGS = 4
"""Requests that are rendered at the same time. They have threads of their own, so that those for
the model on the device never wait for a cold tokenizer. Those that are only counted come one after
the other beside them: they may be far longer than any model takes."""


class Prompts:
    """Rendered on threads of their own."""

    def __init__(self) -> None:
        self._rendering = Places(_RENDERINGS, "hotswap-rendering")
        self._counting = Places(1, "hotswap-counting")

    def close(self) -> None:
        """Nothing more is begun."""
        self._rendering.close()
        self._counting.close()

    async def render(
        self, spec: ModelSpec, front: Front, longest: int | None, request: GenerationRequest
    ) -> RenderedRequest:
        """See `hotswap.contracts.engines.EngineRegistry.render`.

        Args:
            longest: context that there is memory for, where that is less than the model takes.
        """
        if front.recipe is not None:
            raise InvalidRequest(f"{spec.id!r} is an embedding model.", param="model")
        renderer = PromptRenderer(spec.id, front, spec.sampling, longest)
        return await self._places(request).call(renderer.render, request)

    async def render_embedding(
        self, spec: ModelSpec, front: Front, request: EmbeddingRequest
    ) -> RenderedEmbedding:
        """See `hotswap.contracts.engines.EngineRegistry.render_embedding`."""
        if front.recipe is None:
            raise InvalidRequest(f"{spec.id!r} is not an embedding model.", param="model")
        renderer = EmbeddingRenderer(spec.id, front, front.recipe)
        return await self._places(request).call(renderer.render, request)

    async def detokenize(self, front: Front, ids: Sequence[int]) -> str:
        """See `hotswap.contracts.engines.EngineRegistry.detokenize`."""
        return await self._rendering.call(text_of, front, ids)

    def _places(self, request: GenerationRequest | EmbeddingRequest) -> Places:
        return self._counting if request.counted else self._rendering
