"""What Ollama's routes are asked for besides answers: that a model is there or goes, vectors, a
download. JSON objects to values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct

from hotswap.api.dialect import Stamp
from hotswap.api.fields import INT32_MAX, Duration, Seconds, decode, duration_s
from hotswap.api.ollama_answers import embed_body, embeddings_body
from hotswap.contracts.answers import Embeddings
from hotswap.contracts.requests import EmbeddingRequest, TextPrompt
from hotswap.errors import InvalidRequest

MAX_INPUTS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A request without a prompt: its model is to be there, or to go."""

    model: str | None
    keep_alive_s: float | None
    body: Callable[[Stamp, str, str], bytes]
    """Takes the stamp, the model's id and the reason why the answer ends."""

    @property
    def leaves(self) -> bool:
        return self.keep_alive_s == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedCall:
    request: EmbeddingRequest
    body: Callable[[Stamp, Embeddings], bytes]


@dataclass(frozen=True, slots=True)
class Pull:
    model: str
    stream: bool


class Named(Struct, kw_only=True):
    model: str | None = None
    name: str | None = None
    """What ``model`` was called once."""

    def model_name(self) -> str | None:
        return (self.model or self.name or "").removesuffix(":latest") or None

    def required_name(self) -> str:
        name = self.model_name()
        if name is None:
            raise InvalidRequest("model: required, but missing", param="model")
        return name


class Staying(Named, kw_only=True):
    """A model, and how long it stays, idle, afterwards."""

    keep_alive: Seconds | Duration | None = None

    def keep_alive_s(self) -> float | None:
        return None if self.keep_alive is None else duration_s(self.keep_alive, "keep_alive")

    def presence(self, body: Callable[[Stamp, str, str], bytes]) -> Presence:
        """What it asks for without a prompt; ``body`` as there."""
        return Presence(model=self.model_name(), keep_alive_s=self.keep_alive_s(), body=body)


class OllamaEmbed(Staying, kw_only=True):
    input: str | Annotated[list[str], Meta(max_length=MAX_INPUTS)] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None


class OllamaOldEmbed(Staying, kw_only=True):
    prompt: str | None = None


class PullOrder(Named, kw_only=True):
    stream: bool | None = None


def parse_embed(fields: dict[str, Any]) -> EmbedCall:
    """A body of ``/api/embed``.

    Raises:
        InvalidRequest: names the field.
    """
    embed = decode(fields, OllamaEmbed)
    texts = embed.input or []
    inputs = [texts] if isinstance(texts, str) else texts
    request = EmbeddingRequest(
        prompts=tuple(map(TextPrompt, inputs)),
        model=embed.model_name(),
        dimensions=embed.dimensions,
        truncate=embed.truncate is not False,
        keep_alive_s=embed.keep_alive_s(),
    )
    return EmbedCall(request=request, body=embed_body)


def parse_embeddings(fields: dict[str, Any]) -> EmbedCall:
    """A body of ``/api/embeddings``, which came before ``/api/embed``.

    Raises:
        InvalidRequest: names the field.
    """
    embed = decode(fields, OllamaOldEmbed)
    request = EmbeddingRequest(
        prompts=(TextPrompt(embed.prompt),) if embed.prompt else (),
        model=embed.model_name(),
        truncate=True,
        keep_alive_s=embed.keep_alive_s(),
    )
    return EmbedCall(request=request, body=embeddings_body)


def parse_name(fields: dict[str, Any]) -> str:
    """The model that a body names.

    Raises:
        InvalidRequest: none.
    """
    return decode(fields, Named).required_name()


def parse_pull(fields: dict[str, Any]) -> Pull:
    """A body of ``/api/pull``.

    Raises:
        InvalidRequest: names the field.
    """
    order = decode(fields, PullOrder)
    return Pull(order.required_name(), stream=order.stream is not False)
