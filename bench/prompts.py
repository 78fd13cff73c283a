"""Prompts of a given number of tokens that nobody has been asked before."""

from __future__ import annotations

import random

from bench.checkpoints import TOKEN_IDS

WORDS = (
    *("import", "module", "class", "return", "value", "list", "dict", "string", "number", "file"),
    *("path", "open", "read", "write", "close", "line", "text", "data", "name", "type", "object"),
    *("method", "call", "function", "argument", "default", "result", "error", "raise", "test"),
    *("case", "index", "key", "item", "loop", "while", "range", "print", "format", "parse"),
    *("token", "stream", "buffer", "byte", "encode", "decode"),
)
"""Each one token of the checkpoints' tokenizer."""
TEMPLATE_TOKENS = 10
"""What the chat template puts around a message."""


class Prompts:
    """Random prompts, the same ones in each run with the same seed."""

    def __init__(self, tokens: int, seed: int = 0) -> None:
        self.tokens = tokens
        self._random = random.Random(seed)

    def text(self) -> str:
        """A message of so many tokens in its template."""
        return " ".join(self._random.choices(WORDS, k=self.tokens - TEMPLATE_TOKENS))

    def ids(self) -> list[int]:
        """As long a prompt without HTTP."""
        return self._random.choices(TOKEN_IDS, k=self.tokens)
