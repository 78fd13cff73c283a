"""What a client asks for, in no dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RESIDENT_NAMES = frozenset({"", "default", "current"})
"""Names under which a client asks for whatever model is resident. No model is called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Which of its tools a model calls."""

    required: bool = False
    """It must call one; otherwise it may."""
    name: str | None = None
    """The only one that it may call, and must."""
    parallel: bool = True
    """It may call several in one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, still to be written out with the target model's chat template."""

    messages: tuple[Mapping[str, Any], ...]
    """As OpenAI has them, their content plain text; arguments of tool calls as JSON text."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """As OpenAI has them: ``{"type": "function", "function": {"name", "parameters", ...}}``."""
    tool_choice: ToolChoice = ToolChoice()
    reasoning_effort: str | None = None
    """"none", "minimal", "low", "medium" or "high", for templates that know of it; None: theirs."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    """The last message is the assistant's and is to be continued, not answered."""
    answered: bool = True
    """The prompt ends with what an answer begins with."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str
    special: bool = True
    """With the special tokens that the model's tokenizer puts around a text."""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a token is drawn. ``None`` is unset: the model's own default, then the neutral value."""

    temperature: float | None = None
    """0 takes the most likely token; neutral 1."""
    top_k: int | None = None
    """Keep the k most likely tokens; neutral 0 (off)."""
    top_p: float | None = None
    """Keep the smallest set of probability >= top_p, the crossing token included; neutral 1."""
    min_p: float | None = None
    """Drop tokens less likely than min_p times the most likely one; neutral 0."""
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    """Same seed, same model, same request: same tokens, alone or in a batch."""
    logit_bias: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Guide:
    """What an answer must be. It ends when it is that, and is cut short only by its length."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str
    """A JSON schema as JSON text; a regular expression for the whole answer; a JSON list of texts;
    a grammar in Lark's notation."""
    param: str
    """The field that it came in, for refusals."""
    subject: str = ""
    """What refusals call it, where it was made here of something that the client knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One call of a completion route, in no dialect. Choice i of prompt p has index p * n + i."""

    prompts: tuple[Prompt, ...]
    model: str | None = None
    """The name as the client wrote it; None, "", "default", "current": the resident model."""
    any_name: bool = False
    """A name that means no model on this machine means the resident one too."""
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    max_tokens: int | None = None
    """Tokens to generate at most; None: up to the end of the context. 0: an answer is its echo."""
    max_tokens_param: str = "max_tokens"
    """The field that they came in, for refusals."""
    cut_to_context: bool = False
    """More of them than the context has room for are as many as there is room for; else that is
    refused."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    echo: bool = False
    """Start each answer with its prompt's text; with ``logprobs``, with its tokens."""
    logprobs: int | None = None
    """None: no log-probabilities; k >= 0: the drawn token's and the k likeliest ones'."""
    guide: Guide | None = None
    """Of a chat's answer it holds for what comes after the reasoning."""
    keep_alive_s: float | None = None
    """Idle seconds after which the model may be let go; negative: never. None: as configured."""
    counted: bool = False
    """It is not to be answered: only the tokens of its prompts are wanted, which may be none, or
    more than the context has room for."""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to be turned into vectors."""

    prompts: tuple[TextPrompt | TokenPrompt, ...]
    model: str | None = None
    """As in `GenerationRequest`."""
    dimensions: int | None = None
    """Keep so many leading numbers of each vector, scaled to length 1 again; None: all."""
    truncate: bool = False
    """Cut what is too long at its end, instead of refusing it."""
    counted: bool = False
    """As in `GenerationRequest`."""
    keep_alive_s: float | None = None
    request_id: str = ""
