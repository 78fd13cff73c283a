"""A running embedding engine for tests, and what one asks of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotswap.contracts.answers import Embeddings
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import EmbeddingRequest, TextPrompt, TokenPrompt
from tests.engine.serving import ignore, spec_of

if TYPE_CHECKING:  # torch: not in the fast run
    from hotswap.engine.embedding.engine import EmbeddingEngine
    from hotswap.engine.registry import TorchEngineRegistry


@dataclass(slots=True)
class Embedding:
    registry: TorchEngineRegistry
    spec: ModelSpec
    engine: EmbeddingEngine

    async def ask(self, *texts: str | Sequence[int], **fields: Any) -> Embeddings:
        rendered = await self.registry.render_embedding(self.spec, request(*texts, **fields))
        return await self.engine.embed(rendered)

    async def ids(self, *texts: str, **fields: Any) -> list[tuple[int, ...]]:
        request_ = request(*texts, **fields)
        return list((await self.registry.render_embedding(self.spec, request_)).token_ids)


def request(*texts: str | Sequence[int], **fields: Any) -> EmbeddingRequest:
    prompts = tuple(
        TextPrompt(text) if isinstance(text, str) else TokenPrompt(tuple(text)) for text in texts
    )
    return EmbeddingRequest(prompts=prompts, **fields)


def embedding_spec(path: Path, **engine: Any) -> ModelSpec:
    return replace(spec_of(path, **engine), task="embed")


@asynccontextmanager
async def embedding(path: Path, **engine: Any) -> AsyncIterator[Embedding]:
    from hotswap.engine.registry import TorchEngineRegistry

    spec = embedding_spec(path, **engine)
    async with TorchEngineRegistry() as registry:
        prepared = await registry.prepare(spec, ignore)
        async with registry.start(prepared, ignore, ignore) as engine_:
            yield Embedding(registry, spec, engine_)


def rows(found: Embeddings) -> Any:
    """float32 [texts, dimensions]."""
    import torch

    return torch.tensor([list(vector) for vector in found.vectors])
