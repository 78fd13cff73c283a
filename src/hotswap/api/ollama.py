"""Ollama's API: JSON objects to `GenerationRequest`, `EmbeddingRequest` and orders.

As with OpenAI's, unknown fields and options are ignored, ``null`` is unset, and a field that we
know and cannot honour is refused by name. ``:latest`` at the end of a model's name, which
Ollama's clients write, means nothing here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hotswap.api.dialect import Call, Stamp
from hotswap.api.fields import (
    INT32_MAX,
    Duration,
    Penalty,
    Probability,
    Seconds,
    StopString,
    decode,
    duration_s,
)
from hotswap.api.guides import ANY_OBJECT, schema_guide
from hotswap.api.ollama_answers import (
    NDJSON,
    ChatDocument,
    ChatFrames,
    GenerateDocument,
    GenerateFrames,
    chat_end,
    embed_body,
    embeddings_body,
    generate_end,
)
from hotswap.api.tools import DeclaredTool, ToolName, tool_mappings
from hotswap.contracts import (
    ChatPrompt,
    EmbeddingRequest,
    Embeddings,
    GenerationRequest,
    Guide,
    Prompt,
    SamplingParams,
    TextPrompt,
)
from hotswap.errors import InvalidRequest

MAX_INPUTS = 2048
_LEVELS = ("low", "medium", "high")
JsonWord = Annotated[str, Meta(extra_json_schema={"enum": ["json", ""]})]
Level = Annotated[str, Meta(extra_json_schema={"enum": list(_LEVELS)})]
NoImages = Annotated[list[Any], Meta(extra_json_schema={"maxItems": 0})]
"""Only described by their types: they are refused in words that help."""


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


class Kept(Named, kw_only=True):
    keep_alive: Seconds | Duration | None = None

    def keep_alive_s(self) -> float | None:
        return None if self.keep_alive is None else duration_s(self.keep_alive, "keep_alive")


class Options(Struct, kw_only=True):
    """Those that say how an answer is drawn; the others are about another engine."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Meta(ge=-1, le=2**63 - 1)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=INT32_MAX)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def sampling(self) -> SamplingParams:
        if self.top_p == 0:
            raise InvalidRequest("options.top_p: must be above 0", param="options.top_p")
        return SamplingParams(
            temperature=self.temperature,
            top_k=0 if self.top_k == -1 else self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=None if self.seed == -1 else self.seed,
        )

    def max_tokens(self) -> int | None:
        """-1 is without end and -2 to the end of the context, which comes to the same."""
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Common(Kept, kw_only=True):
    """The fields that the two routes share."""

    stream: bool | None = None
    format: JsonWord | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Level | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    def request(self, prompt: Prompt) -> GenerationRequest:
        options = self.options or Options()
        return GenerationRequest(
            prompts=(prompt,),
            model=self.model_name(),
            sampling=options.sampling(),
            max_tokens=options.max_tokens(),
            cut_to_context=True,
            stop=options.stops(),
            logprobs=self._logprobs(),
            guide=self._guide(),
            keep_alive_s=self.keep_alive_s(),
        )

    def chat_prompt(self, **fields: Any) -> ChatPrompt:
        if self.think is None:
            return ChatPrompt(**fields)
        if isinstance(self.think, str) and self.think not in _LEVELS:
            raise InvalidRequest(
                f"think: must be true, false or one of {', '.join(_LEVELS)}", param="think"
            )
        effort = self.think if isinstance(self.think, str) else None
        return ChatPrompt(
            **fields,
            reasoning_effort="none" if self.think is False else effort,
            template_kwargs={"enable_thinking": self.think is not False},
        )

    def _logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
        return None

    def _guide(self) -> Guide | None:
        if self.format is None or self.format == "":
            return None
        if self.format == "json":
            return schema_guide(ANY_OBJECT, "format")
        if isinstance(self.format, str):
            raise InvalidRequest('format: must be "json" or a JSON schema', param="format")
        return schema_guide(self.format, "format")


class OllamaCalledFunction(Struct):
    name: str
    arguments: dict[str, Any] | None = None


class OllamaToolCall(Struct):
    function: OllamaCalledFunction
    id: str | None = None


class OllamaMessage(Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: NoImages | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(Struct):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """As much of it as we look at."""

    function: Function


class Tools(Struct):
    tools: Annotated[list[Tool], Meta(max_length=1024)] | None = None


SomeTools = Annotated[
    list[dict[str, Any]],
    Meta(
        extra_json_schema={
            "items": {
                "type": "object",
                "required": ["function"],
                "properties": {
                    "function": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}},
                    }
                },
            },
            "maxItems": 1024,
        }
    ),
]
"""Kept whole for the template; `Tools` checks what this describes."""


class OllamaChat(Common, kw_only=True):
    messages: list[OllamaMessage] | None = None
    """None of them: see `chat_presence`."""
    tools: SomeTools | None = None


class OllamaGenerate(Common, kw_only=True):
    prompt: str | None = None
    """Empty: see `generate_presence`."""
    system: str | None = None
    raw: bool | None = None


class OllamaEmbed(Kept, kw_only=True):
    input: str | Annotated[list[str], Meta(max_length=MAX_INPUTS)]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1, le=INT32_MAX)] | None = None


class OllamaOldEmbed(Kept, kw_only=True):
    prompt: str


class PullOrder(Named, kw_only=True):
    stream: bool | None = None


