"""A request as one model sees it: token ids, every sampling value settled, limits checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotswap.contracts.requests import (
    ChatPrompt,
    GenerationRequest,
    Guide,
    Prompt,
    SamplingParams,
    TextPrompt,
)
from hotswap.engine.chat import schema_guides, write_out
from hotswap.engine.decoding import Vocabulary
from hotswap.engine.drawing import DrawParams
from hotswap.engine.front import Front
from hotswap.engine.grammar import Preamble, WrittenPreamble, is_too_large
from hotswap.engine.guide import CompiledGuide, CompilingTooSlow
from hotswap.engine.speech.listener import Hearing
from hotswap.errors import ContextLengthExceeded, InvalidRequest

_SETTLED = (
    *("temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    ids: tuple[int, ...]
    echo: str
    """Text that its answers begin with."""
    hearing: Hearing | None = None
    """What its answers are taken apart by; None: they are text."""
    grammar: CompiledGuide | None = None
    """Guides each of its answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRequest:
    """`hotswap.contracts.engines.Rendered`, as `TorchEngine` takes it."""

    model: str
    request: GenerationRequest
    prompts: tuple[RenderedPrompt, ...]
    prompt_tokens: int
    """Of all prompts together."""
    draw: DrawParams
    seed: int | None
    """None: any."""
    end_ids: frozenset[int]
    vocabulary: Vocabulary

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        return tuple(prompt.ids for prompt in self.prompts)

    @property
    def token_texts(self) -> tuple[tuple[str, ...], ...]:
        return token_texts(self.vocabulary, self.token_ids)


_SURELY_CHARS_PER_TOKEN = 8
"""Text in any language has fewer on average; runs of spaces may have more."""


MAX_COUNTED_CHARS = 2 << 20
"""Of a prompt whose tokens are only to be counted, also where no model could take it."""


class PromptRenderer:
    """Renders requests for one model. Stateless; call it from a worker thread."""

    def __init__(
        self,
        model: str,
        front: Front,
        defaults: SamplingParams,
        max_model_len: int | None = None,
    ) -> None:
        """``max_model_len``: tokens that there is memory for; None: as many as the model takes."""
        self._model = model
        self._front = front
        self._defaults = defaults
        self._max_model_len = min(front.max_model_len, max_model_len or front.max_model_len)

    def render(self, request: GenerationRequest) -> RenderedRequest:
        """Raises: InvalidRequest, ContextLengthExceeded, Overloaded."""
        prompts = tuple(self._prompt(prompt, request) for prompt in request.prompts)
        for prompt, source in zip(prompts, request.prompts, strict=True):
            if not request.counted:
                answer_room(len(prompt.ids), request, self._max_model_len, prompt_name(source))
        asked, default = request.sampling.seed, self._defaults.seed
        end_ids = frozenset(request.stop_token_ids)
        _check_ids(tuple(end_ids), self._front.vocab_size, "stop_token_ids")
        return RenderedRequest(
            model=self._model,
            request=request,
            prompts=prompts,
            prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
            draw=self._draw_params(request.sampling),
            seed=default if asked is None else asked,
            end_ids=end_ids if request.ignore_eos else end_ids | self._front.eos_ids,
            vocabulary=self._front.vocabulary,
        )

    def _prompt(self, prompt: Prompt, request: GenerationRequest) -> RenderedPrompt:
        # With log-probabilities, tokens tell the prompt, see `hotswap.engine.sequence.Sequence`.
        echo = request.echo and request.logprobs is None
        hearing, guide, preamble, calls = None, request.guide, None, None
        if isinstance(prompt, ChatPrompt):
            written = write_out(self._model, self._front, prompt, guide)
            text, hearing, guide = written.text, written.hearing, written.guide
            preamble, calls = written.preamble, written.calls
            ids = self._encode(text, prompt, special=False, counted=request.counted)
        elif isinstance(prompt, TextPrompt):
            text = prompt.text
            ids = self._encode(text, prompt, special=prompt.special, counted=request.counted)
        else:
            ids = prompt.ids
            _check_ids(ids, self._front.vocab_size, prompt_name(prompt))
            text = self._front.vocabulary.text(list(ids)) if echo else ""
        if not ids and not request.counted:
            ids = self._bos(prompt)
        grammar = self._compiled(guide, preamble, calls, hearing) if guide else None
        return RenderedPrompt(ids, text if echo else "", hearing, grammar)

    def _compiled(
        self,
        guide: Guide,
        preamble: Preamble | WrittenPreamble | None,
        calls: str | None,
        hearing: Hearing | None,
    ) -> CompiledGuide:
        guides = self._front.guides
        try:
            return guides.compile(guide, preamble, calls)
        except CompilingTooSlow:
            raise
        except InvalidRequest as error:
            # A grammar of ours says nothing to whoever wrote the tools.
            if hearing is not None and hearing.demanded and not is_too_large(guide):
                raise guides.refusal(schema_guides(hearing.tools)) or error from None
            raise

    def _encode(
        self, text: str, prompt: Prompt, *, special: bool, counted: bool
    ) -> tuple[int, ...]:
        tokenizer = self._front.tokenizer
        # Four prompts of 4 MB took 81 s to tokenise, on the cores that others' answers are computed
        # on: that they are hopelessly long can be seen from their beginning.
        chars = max(_SURELY_CHARS_PER_TOKEN * self._max_model_len, MAX_COUNTED_CHARS * counted)
        beginning = text[:chars]
        if len(beginning) < len(text):
            tokens = len(tokenizer.encode(beginning, add_special_tokens=special, verbose=False))
            if tokens > self._max_model_len + 1:  # the last one may be half a token
                name = prompt_name(prompt)
                raise ContextLengthExceeded(
                    f"This model's maximum context length is {self._max_model_len} tokens. "
                    f"However, of the {len(text)} characters of your {name} the first {chars} are "
                    f"{tokens} tokens already.",
                    param=name,
                )
        ids = tuple(tokenizer.encode(text, add_special_tokens=special, verbose=False))
        _check_ids(ids, self._front.vocab_size, prompt_name(prompt))
        return ids

    def _bos(self, prompt: Prompt) -> tuple[int, ...]:
        bos = self._front.tokenizer.bos_token_id
        if not isinstance(bos, int):
            why = "it is empty, and this model has no token to begin a text with"
            if isinstance(prompt, ChatPrompt):
                why = "the chat template of this model writes nothing for these messages"
            raise InvalidRequest(f"The prompt has no tokens: {why}.", param=prompt_name(prompt))
        return (bos,)

    def _draw_params(self, asked: SamplingParams) -> DrawParams:
        layers = (asked, self._defaults, self._front.sampling)
        values: dict[str, Any] = {}
        for name in _SETTLED:
            value = next((v for layer in layers if (v := getattr(layer, name)) is not None), None)
            if value is not None:
                values[name] = value
        if self._front.greedy and not any(map(_wants_randomness, (asked, self._defaults))):
            values["temperature"] = 0.0
        values["top_k"] = max(0, values.get("top_k", 0))
        return DrawParams(**values, logit_bias=self._bias(asked.logit_bias))

    def _bias(self, bias: Mapping[int, float] | None) -> Mapping[int, float]:
        _check_ids(tuple(bias or ()), self._front.vocab_size, "logit_bias")
        return dict(bias or {})


