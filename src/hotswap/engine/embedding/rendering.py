"""Texts to be embedded, as one model sees them: token ids, limits checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from hotswap.contracts.requests import EmbeddingRequest, TextPrompt, TokenPrompt
from hotswap.engine.decoding import Vocabulary
from hotswap.engine.embedding.recipe import Recipe
from hotswap.engine.front import Front
from hotswap.engine.text import MAX_COUNTED_CHARS, token_texts
from hotswap.errors import ContextLengthExceeded, InvalidRequest

_SURELY_CHARS_PER_TOKEN = 8
"""Text in any language has fewer on average; runs of spaces may have more."""
_FIELD = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedEmbedding:
    """`hotswap.contracts.engines.Rendered`, as `EmbeddingEngine` takes it."""

    model: str
    token_ids: tuple[tuple[int, ...], ...]
    dimensions: int | None
    """Numbers of each vector that are wanted; None: all."""
    vocabulary: Vocabulary

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    @property
    def token_texts(self) -> tuple[tuple[str, ...], ...]:
        return token_texts(self.vocabulary, self.token_ids)


class EmbeddingRenderer:
    """Renders requests for one embedding model. Stateless; call it from a worker thread."""

    def __init__(self, model: str, front: Front, recipe: Recipe) -> None:
        self._model = model
        self._front = front
        self._recipe = recipe

    def render(self, request: EmbeddingRequest) -> RenderedEmbedding:
        """Raises: InvalidRequest, ContextLengthExceeded."""
        wanted, there = request.dimensions, self._recipe.dimensions
        if wanted is not None and not 1 <= wanted <= there:
            raise InvalidRequest(
                f"{self._model!r} makes vectors of {there} numbers, not of {wanted}.",
                param="dimensions",
            )
        return RenderedEmbedding(
            model=self._model,
            token_ids=tuple(self._ids(one, request) for one in request.prompts),
            dimensions=wanted,
            vocabulary=self._front.vocabulary,
        )

    def _ids(self, prompt: TextPrompt | TokenPrompt, request: EmbeddingRequest) -> tuple[int, ...]:
        limit, truncate = self._front.max_model_len, request.truncate
        if isinstance(prompt, TextPrompt):
            ids, ends = self._encoded(prompt, truncate, counted=request.counted)
        else:
            ids, ends = prompt.ids, 0
        if request.counted:
            return ids
        if not ids:
            raise InvalidRequest("A text has no tokens.", param=_FIELD)
        self._refuse_strangers(ids)
        if len(ids) > limit:
            if not truncate:
                self._refuse_length(f"{len(ids)} tokens")
            ids = (*ids[: max(0, limit - ends)], *ids[len(ids) - ends :])[-limit:]
        return ids

    def _written(self, text: str) -> str:
        text = self._recipe.prefix + text
        return text.lower() if self._recipe.lower_case else text

    def _encoded(
        self, prompt: TextPrompt, truncate: bool, *, counted: bool
    ) -> tuple[tuple[int, ...], int]:
        """The tokens of a text, or of a beginning of it that is too long anyway; and how many at
        the end belong to no text, but mark the end."""
        text, limit = self._written(prompt.text), self._front.max_model_len
        chars = max(_SURELY_CHARS_PER_TOKEN * limit, MAX_COUNTED_CHARS * counted)
        while True:
            # See `hotswap.engine.text`: tokenising megabytes takes minutes.
            encoded = self._front.tokenizer(
                text[:chars],
                add_special_tokens=prompt.special,
                return_special_tokens_mask=True,
                verbose=False,
            )
            ids, special = tuple(encoded["input_ids"]), encoded["special_tokens_mask"]
            if chars >= len(text):
                return ids, _marks_at_the_end(special)
            if len(ids) > limit + _SPARE:
                if not truncate:
                    size = f"{len(text)} characters, and the first {chars} are {len(ids)} tokens"
                    self._refuse_length(size)
                return ids, _marks_at_the_end(special)
            chars *= 4

    def _refuse_strangers(self, ids: Sequence[int]) -> None:
        """A tokenizer may know tokens that the model does not."""
        vocab = self._front.vocab_size
        if not 0 <= min(ids) <= max(ids) < vocab:
            stranger = next(token for token in ids if not 0 <= token < vocab)
            raise InvalidRequest(
                f"Token id {stranger} is outside the vocabulary of {vocab} tokens.", param=_FIELD
            )

    def _refuse_length(self, size: str) -> NoReturn:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self._front.max_model_len} tokens. "
            f"However, a text of your {_FIELD} has {size}.",
            param=_FIELD,
        )


_SPARE = 8
"""The last tokens of a text that was cut may be others than those of the whole text."""


def _marks_at_the_end(special: Sequence[int]) -> int:
    if all(special):
        return 0
    return next(count for count, mark in enumerate(reversed(special)) if not mark)
