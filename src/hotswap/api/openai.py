"""OpenAI's chat and text completions: JSON objects to `GenerationRequest`.

Taken from clients as they are: unknown fields are ignored and ``null`` is unset. A field that
we know is checked, and one that we know and cannot honour is refused by name, because an answer
that silently ignores ``response_format`` is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hotswap.api.dialect import Call
from hotswap.api.fields import (
    INT32_MAX,
    Count,
    LogitBias,
    Penalty,
    Probability,
    StopString,
    TokenId,
    decode,
    duration_s,
)
from hotswap.api.openai_answers import (
    ChatDocument,
    ChatFrames,
    CompletionDocument,
    CompletionFrames,
)
from hotswap.contracts import (
    ChatPrompt,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from hotswap.errors import InvalidRequest

MAX_PROMPTS = 64
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]


class StreamOptions(Struct):
    include_usage: bool | None = None


class Common(Struct, kw_only=True):
    """The fields that both routes share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    min_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Meta(ge=-1, le=2**63 - 1)] | None = None
    logit_bias: LogitBias | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    ignore_eos: bool | None = None
    keep_alive: float | str | None = None
    ttl: float | None = None

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_k=0 if self.top_k == -1 else self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=None if self.seed == -1 else self.seed,
            logit_bias=self.logit_bias or None,
        )

    def keep_alive_s(self) -> float | None:
        if self.keep_alive is not None:
            return duration_s(self.keep_alive, "keep_alive")
        return None if self.ttl is None else duration_s(self.ttl, "ttl")

    def request(
        self, prompts: tuple[Prompt, ...], *, logprobs: int | None, echo: bool = False
    ) -> GenerationRequest:
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise InvalidRequest("min_tokens is more than max_tokens.", param="min_tokens")
        return GenerationRequest(
            prompts=prompts,
            model=self.model,
            sampling=self.sampling(),
            n=self.n or 1,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens or 0,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            echo=echo,
            logprobs=logprobs,
            keep_alive_s=self.keep_alive_s(),
        )

    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Part(Struct):
    type: str
    text: str | None = None


class Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class Chat(Common, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class Completion(Common, kw_only=True):
    prompt: Any
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None


# What each refused field may be all the same, besides null, false and empty.
_NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "functions": (),
    "function_call": ("auto", "none"),
    "modalities": (["text"],),
    "audio": (),
    "suffix": (),
    "prompt_logprobs": (),
    "use_beam_search": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "grammar": (),
    "chat_template": (),
    "trust_remote_code": (),
}
# Arguments of the template call itself: the request must not reach around its own checks.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
_TEXT_PARTS = ("text", "input_text", "output_text")


def parse_chat(fields: dict[str, Any]) -> Call:
    """A body of ``/v1/chat/completions``.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_not_honoured(fields)
    chat = decode(fields, Chat)
    if chat.max_completion_tokens is not None:
        chat.max_tokens = chat.max_completion_tokens
    request = chat.request((_chat_prompt(chat),), logprobs=_chat_logprobs(chat))
    return Call(
        request=request,
        stream=bool(chat.stream),
        frames=partial(ChatFrames, choices=request.n, include_usage=chat.include_usage()),
        document=partial(ChatDocument, choices=request.n),
    )


def parse_completion(fields: dict[str, Any]) -> Call:
    """A body of ``/v1/completions``.

    Raises:
        InvalidRequest: names the field.
    """
    _refuse_not_honoured(fields)
    completion = decode(fields, Completion)
    if completion.best_of is not None and completion.best_of > (completion.n or 1):
        raise InvalidRequest("best_of: more than n is not supported", param="best_of")
    if completion.echo and completion.logprobs is not None:
        raise InvalidRequest("echo: not supported together with logprobs", param="echo")
    request = completion.request(
        _prompts(completion.prompt), logprobs=completion.logprobs, echo=bool(completion.echo)
    )
    choices = len(request.prompts) * request.n
    return Call(
        request=request,
        stream=bool(completion.stream),
        frames=partial(CompletionFrames, include_usage=completion.include_usage()),
        document=partial(CompletionDocument, choices=choices),
    )


def _refuse_not_honoured(fields: Mapping[str, Any]) -> None:
    for name, allowed in _NOT_HONOURED.items():
        value = fields.get(name)
        if value is not None and value not in (False, "", [], {}, *allowed):
            raise InvalidRequest(f"{name}: not supported with this value", param=name)


def _chat_logprobs(chat: Chat) -> int | None:
    if chat.logprobs:
        return chat.top_logprobs or 0
    if chat.top_logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", param="top_logprobs")
    return None


def _chat_prompt(chat: Chat) -> ChatPrompt:
    kwargs = chat.chat_template_kwargs or {}
    for name in kwargs:
        if name in _RESERVED_TEMPLATE_KWARGS:
            param = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"{param}: not settable by a request", param=param)
    return ChatPrompt(
        messages=tuple(_message(i, message) for i, message in enumerate(chat.messages)),
        tools=tuple(chat.tools or ()),
        template_kwargs=kwargs,
        continue_final_message=_continues(chat),
    )


def _continues(chat: Chat) -> bool:
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: not together with add_generation_prompt",
            param="continue_final_message",
        )
    if not chat.continue_final_message and chat.add_generation_prompt is not False:
        return False
    if chat.messages[-1].role != "assistant":
        param = "continue_final_message" if chat.continue_final_message else "add_generation_prompt"
        raise InvalidRequest(f"{param}: the last message is not the assistant's", param=param)
    return True


def _message(position: int, message: Message) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    optional = {
        "name": message.name,
        "tool_calls": message.tool_calls,
        "tool_call_id": message.tool_call_id,
    }
    present = {name: value for name, value in optional.items() if value is not None}
    return {"role": role, "content": _content(position, message), **present}


def _content(position: int, message: Message) -> str:
    param = f"messages[{position}].content"
    if message.content is None:
        if message.role in ("assistant", "tool"):
            return ""
        raise InvalidRequest(f"{param}: required, but missing", param=param)
    if isinstance(message.content, str):
        return message.content
    return "".join(_part_text(part, param) for part in message.content)


def _part_text(part: Part, param: str) -> str:
    if part.type not in _TEXT_PARTS:
        raise InvalidRequest(
            f"{param}: parts of type {part.type[:50]!r} are not supported by this model",
            param=param,
        )
    if part.text is None:
        raise InvalidRequest(f"{param}: a text part without text", param=param)
    return part.text


class _Texts(Struct):
    prompt: Annotated[list[str], Meta(max_length=MAX_PROMPTS)]


class _Ids(Struct):
    prompt: list[TokenId]


class _IdLists(Struct):
    prompt: Annotated[
        list[Annotated[list[TokenId], Meta(min_length=1)]], Meta(max_length=MAX_PROMPTS)
    ]


def _prompts(prompt: Any) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (TextPrompt(prompt),)
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest(
            "prompt: expected a string, strings, token ids, or lists of token ids",
            param="prompt",
        )
    fields = {"prompt": prompt}
    if isinstance(prompt[0], str):
        return tuple(map(TextPrompt, decode(fields, _Texts).prompt))
    if isinstance(prompt[0], list):
        return tuple(TokenPrompt(tuple(ids)) for ids in decode(fields, _IdLists).prompt)
    return (TokenPrompt(tuple(decode(fields, _Ids).prompt)),)
