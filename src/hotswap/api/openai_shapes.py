"""OpenAI's answers as types, for ``/openapi.json``: they are written by `openai_answers`, whose
tests hold them to this."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(Struct):
    cached_tokens: int


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class UsageAnswer(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatLogprob):
    top_logprobs: list[ChatLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]
    refusal: None


class CalledFunctionAnswer(Struct):
    name: str
    arguments: str
    """JSON text of an object."""


class ToolCallAnswer(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunctionAnswer


class MessageAnswer(Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallAnswer] | UnsetType = UNSET


class ChatChoiceAnswer(Struct):
    index: int
    message: MessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceAnswer]
    usage: UsageAnswer


class CompletionLogprobs(Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoiceAnswer(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionAnswer(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceAnswer]
    usage: UsageAnswer