_NOT_HONOURED = (
    "suffix",
    "template",
    "context",
    "images",
    "width",
    "height",
    "steps",
)
"""Fields of ``/api/generate`` that may be null or empty only."""


def chat_presence(fields: dict[str, Any]) -> Presence | None:
    """What a body of ``/api/chat`` without messages asks for; None: it has some.

    Raises:
        InvalidRequest: names the field.
    """
    return None if fields.get("messages") else _presence(decode(fields, OllamaChat), chat_end)


def generate_presence(fields: dict[str, Any]) -> Presence | None:
    """As `chat_presence`, of ``/api/generate`` without a prompt."""
    if fields.get("prompt"):
        return None
    _refuse_not_honoured(fields)
    return _presence(decode(fields, OllamaGenerate), generate_end)


def _presence(kept: Kept, body: Callable[[Stamp, str, str], bytes]) -> Presence:
    return Presence(model=kept.model_name(), keep_alive_s=kept.keep_alive_s(), body=body)


def parse_chat(fields: dict[str, Any]) -> Call:
    """A body of ``/api/chat``.

    Raises:
        InvalidRequest: names the field.
    """
    chat = decode(fields, OllamaChat)
    if not chat.messages:
        raise InvalidRequest("messages: required, but missing", param="messages")
    declared_tools = decode(fields, Tools).tools or ()
    prompt = chat.chat_prompt(
        messages=_messages(chat.messages),
        tools=tool_mappings(_declared(declared_tools)),
        continue_final_message=_continues(chat.messages[-1]),
    )
    return Call(
        request=chat.request(prompt),
        stream=chat.stream is not False,
        frames=ChatFrames,
        document=ChatDocument,
        media_type=NDJSON,
    )


def _declared(tools: Iterable[Tool]) -> Iterator[DeclaredTool]:
    for position, tool in enumerate(tools):
        param = f"tools[{position}].function"
        yield DeclaredTool(
            name=tool.function.name,
            description=tool.function.description,
            parameters=tool.function.parameters,
            strict=None,
            param=param,
            parameters_param=f"{param}.parameters",
        )


def parse_generate(fields: dict[str, Any]) -> Call:
    """A body of ``/api/generate``.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_not_honoured(fields)
    generate = decode(fields, OllamaGenerate)
    if not generate.prompt:
        raise InvalidRequest("prompt: required, but missing", param="prompt")
    return Call(
        request=generate.request(_prompt(generate, generate.prompt)),
        stream=generate.stream is not False,
        frames=GenerateFrames,
        document=GenerateDocument,
        media_type=NDJSON,
    )


def parse_embed(fields: dict[str, Any]) -> EmbedCall:
    """A body of ``/api/embed``.

    Raises:
        InvalidRequest: names the field.
    """
    embed = decode(fields, OllamaEmbed)
    inputs = [embed.input] if isinstance(embed.input, str) else embed.input
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


def _refuse_not_honoured(fields: Mapping[str, Any]) -> None:
    for name in _NOT_HONOURED:
        if fields.get(name) not in (None, "", [], 0):
            raise InvalidRequest(f"{name}: not supported", param=name)


def _prompt(generate: OllamaGenerate, text: str) -> Prompt:
    if generate.raw:
        if generate.system:
            raise InvalidRequest("system: not together with raw", param="system")
        return TextPrompt(text)
    system = {"role": "system", "content": generate.system}
    user = {"role": "user", "content": text}
    return generate.chat_prompt(messages=(system, user) if generate.system else (user,))


def _continues(last: OllamaMessage) -> bool:
    """Whether the answer goes on where the last message ends."""
    return last.role == "assistant" and bool(last.content) and not last.tool_calls


def _messages(messages: list[OllamaMessage]) -> tuple[dict[str, Any], ...]:
    return tuple(map(_Translation().message, range(len(messages)), messages))


class _Translation:
    """Messages as OpenAI has them. Ollama's calls need no ids: who answers one says its tool's
    name, or comes in the order of the calls."""

    def __init__(self) -> None:
        self._calls = 0
        self._unanswered: deque[tuple[str, str]] = deque()
        """Id and tool."""

    def message(self, position: int, message: OllamaMessage) -> dict[str, Any]:
        if message.images:
            param = f"messages[{position}].images"
            raise InvalidRequest(f"{param}: not supported by this model", param=param)
        translated: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            translated["reasoning_content"] = message.thinking
        if message.tool_calls:
            translated["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.role == "tool":
            translated |= self._answered(message)
        return translated

    def _call(self, call: OllamaToolCall) -> dict[str, Any]:
        id = call.id or f"call_{self._calls}"
        self._calls += 1
        self._unanswered.append((id, call.function.name))
        arguments = msgspec.json.encode(call.function.arguments or {}).decode()
        function = {"name": call.function.name, "arguments": arguments}
        return {"id": id, "type": "function", "function": function}

    def _answered(self, message: OllamaMessage) -> dict[str, str]:
        """Which call a tool's message answers, as far as that can be told."""
        for known in self._unanswered:
            id, name = known
            wanted = message.tool_call_id or id, message.tool_name or name
            if wanted == known:
                self._unanswered.remove(known)
                return {"tool_call_id": id, "name": name}
        told = {"tool_call_id": message.tool_call_id, "name": message.tool_name}
        return {key: value for key, value in told.items() if value}
