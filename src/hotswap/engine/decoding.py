"""Token ids back to text, one at a time.

Most tokenizers spell their tokens in bytes in one of two ways (byte-level BPE, or sentencepiece
pieces with byte fallback); there a token is its bytes and an incremental UTF-8 decoder does the
rest, exactly and in constant time. The others are asked to decode a small window again.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "Hello, wörld! 你好 👩‍🚀\n\tx = [1, 2]  # naïve"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_WAIT = 16
"""Tokens after which the window decoder gives up on a character that does not become whole, or on
tokens that leave no text."""


class TextDecoder(Protocol):
    """Text of one answer, whole characters only."""

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""

    def finish(self) -> str:
        """What is left, where a character was never completed."""


class Vocabulary:
    """What the tokens of one tokenizer stand for. Safe to share between threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        # `all_special_ids` has only those that the tokenizer gives a role; most have none.
        self.special: frozenset[int] = frozenset(tokenizer.all_special_ids).union(
            token for token, text in added.items() if text.special
        )
        """Ids that leave no text."""
        self.added: dict[str, int] = {text.content: token for token, text in added.items()}
        """Tokens that are texts of their own, special or not, and their ids."""
        self._bytes: dict[int, bytes] = {}
        self._spelling = _spelling(tokenizer)
        if self._spelling is not None and not self._spells_right():
            self._spelling = None

    def decoder(self, shown: Set[int] = frozenset(), guard: str = "") -> TextDecoder:
        """A decoder for one answer.

        Args:
            shown: special tokens that it gives out as they are written, where others leave no text.
            guard: what it puts before each of them.
        """
        if self._spelling is None:
            return _WindowDecoder(self, shown, guard)
        return _ByteDecoder(self._visible_with(shown, guard.encode()) if shown else self.visible)

    def raw(self, token: int) -> bytes:
        """The bytes that a token stands for, special tokens included."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def pieces(self, count: int) -> list[bytes] | None:
        """`raw` of the first ``count`` tokens; None: what a token stands for depends on others."""
        spelling = self._spelling
        if spelling is None:
            return None
        names = self._tokenizer.convert_ids_to_tokens(list(range(count)))
        return [spelling(name) if isinstance(name, str) else b"" for name in names]

    def visible(self, token: int) -> bytes:
        """The bytes that a token adds to an answer: none for special tokens."""
        return b"" if token in self.special else self.raw(token)

    def _visible_with(self, shown: Set[int], guard: bytes) -> Callable[[int], bytes]:
        return lambda token: guard + self.raw(token) if token in shown else self.visible(token)

    def text(self, tokens: list[int]) -> str:
        """All of ``tokens`` as text, special ones left out."""
        return self._decode(tokens, skip_special=True)

    def _spell(self, token: int) -> bytes:
        if self._spelling is None:
            return self._decode([token], skip_special=False).encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return self._spelling(piece) if isinstance(piece, str) else b""

    def _decode(self, tokens: list[int], *, skip_special: bool) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        )

    def _spells_right(self) -> bool:
        ids = self._tokenizer.encode(_SAMPLE, add_special_tokens=False)
        ours = b"".join(map(self.visible, ids)).decode(errors="replace")
        return ours.lstrip(" ") == self.text(ids).lstrip(" ")


class _ByteDecoder:
    def __init__(self, visible: Callable[[int], bytes]) -> None:
        self._visible = visible
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._visible(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDecoder:
    """Decodes the tokens since the last two places where the text was whole: the first stretch
    gives the second its context (a decoder drops the space of a word that comes first)."""

    def __init__(
        self, vocabulary: Vocabulary, shown: Set[int] = frozenset(), guard: str = ""
    ) -> None:
        self._vocabulary = vocabulary
        self._shown = shown
        self._guard = guard
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        if token in self._shown:
            raw = self._vocabulary.raw(token).decode(errors="replace")
            return self.finish() + self._guard + raw
        self._pending.append(token)
        text = self._pending_text()
        if text.endswith(_REPLACEMENT) and len(self._pending) < _LONGEST_WAIT:
            return ""
        return self._release(text)

    def finish(self) -> str:
        return self._release(self._pending_text()) if self._pending else ""

    def _pending_text(self) -> str:
        before = len(self._vocabulary.text(self._context)) if self._context else 0
        return self._vocabulary.text(self._context + self._pending)[before:]

    def _release(self, text: str) -> str:
        if text:
            self._context, self._pending = self._pending, []
        elif len(self._pending) >= _LONGEST_WAIT:
            self._pending = []
        return text


class _Spelling(Protocol):
    def __call__(self, piece: str, /) -> bytes: ...


def _spelling(tokenizer: PreTrainedTokenizerBase) -> _Spelling | None:
    """How the tokenizer's pieces spell bytes, judged by its decoder; None: in no way we know."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return None
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    kinds = {step["type"] for step in state.get("decoders", [state])}
    if kinds == {"ByteLevel"}:
        return _byte_level
    if kinds == {"Metaspace"} or (kinds & {"Replace", "ByteFallback"} and "WordPiece" not in kinds):
        return _sentencepiece
    return None


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:  # an added token, written as it is
        return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)])
    return piece.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a byte that prints stands for itself, the others follow from
    U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
