"""OpenAI's chat and text completions: JSON objects to `GenerationRequest`.

Taken from clients as they are: unknown fields are ignored and ``null`` is unset. A field that
we know is checked, and one that we know and cannot honour is refused by name, because an answer
that silently ignores ``response_format`` is worse than none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    Seed,
    StopString,
    TokenId,
    decode,
)
from hotswap.api.guides import GuideFields, refuse_other_forms
from hotswap.api.openai_answers import (
    ChatDocument,
    ChatFrames,
    CompletionDocument,
    CompletionFrames,
)
from hotswap.api.openai_messages import (
    AssistantMessage,
    Message,
    message_mappings,
    refuse_other_content,
)
from hotswap.api.rules import (
    effort_of,
    logprobs_of,
    refuse_not_honoured,
    seed_of,
    stops_of,
    top_k_of,
)
from hotswap.api.tools import (
    MAX_TOOLS,
    Choice,
    NamedTool,
    Tool,
    check_together,
    declared,
    required_choice,
    tool_mappings,
)
from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    ToolChoice,
)
from hotswap.errors import InvalidRequest

MAX_PROMPTS = 64
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Struct):
    include_usage: bool | None = None


class Common(GuideFields, kw_only=True):
    """The fields that both routes share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    min_p: Probability | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    seed: Seed | None = None
    logit_bias: LogitBias | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    ignore_eos: bool | None = None

    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_k=top_k_of(self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=seed_of(self.seed),
            logit_bias=self.logit_bias or None,
        )

    def request(
        self,
        prompts: tuple[Prompt, ...],
        *,
        logprobs: int | None,
        echo: bool = False,
        limit: str = "max_tokens",
    ) -> GenerationRequest:
        """``limit``: the field that says how long the answer may be."""
        max_tokens: int | None = getattr(self, limit)
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise InvalidRequest(f"min_tokens is more than {limit}.", param="min_tokens")
        return GenerationRequest(
            prompts=prompts,
            model=self.model,
            sampling=self.sampling(),
            n=self.n or 1,
            max_tokens=max_tokens,
            max_tokens_param=limit,
            min_tokens=self.min_tokens or 0,
            stop=stops_of(self.stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            echo=echo,
            logprobs=logprobs,
            guide=self.guide(),
            keep_alive_s=self.keep_alive_s(),
        )

    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Chat(Common, kw_only=True):
    """A body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class Completion(Common, kw_only=True):
    """A body of ``/v1/completions``."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    """0 only together with ``echo``."""
    add_special_tokens: bool | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None


# What each refused field may be all the same, besides null, false and empty.
_NOT_HONOURED: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": (),
    "chat_template": (),
    "documents": (),
    "function_call": ("auto", "none"),
    "functions": (),
    "include_stop_str_in_output": (),
    "logits_processors": (),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "structural_tag": (),
    "suffix": (),
    "truncate_prompt_tokens": (),
    "trust_remote_code": (),
    "use_beam_search": (),
    "web_search_options": (),
}
_NOT_HONOURED_IN_CHATS: Mapping[str, tuple[Any, ...]] = {
    **_NOT_HONOURED,
    "add_special_tokens": (),
    "echo": (),
}
_INSTEAD = {"functions": "tools", "function_call": "tool_choice"}
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


def parse_chat(fields: dict[str, Any]) -> Call:
    """A body of ``/v1/chat/completions``.

    Raises:
        InvalidRequest: names the field.
    """
    refuse_not_honoured(fields, _NOT_HONOURED_IN_CHATS, _INSTEAD)
    refuse_other_forms(fields)
    refuse_other_content(fields.get("messages"))
    chat = decode(fields, Chat)
    prompt = _chat_prompt(chat)
    limit = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    request = chat.request(
        (prompt,), logprobs=logprobs_of(chat.logprobs, chat.top_logprobs), limit=limit
    )
    check_together(request.guide, prompt.tool_choice)
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
    refuse_not_honoured(fields, _NOT_HONOURED)
    refuse_other_forms(fields)
    completion = decode(fields, Completion)
    if completion.best_of is not None and completion.best_of > (completion.n or 1):
        raise InvalidRequest("best_of: more than n is not supported", param="best_of")
    if completion.max_tokens == 0 and not completion.echo:
        raise InvalidRequest(
            "max_tokens: must be 1 or more; 0 is for scoring a prompt, together with echo",
            param="max_tokens",
        )
    request = completion.request(
        _prompts(completion), logprobs=completion.logprobs, echo=bool(completion.echo)
    )
    choices = len(request.prompts) * request.n
    return Call(
        request=request,
        stream=bool(completion.stream),
        frames=partial(CompletionFrames, include_usage=completion.include_usage()),
        document=partial(CompletionDocument, choices=choices),
    )


def _chat_prompt(chat: Chat) -> ChatPrompt:
    kwargs = chat.chat_template_kwargs or {}
    for name in kwargs:
        if name in _RESERVED_TEMPLATE_KWARGS:
            param = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"{param}: not settable by a request", param=param)
    tools = tool_mappings(declared(chat.tools or ()))
    return ChatPrompt(
        messages=message_mappings(chat.messages),
        tools=() if chat.tool_choice == "none" else tools,
        tool_choice=_tool_choice(chat, tools),
        reasoning_effort=effort_of(chat.reasoning_effort),
        template_kwargs=kwargs,
        continue_final_message=_continues(chat),
    )


def _tool_choice(chat: Chat, tools: Collection[Mapping[str, Any]]) -> ToolChoice:
    choice, parallel = chat.tool_choice, chat.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        return required_choice(tools, parallel=parallel, name=choice.function.name)
    if choice == "required":
        return required_choice(tools, parallel=parallel)
    return ToolChoice(parallel=parallel)


def _continues(chat: Chat) -> bool:
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: not together with add_generation_prompt",
            param="continue_final_message",
        )
    if not chat.continue_final_message and chat.add_generation_prompt is not False:
        return False
    if not isinstance(chat.messages[-1], AssistantMessage):
        param = "continue_final_message" if chat.continue_final_message else "add_generation_prompt"
        raise InvalidRequest(f"{param}: the last message is not the assistant's", param=param)
    return True


class _Texts(Struct):
    prompt: Annotated[list[str], Meta(max_length=MAX_PROMPTS)]


class _Ids(Struct):
    prompt: list[TokenId]


class _IdLists(Struct):
    prompt: Annotated[
        list[Annotated[list[TokenId], Meta(min_length=1)]], Meta(max_length=MAX_PROMPTS)
    ]


def _prompts(completion: Completion) -> tuple[Prompt, ...]:
    """The four forms of a prompt; decoded a second time, as the form that its beginning has."""
    prompt = completion.prompt
    special = completion.add_special_tokens is not False
    if isinstance(prompt, str):
        return (TextPrompt(prompt, special=special),)
    fields = {"prompt": prompt}
    if isinstance(prompt[0], str):
        texts = decode(fields, _Texts).prompt
        return tuple(TextPrompt(text, special=special) for text in texts)
    if isinstance(prompt[0], list):
        return tuple(TokenPrompt(tuple(ids)) for ids in decode(fields, _IdLists).prompt)
    return (TokenPrompt(tuple(decode(fields, _Ids).prompt)),)