def token_texts(
    vocabulary: Vocabulary, prompts: Sequence[Sequence[int]]
) -> tuple[tuple[str, ...], ...]:
    """What each token of each prompt stands for."""
    raw = vocabulary.raw
    return tuple(tuple(raw(token).decode(errors="replace") for token in ids) for ids in prompts)


def text_of(front: Front, ids: Sequence[int]) -> str:
    """What tokens stand for, special ones included.

    Raises:
        InvalidRequest: there is no such token.
    """
    _check_ids(ids, front.vocab_size, "tokens")
    return b"".join(map(front.vocabulary.raw, ids)).decode(errors="replace")


def _check_ids(ids: Sequence[int], vocab: int, name: str) -> None:
    """A tokenizer may know tokens that the model does not."""
    for token in ids:
        if not 0 <= token < vocab:
            raise InvalidRequest(
                f"Token id {token} is outside the vocabulary of {vocab} tokens.", param=name
            )


def answer_room(prompt_tokens: int, request: GenerationRequest, limit: int, name: str) -> int:
    """Tokens that an answer may have.

    Args:
        limit: tokens of prompt and answer together at most.
        name: of the field that the prompt came in.

    Raises:
        ContextLengthExceeded: the prompt leaves no room, or less than was asked for.
    """
    room, asked = limit - prompt_tokens, request.max_tokens
    if asked == 0 <= room:
        return 0
    if room >= 1 and (asked is None or asked <= room or request.cut_to_context):
        return room if asked is None else min(asked, room)
    asked = 1 if asked is None else asked
    told = (
        f"This model's maximum context length is {limit} tokens. However, you requested "
        f"{prompt_tokens + asked} tokens ({prompt_tokens} in the {name}, {asked} in the "
        "completion)."
    )
    if room < 1:
        raise ContextLengthExceeded(told, param=name)
    param = request.max_tokens_param
    raise ContextLengthExceeded(f"{told} {param} can be {room} at most.", param=param)


def prompt_name(prompt: Prompt) -> str:
    """What clients call the field that the prompt came in."""
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"


def _wants_randomness(params: SamplingParams) -> bool:
    given = (params.temperature, params.top_k, params.top_p, params.min_p)
    return any(value is not None for value in given)
