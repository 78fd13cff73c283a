"""The table of routes.

A new route is a row, and `/openapi.json` has it from there: `request` is the type that its body is
decoded into (or several), `answer` the type that describes what it writes; an answer without a
type is some object. tests/api/test_openapi.py makes requests for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.middleware import Middleware

from hotswap.api import anthropic, ollama, ollama_orders, responses
from hotswap.api.admin import (
    SLEEP_LEVELS,
    SLEEP_MODES,
    WAKE_TAGS,
    LoadBody,
    ManagementRoutes,
    ModelEvents,
    NamedModel,
    SleepOrder,
    UnloadOrder,
    WakeOrder,
)
from hotswap.api.counting import TokenCount
from hotswap.api.dialect import EVENT_STREAM
from hotswap.api.embeddings import EmbeddingBody, EmbeddingEndpoint, EmbeddingsAnswer
from hotswap.api.endpoint import GenerationEndpoint
from hotswap.api.gate import Management
from hotswap.api.listing import PAGING, ListingRoutes
from hotswap.api.metrics import MEDIA_TYPE, MetricsRoute
from hotswap.api.ollama_answers import NDJSON
from hotswap.api.ollama_endpoints import EmbedEndpoint, OllamaEndpoint, PullEndpoint
from hotswap.api.ollama_models import OllamaModels, refuse_changes
from hotswap.api.openai import Chat, Completion, parse_chat, parse_completion
from hotswap.api.openai_shapes import ChatAnswer, CompletionAnswer
from hotswap.api.openapi import Operation
from hotswap.api.pace import Pace
from hotswap.api.query import TRUTH
from hotswap.api.responses_routes import KeptResponses
from hotswap.api.responses_store import ResponseStore
from hotswap.api.status import HealthSource, StatusRoutes
from hotswap.api.tokens import (
    Detokenize,
    DetokenizeAnswer,
    TokenizeAnswer,
    TokenizeChat,
    TokenizeText,
    TokenRoutes,
)
from hotswap.api.traffic import Traffic
from hotswap.config import ServerConfig
from hotswap.contracts.service import ModelService

Rows = list[Operation]
_CHANGES = ("create", "copy", "push")
_SHOW_LOADING: dict[str, tuple[str, ...]] = {"show_loading": ()}


def operations_of(
    service: ModelService, server: ServerConfig, health: HealthSource, traffic: Traffic
) -> Rows:
    """All that is served."""
    shared: dict[str, Any] = {"keepalive_s": server.keepalive_s, "pace": Pace(), "traffic": traffic}
    endpoint = partial(GenerationEndpoint, service, **shared)
    managed = server.dev_mode or server.admin_key
    # One after the other is tried, so those that answer in microseconds come first.
    return [
        *_listing(service),
        *_openai(service, endpoint),
        *_responses(service, endpoint),
        *_anthropic(service, endpoint),
        *_ollama(service, server, partial(OllamaEndpoint, service, **shared)),
        *_ollama_models(service),
        *_status(service, health, traffic),
        *(_management(service, server) if managed else ()),
    ]


def _responses(service: ModelService, endpoint: Any) -> Rows:
    store = ResponseStore()
    kept = KeptResponses(store)
    respond = endpoint(partial(responses.parse_response, store=store))
    counted = partial(responses.parse_count, store=store)
    count = TokenCount(service, counted, object="response.input_tokens")
    one, items = "/v1/responses/{name}", "/v1/responses/{name}/input_items"
    return [
        Operation(
            "POST",
            "/v1/responses",
            respond,
            "Answer, and keep the answer.",
            request=responses.ResponseBody,
            stream=EVENT_STREAM,
        ),
        Operation(
            "POST",
            "/v1/responses/input_tokens",
            count,
            "Count the tokens of an input.",
            request=responses.ResponseInput,
        ),
        Operation("GET", one, kept.one, "Look at an answer that is kept."),
        Operation("DELETE", one, kept.delete, "Forget an answer."),
        Operation("GET", items, kept.input_items, "List what an answer was given for."),
    ]


def _anthropic(service: ModelService, endpoint: Any) -> Rows:
    return [
        Operation(
            "POST",
            "/v1/messages",
            endpoint(anthropic.parse_messages),
            "Answer messages.",
            request=anthropic.MessagesBody,
            stream=EVENT_STREAM,
        ),
        Operation(
            "POST",
            "/v1/messages/count_tokens",
            TokenCount(service, anthropic.parse_count),
            "Count the tokens of messages.",
            request=anthropic.MessagesInput,
        ),
    ]


def _openai(service: ModelService, endpoint: Any) -> Rows:
    tokens = TokenRoutes(service)
    return [
        Operation(
            "POST",
            "/v1/chat/completions",
            endpoint(parse_chat),
            "Answer a chat.",
            request=Chat,
            answer=ChatAnswer,
            stream=EVENT_STREAM,
            query=_SHOW_LOADING,
        ),
        Operation(
            "POST",
            "/v1/completions",
            endpoint(parse_completion),
            "Continue a text.",
            request=Completion,
            answer=CompletionAnswer,
            stream=EVENT_STREAM,
            query=_SHOW_LOADING,
        ),
        Operation(
            "POST",
            "/v1/embeddings",
            EmbeddingEndpoint(service),
            "Turn texts into vectors.",
            request=EmbeddingBody,
            answer=EmbeddingsAnswer,
        ),
        Operation(
            "POST",
            "/tokenize",
            tokens.tokenize,
            "Tell the tokens of a prompt.",
            request=(TokenizeText, TokenizeChat),
            answer=TokenizeAnswer,
        ),
        Operation(
            "POST",
            "/detokenize",
            tokens.detokenize,
            "Tell the text of tokens.",
            request=Detokenize,
            answer=DetokenizeAnswer,
        ),
    ]


def _ollama(service: ModelService, server: ServerConfig, prompted: Any) -> Rows:
    chat = prompted(ollama.parse_chat, ollama.chat_presence)
    generate = prompted(ollama.parse_generate, ollama.generate_presence)
    embed = EmbedEndpoint(service, ollama_orders.parse_embed)
    embeddings = EmbedEndpoint(service, ollama_orders.parse_embeddings)
    pull = PullEndpoint(service, keepalive_s=server.keepalive_s)
    post = partial(Operation, "POST")
    lines = partial(post, stream=NDJSON)
    return [
        lines("/api/chat", chat, "Answer a chat.", request=ollama.OllamaChat),
        lines("/api/generate", generate, "Continue a text.", request=ollama.OllamaGenerate),
        post("/api/embed", embed, "Turn texts into vectors.", request=ollama_orders.OllamaEmbed),
        post(
            "/api/embeddings",
            embeddings,
            "Turn a text into a vector.",
            request=ollama_orders.OllamaOldEmbed,
        ),
        lines("/api/pull", pull, "Bring a model to the disk.", request=ollama_orders.PullOrder),
    ]


def _ollama_models(service: ModelService) -> Rows:
    models = OllamaModels(service)
    refused = "Refused: models are directories on the server's disk."
    blob = "/api/blobs/{digest}"
    return [
        Operation("GET", "/api/version", models.version, "Tell the version."),
        Operation("GET", "/api/tags", models.tags, "List the models."),
        Operation("GET", "/api/ps", models.running, "Name the model on the device."),
        Operation(
            "POST", "/api/show", models.show, "Describe a model.", request=ollama_orders.Named
        ),
        Operation("DELETE", "/api/delete", refuse_changes, refused),
        *(Operation("POST", f"/api/{verb}", refuse_changes, refused) for verb in _CHANGES),
        Operation("HEAD", blob, refuse_changes, refused),
        Operation("POST", blob, refuse_changes, refused),
    ]


def _listing(service: ModelService) -> Rows:
    listing = ListingRoutes(service)
    return [
        Operation(
            "GET",
            "/v1/models",
            listing.all,
            "List the models.",
            query=dict.fromkeys(PAGING, ()),
        ),
        Operation("GET", "/models", listing.all, "List the models."),
        Operation("GET", "/v1/models/{name:path}", listing.one, "Describe one model."),
    ]


def _status(service: ModelService, health: HealthSource, traffic: Traffic) -> Rows:
    status = StatusRoutes(service, health)
    metrics = MetricsRoute(service, traffic).metrics
    return [
        Operation("GET", "/health", status.ready, "Say whether a request would be served."),
        Operation("GET", "/livez", status.live, "Say that the process lives."),
        Operation("GET", "/readyz", status.ready, "Say whether a request would be served."),
        Operation("GET", "/", status.about, "Name the server."),
        Operation("GET", "/version", status.version, "Tell the version."),
        Operation("GET", "/status", status.status, "Tell everything about the server's state."),
        Operation("GET", "/metrics", metrics, "Measure.", answer=None, media_type=MEDIA_TYPE),
    ]


def _management(service: ModelService, server: ServerConfig) -> Rows:
    management = ManagementRoutes(service)
    events = ModelEvents(service, keepalive_s=server.keepalive_s)
    guard = [Middleware(Management, dev_mode=server.dev_mode)]
    operation = partial(Operation, middleware=guard)
    return [
        operation(
            "POST",
            "/v1/load_model",
            management.load_model,
            "Load a model, with settings.",
            request=LoadBody,
            body_required=False,
            query={"dry_run": tuple(TRUTH)},
        ),
        operation(
            "POST",
            "/v1/unload_model",
            management.unload_model,
            "Unload the model.",
            request=UnloadOrder,
            body_required=False,
        ),
        operation(
            "POST",
            "/models/load",
            management.request_load,
            "Begin to load a model.",
            request=NamedModel,
        ),
        operation(
            "POST",
            "/models/unload",
            management.request_unload,
            "Unload a model, or call off its load.",
            request=NamedModel,
        ),
        operation(
            "GET",
            "/models/sse",
            events,
            "Follow what happens to the models.",
            answer=None,
            media_type=EVENT_STREAM,
        ),
        operation(
            "POST",
            "/sleep",
            management.sleep,
            "Take the model off the device for a while.",
            request=SleepOrder,
            body_required=False,
            query={"level": tuple(SLEEP_LEVELS), "mode": tuple(SLEEP_MODES)},
        ),
        operation(
            "POST",
            "/wake_up",
            management.wake_up,
            "Bring it back.",
            request=WakeOrder,
            body_required=False,
            answer=None,
            query={"tags": WAKE_TAGS},
        ),
        operation("GET", "/is_sleeping", management.is_sleeping, "Say whether a model sleeps."),
    ]
