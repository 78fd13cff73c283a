"""Ollama's routes that tell about models: version, tags, ps and show; and what is refused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hotswap import __version__
from hotswap.api.body import read_object
from hotswap.api.documents import json_response
from hotswap.api.ollama_answers import timestamp
from hotswap.api.ollama_orders import parse_name
from hotswap.contracts.listing import ModelDescription, ModelListing
from hotswap.contracts.models import ChatFacts, ModelFacts, ModelSpec, Task
from hotswap.contracts.requests import SamplingParams
from hotswap.contracts.service import ModelService
from hotswap.contracts.snapshot import SwapSnapshot
from hotswap.errors import ModelNotFound, NotPermitted

OLLAMA_VERSION = "0.12.11"
"""The version whose API this is: clients ask for it, and some refuse older ones."""
_FORMATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NEVER_S = 100 * 365 * 86400.0
"""Clients expect a date also where a model is never let go."""


class OllamaModels:
    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def version(self, _: Request) -> Response:
        """``/api/version``."""
        return json_response({"version": OLLAMA_VERSION, "hotswap": __version__})

    async def tags(self, _: Request) -> Response:
        """``/api/tags``: what a request may name."""
        return json_response({"models": [_tag(one) for one in await self._service.models()]})

    async def running(self, _: Request) -> Response:
        """``/api/ps``: the model on the device."""
        snapshot = self._service.snapshot()
        resident = snapshot.resident
        running = [] if resident is None else [_running(resident, snapshot)]
        return json_response({"models": running})

    async def show(self, request: Request) -> Response:
        """``/api/show``."""
        name = await read_object(request.receive, request.scope, parse_name)
        with naming(name):
            return json_response(_description(await self._service.describe(name)))


async def refuse_changes(_: Request) -> Response:
    """For the routes that change what models there are."""
    raise NotPermitted(
        "Models are not created, copied, pushed or deleted through this API: "
        "they are directories on the server's disk."
    )


@contextmanager
def naming(model: str | None) -> Iterator[None]:
    """A model that is not there is told in the words that Ollama's clients look for."""
    try:
        yield
    except ModelNotFound as error:
        if not model:
            raise
        told = f"model {model[:200]!r} not found"
        raise ModelNotFound(f"{told}." if error.hint else told, hint=error.hint) from None


def digest(model: str) -> str:
    """What tells a model from others, in the shape of a SHA-256: its name, not its weights, which
    take minutes to read."""
    return hashlib.sha256(model.encode(errors="replace")).hexdigest()


def _tag(model: ModelListing | ModelSpec) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": timestamp(model.created_unix),
        "size": model.facts.weights_bytes,
        "digest": digest(model.id),
        "details": _details(model.facts),
    }


def _details(facts: ModelFacts) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": facts.family,
        "families": [facts.family] if facts.family else [],
        "parameter_size": _in_short(facts.parameters),
        "quantization_level": facts.quantization.upper() or _FORMATS.get(facts.dtype, ""),
    }


def _in_short(parameters: int) -> str:
    """ "1.7B", "596.0M"; empty where it is not known."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters or "")


def _running(resident: ModelSpec, snapshot: SwapSnapshot) -> dict[str, Any]:
    engine = snapshot.engine.details if snapshot.engine is not None else {}
    size = engine.get("weights_bytes", resident.facts.weights_bytes)
    on_device = str(engine.get("device", "")).startswith("cuda")
    left_s = _NEVER_S if snapshot.expires_in_s is None else min(snapshot.expires_in_s, _NEVER_S)
    running = {key: value for key, value in _tag(resident).items() if key != "modified_at"}
    return {
        **running,
        "size": size,
        "size_vram": size if on_device else 0,
        "expires_at": timestamp(time.time() + left_s),
        "context_length": engine.get("max_model_len", resident.max_position_embeddings),
    }


def _description(description: ModelDescription) -> dict[str, Any]:
    listing, facts = description.listing, description.listing.facts
    family = facts.family or "unknown"
    info: dict[str, Any] = {"general.architecture": family, "general.basename": listing.id}
    if facts.parameters:
        info["general.parameter_count"] = facts.parameters
    if listing.max_model_len is not None:
        info[f"{family}.context_length"] = listing.max_model_len
    return {
        "modelfile": f"FROM {listing.id}\n",
        "parameters": _parameters(description.sampling),
        "template": description.chat.template or "",
        "modified_at": timestamp(listing.created_unix),
        "details": _details(facts),
        "model_info": info,
        "capabilities": _capabilities(listing.task, description.chat),
    }


def _parameters(sampling: SamplingParams) -> str:
    """As a model file has them: a name and a value in each line."""
    named = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
    }
    return "\n".join(f"{name} {value:g}" for name, value in named.items() if value is not None)


def _capabilities(task: Task, chat: ChatFacts) -> list[str]:
    if task == "embed":
        return ["embedding"]
    chats = {"tools": chat.tools, "thinking": chat.thinking}
    return ["completion", *(name for name, there in chats.items() if there)]
