"""Guided output: masks of what the next token of an answer may be, by llguidance.

What a model needs for that is made of its tokenizer once, when the first guide comes. Guides are
compiled in worker threads and the compiled ones kept; a sequence gets a matcher of its own, which
the device thread moves on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from hotswap.contracts.requests import Guide
from hotswap.engine.grammar import Preamble, WrittenPreamble, grammar_of, refuse
from hotswap.errors import InvalidRequest, Overloaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hotswap.engine.decoding import Vocabulary

_log = logging.getLogger(__name__)

_COMPILE_TIME_S = 5.0
_COMPILING = 2
"""Guides of a model that are compiled at the same time, those that nobody waits for any more
included."""
_STACK_BYTES = 256 << 20
"""Of the thread that compiles: references are followed by calls, 8 to 16 kB each, and the longest
guide has a few thousand. What is not used takes no memory."""
_SLOWEST_MASK_S = 1.0
"""All answers stand still meanwhile; one that took longer is not moved on again."""
_MOST_LEXER_STATES = 50_000
"""Of one sequence; one takes 1 to 2 kB."""
_UNKNOWN_WORDS = re.compile(r"Unimplemented keys: \[([^\]]*)\]")
_NO_ANSWER = "it allows no answer, or only an empty one."
_NO_TEXTS = (
    "The tokens of this model do not stand for texts of their own, so its answers cannot be guided."
)

_stack_size = threading.Lock()
"""It can only be set for all threads that are started from then on."""


_Key = tuple[str, str, Preamble | WrittenPreamble | None, str | None]


class CompilingTooSlow(InvalidRequest):
    """Nobody knows yet whether the guide can be used."""


class Guides:
    """Compiles guides for one model. Safe to share between threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        vocab_size: int,
        end_ids: frozenset[int],
        size: int = 64,
    ) -> None:
        """``size``: compiled guides that are kept."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._size = size
        self._tokens: _Tokens | str | None = None
        """A text: why there are none; None: nobody has asked yet."""
        self._making = threading.Lock()
        self._kept: OrderedDict[_Key, CompiledGuide] = OrderedDict()
        self._lock = threading.Lock()
        self._compiling = threading.Semaphore(_COMPILING)

    def compile(
        self,
        guide: Guide,
        preamble: Preamble | WrittenPreamble | None = None,
        calls: str | None = None,
    ) -> CompiledGuide:
        """Takes milliseconds, or up to some seconds: call it from a worker thread.

        Args:
            preamble: what may come before that which the guide is for.
            calls: a grammar of what may stand in its place.

        Raises:
            InvalidRequest: it is no guide, or asks for too much.
            CompilingTooSlow
            Overloaded
        """
        key = guide.kind, guide.source, preamble, calls
        tokens = self._made(guide)
        if (known := self._find(key)) is not None:
            return known
        source = grammar_of(guide, preamble, tokens.markers, calls)
        self._wait_for_turn(_COMPILE_TIME_S)
        if (known := self._find(key)) is not None:  # so that ten requests compile it once
            self._compiling.release()
            return known
        grammar = self._compile(guide, source, tokens, _COMPILE_TIME_S)
        with self._lock:
            self._kept[key] = grammar
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return grammar

    def refusal(self, guides: Iterable[Guide]) -> InvalidRequest | None:
        """Why the first of ``guides`` that cannot be used cannot. They are compiled in the time
        that one may take, and none is kept; None: none was refused by then."""
        end = time.monotonic() + _COMPILE_TIME_S
        for guide in guides:
            if time.monotonic() >= end:
                break
            try:
                tokens = self._made(guide)
                source = grammar_of(guide, None, tokens.markers)
                self._wait_for_turn(end - time.monotonic())
                self._compile(guide, source, tokens, end - time.monotonic())
            except (CompilingTooSlow, Overloaded):
                return None
            except InvalidRequest as error:
                return error
        return None

    def _wait_for_turn(self, seconds: float) -> None:
        """Whoever has one must call `_compile`, which gives it back."""
        if not self._compiling.acquire(timeout=max(0.0, seconds)):
            raise Overloaded("Too many guides are being compiled.")

    def _find(self, key: _Key) -> CompiledGuide | None:
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
        return known

    def _compile(self, guide: Guide, source: str, tokens: _Tokens, seconds: float) -> CompiledGuide:
        compiled: Future[LLMatcher] = Future()

        def work() -> None:
            try:
                matcher = LLMatcher(tokens.tokenizer, source, log_level=0, limits=_limits())
                if not matcher.is_error():
                    matcher.compute_bitmask()  # copies need not find out again how it begins
                compiled.set_result(matcher)
            except BaseException as error:  # a panic in Rust is no Exception
                compiled.set_exception(error)
            finally:
                self._compiling.release()

        thread = threading.Thread(target=work, name="guide", daemon=True)
        try:
            with _stack_size:
                before = threading.stack_size(_STACK_BYTES)
                try:
                    thread.start()
                finally:
                    threading.stack_size(before)
        except BaseException:
            self._compiling.release()
            raise
        try:
            failure = compiled.exception(max(0.0, seconds))
        except TimeoutError:
            slow = f"compiling it takes longer than {_COMPILE_TIME_S:g} s."
            refuse(guide, slow, CompilingTooSlow)
        if failure is not None:
            _log.warning("A %s cannot be compiled", guide.kind, exc_info=failure)
            refuse(guide, f"it cannot be compiled: {_reason(str(failure), guide)}")
        matcher = compiled.result()
        if matcher.is_error():
            refuse(guide, _reason(matcher.get_error(), guide))
        grammar = CompiledGuide(matcher, self._vocab_size, guide.param)
        beginning = grammar.matcher()
        if beginning.failed or beginning.complete:
            refuse(guide, _NO_ANSWER)
        return grammar

    def _made(self, guide: Guide) -> _Tokens:
        with self._making:
            if self._tokens is None:
                self._tokens = self._make()
        if isinstance(self._tokens, str):
            raise InvalidRequest(self._tokens, param=guide.param)
        return self._tokens

    def _make(self) -> _Tokens | str:
        """0.9 to 1.6 s and 47 MB for 151,936 tokens. A text: why that cannot be."""
        count = min(self._vocab_size, len(self._tokenizer))
        pieces = self._vocabulary.pieces(count)
        if pieces is None:
            return _NO_TEXTS
        added = {
            token: entry.content
            for token, entry in self._tokenizer.added_tokens_decoder.items()
            if token < count
        }
        special = {t for t in self._vocabulary.special | self._end_ids if t < count}
        special |= {t for t, text in added.items() if text.startswith("<") and text.endswith(">")}
        for token in special & added.keys():
            pieces[token] = added[token].encode()
        pieces += [b""] * (-(-self._vocab_size // 8) * 8 - count)
        markers = {pieces[token].decode(errors="replace"): token for token in special}
        try:
            tokenizer = LLTokenizer(TokenizerWrapper(_Pieces(pieces, sorted(special))))
        except Exception as error:  # whatever the library makes of a strange vocabulary
            _log.warning("No answers can be guided with this tokenizer", exc_info=True)
            return f"The tokens of this model cannot be used to guide: {_reason(str(error))}"
        return _Tokens(tokenizer, markers)


@dataclass(frozen=True, slots=True)
class _Tokens:
    tokenizer: LLTokenizer
    markers: Mapping[str, int]
    """Special tokens: their texts, which nothing else spells for llguidance, and their ids."""


class _Pieces:
    """What llguidance is told of a tokenizer. Its end token is one that no model has, behind all
    others: which tokens may end an answer differs from request to request."""

    eos_token_id = None
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special

    def __call__(self, _: str | bytes) -> list[int]:
        """Without forcing, nothing is tokenized."""
        return []


def _reason(error: str, guide: Guide | None = None) -> str:
    """Why a guide did not compile, in one line; without its source where that is not the
    client's."""
    if error.startswith("NoExtension"):
        return _NO_ANSWER
    told = error.partition("\n")[0] if guide is not None and guide.subject else error
    line = _UNKNOWN_WORDS.sub(r"the keywords \1 are not supported.", " ".join(told.split()))
    return line.partition(" Enable 'coerce_one_of'")[0][:300]  # nobody can, here


