"""Ollama's chats and prompts: JSON objects to `GenerationRequest`.

As with OpenAI's, unknown fields and options are ignored, ``null`` is unset, and a field that we
know and cannot honour is refused by name. ``:latest`` at the end of a model's name, which
Ollama's clients write, means nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from hotswap.api.dialect import Call
from hotswap.api.fields import INT32_MAX, Penalty, Probability, Seed, StopString, decode
from hotswap.api.guides import ANY_OBJECT, schema_guide
from hotswap.api.ollama_answers import (
    NDJSON,
    ChatDocument,
    ChatFrames,
    GenerateDocument,
    GenerateFrames,
    chat_end,
    generate_end,
)
from hotswap.api.ollama_messages import OllamaMessage, continues, message_mappings
from hotswap.api.ollama_orders import Presence, Staying
from hotswap.api.rules import logprobs_of, refuse_not_honoured, seed_of, stops_of, top_k_of
from hotswap.api.tools import DeclaredTool, ToolName, tool_mappings
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    Prompt,
    SamplingParams,
    TextPrompt,
)
from hotswap.errors import InvalidRequest

_LEVELS = ("low", "medium", "high")
JsonWord = Annotated[str, Meta(extra_json_schema={"enum": ["json", ""]})]
Level = Annotated[str, Meta(extra_json_schema={"enum": list(_LEVELS)})]
"""Only described by their types: they are refused in words that help."""


class Options(Struct, kw_only=True):
    """Those that say how an answer is drawn; the others are about another engine."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    seed: Seed | None = None
    num_predict: Annotated[int, Meta(ge=-2, le=INT32_MAX)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_k=top_k_of(self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=seed_of(self.seed),
        )

    def max_tokens(self) -> int | None:
        """-1 is without end and -2 to the end of the context, which comes to the same."""
        return self.num_predict if self.num_predict is not None and self.num_predict > 0 else None


class Common(Staying, kw_only=True):
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
            stop=stops_of(options.stop),
            logprobs=logprobs_of(self.logprobs, self.top_logprobs),
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

    def _guide(self) -> Guide | None:
        if self.format is None or self.format == "":
            return None
        if self.format == "json":
            return schema_guide(ANY_OBJECT, "format")
        if isinstance(self.format, str):
            raise InvalidRequest('format: must be "json" or a JSON schema', param="format")
        return schema_guide(self.format, "format")


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


_NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("suffix", "template", "context", "images"), ()),
    **dict.fromkeys(("width", "height", "steps"), (0,)),
}
"""Fields of ``/api/generate``."""


def chat_presence(fields: dict[str, Any]) -> Presence | None:
    """What a body of ``/api/chat`` without messages asks for; None: it has some.

    Raises:
        InvalidRequest: names the field.
    """
    return None if fields.get("messages") else decode(fields, OllamaChat).presence(chat_end)


def generate_presence(fields: dict[str, Any]) -> Presence | None:
    """As `chat_presence`, of ``/api/generate`` without a prompt."""
    if fields.get("prompt"):
        return None
    refuse_not_honoured(fields, _NOT_HONOURED)
    return decode(fields, OllamaGenerate).presence(generate_end)


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
        messages=message_mappings(chat.messages),
        tools=tool_mappings(_declared(declared_tools)),
        continue_final_message=continues(chat.messages[-1]),
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
    refuse_not_honoured(fields, _NOT_HONOURED)
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


def _prompt(generate: OllamaGenerate, text: str) -> Prompt:
    if generate.raw:
        if generate.system:
            raise InvalidRequest("system: not together with raw", param="system")
        return TextPrompt(text)
    system = {"role": "system", "content": generate.system}
    user = {"role": "user", "content": text}
    return generate.chat_prompt(messages=(system, user) if generate.system else (user,))