def _limits() -> LLParserLimits:
    return LLParserLimits(max_lexer_states=_MOST_LEXER_STATES, verbose_errors=False)


class CompiledGuide:
    """A compiled guide; any number of sequences may be guided by it at the same time."""

    def __init__(self, compiled: LLMatcher, vocab_size: int, param: str) -> None:
        self.param = param
        self._compiled = compiled
        self._octets = -(-vocab_size // 8)

    def matcher(self) -> Matcher:
        """At the beginning of an answer. Takes some microseconds."""
        return Matcher(self._compiled.deep_copy(), self._octets, self.param)


class Matcher:
    """How far one answer has come in its grammar, and what may follow. Owned by one thread."""

    __slots__ = ("_mask", "_matcher", "_octets", "accepting", "failed", "param")

    def __init__(self, matcher: LLMatcher, octets: int, param: str) -> None:
        self.param = param
        """The field that the guide came in."""
        self.failed = False
        """What may follow could not be found out, or took too long; nothing more can be said."""
        self.accepting = False
        """The answer may end here."""
        self._matcher = matcher
        self._octets = octets
        self._mask = b""
        """What may follow besides the end."""
        self._look()

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end."""
        return self.accepting and not self._mask

    def advance(self, token: int) -> None:
        """The answer goes on with ``token``, which was allowed."""
        self._matcher.consume_token(token)
        self._look()

    def allowed(self, end_ids: frozenset[int], *, may_end: bool) -> bytes:
        """What may follow, as `hotswap.engine.drawing.SamplingRow.allowed` has it. An answer that
        may not end yet goes on where that is possible."""
        mask = bytearray(self._mask.ljust(self._octets, b"\0"))
        for token in end_ids:
            if token >= 8 * self._octets:  # a tokenizer may know tokens that the model does not
                continue
            if not may_end:
                mask[token >> 3] &= ~(1 << (token & 7))
            elif self.accepting:
                mask[token >> 3] |= 1 << (token & 7)
        return bytes(mask) if may_end or any(mask) else self.allowed(end_ids, may_end=True)

    def _look(self) -> None:
        start = time.perf_counter()
        mask = self._matcher.compute_bitmask()[: self._octets]
        slow = time.perf_counter() - start > _SLOWEST_MASK_S
        self._mask = mask if mask.count(0) < len(mask) else b""
        self.accepting = self._matcher.is_accepting()
        stuck = not self._mask and not self.accepting
        self.failed = slow or stuck or self._matcher.is_error()
