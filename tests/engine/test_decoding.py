from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotswap.engine.decoding import Vocabulary

pytestmark = pytest.mark.torch

TEXTS = [
    "Hello, world!",
    "naïve café / 你好 世界",
    "👩‍🚀🏳️‍🌈 e\u0301 \U0001f1e9\U0001f1ea",
    "  two  spaces\n\n\tand tabs ",
    "the quick brown fox jumps",
]


def byte_level() -> Any:
    from tests.engine.checkpoints import tokenizer

    return tokenizer()


def sentencepiece() -> Any:
    """Pieces with byte fallback, decoded the way Llama 2's are."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    from tests.engine.checkpoints import hf

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz,!.HT", "▁t", "▁th", "▁the", "▁q", "qu"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("q", "u"), ("▁", "q")]
    bpe = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return hf().PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_pieces() -> Any:
    """A decoder that spells in neither of the ways we know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from tests.engine.checkpoints import hf

    words = ["[UNK]", "the", "quick", "fox", "##es", "##ly", "!", ",", "hello"]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return hf().PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def pieces_of(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    decoder = vocabulary.decoder()
    return [*(decoder.push(token) for token in ids), decoder.finish()]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_whole_and_never_in_broken_characters(make: Any, text: str) -> None:
    tokenizer = make()
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = pieces_of(vocabulary, ids)
    assert "".join(pieces).removeprefix(" " if make is sentencepiece else "") == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert b"".join(map(vocabulary.raw, ids)).decode() == "".join(pieces)


def test_words_keep_the_space_that_comes_before_them() -> None:
    vocabulary = Vocabulary(sentencepiece())
    tokenizer = sentencepiece()
    ids = tokenizer.convert_tokens_to_ids(["▁the", "▁q", "u", "▁the"])
    assert pieces_of(vocabulary, ids) == [" the", " q", "u", " the", ""]


def test_a_decoder_of_another_kind_is_asked_again_with_context() -> None:
    tokenizer = word_pieces()
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["hello", ",", "the", "fox", "##es", "quick", "##ly"])
    pieces = pieces_of(vocabulary, ids)
    assert pieces == ["hello", " ,", " the", " fox", "es", " quick", "ly", ""]
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_any_tokens_give_the_text_of_their_bytes(make: Any) -> None:
    vocabulary = Vocabulary(make())
    dice = random.Random(0)
    for _ in range(50):
        ids = [dice.randrange(3, 250) for _ in range(30)]
        expected = b"".join(map(vocabulary.visible, ids)).decode(errors="replace")
        assert "".join(pieces_of(vocabulary, ids)) == expected


def test_special_tokens_and_unknown_ids_leave_no_text() -> None:
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer)
    ids = [tokenizer.eos_token_id, 10_000, *tokenizer.encode("fox"), tokenizer.pad_token_id]
    assert "".join(pieces_of(vocabulary, ids)) == "fox"
    assert vocabulary.raw(tokenizer.eos_token_id) == b"<|im_end|>"
    assert vocabulary.raw(10_000) == b""


def test_an_unfinished_character_is_shown_as_broken_at_the_end() -> None:
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.encode("🚀", add_special_tokens=False)[:-1]
    assert "".join(pieces_of(vocabulary, ids)) == "\N{REPLACEMENT CHARACTER}"


def test_an_added_token_is_shown_as_it_is_written() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>", "übung mit raum"])
    vocabulary = Vocabulary(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["<think>", "übung mit raum"])
    assert pieces_of(vocabulary, ids) == ["<think>", "übung mit raum", ""]


@pytest.mark.parametrize("make", [byte_level, sentencepiece, word_pieces])
def test_special_tokens_that_are_asked_for_are_shown_as_they_are_written(make: Any) -> None:
    from tokenizers import AddedToken

    tokenizer = make()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<|call|>", "<|other|>")])
    vocabulary = Vocabulary(tokenizer)
    mark, other = tokenizer.convert_tokens_to_ids(["<|call|>", "<|other|>"])
    word = tokenizer.encode("the", add_special_tokens=False)
    ids = [*word, mark, other, *word]
    decoder = vocabulary.decoder(frozenset({mark}))
    shown = "".join([*(decoder.push(token) for token in ids), decoder.finish()])
    assert shown.replace(" ", "") == "the<|call|>the"
    assert "".join(pieces_of(vocabulary, ids)).replace(" ", "") == "thethe"
    assert mark in vocabulary.special
    assert vocabulary.added["<|call|>"] == mark


@pytest.fixture(scope="module", params=[byte_level, sentencepiece, word_pieces])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return Vocabulary(request.param())


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 400) | st.integers(0, 12), max_size=60))
def test_any_tokens_give_the_same_text_piece_by_piece_and_at_once(
    vocabulary: Vocabulary, ids: list[int]
) -> None:
    if vocabulary.pieces(1) is None:  # else a token is its bytes
        whole = vocabulary.text(ids)
    else:
        whole = b"".join(map(vocabulary.visible, ids)).decode(errors="replace")
    assert "".join(pieces_of(vocabulary, ids)) == whole


@pytest.mark.parametrize("token", range(12))
def test_each_token_costs_the_same_however_long_the_answer_is(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    """Also of tokens that leave no text, and of bytes that never become a character."""
    looked_at: list[int] = []
    text = vocabulary.text

    def counted(ids: list[int]) -> str:
        looked_at.append(len(ids))
        return text(ids)

    monkeypatch.setattr(vocabulary, "text", counted)
    pieces_of(vocabulary, [token] * 1000)
    assert sum(looked_at) <= 1000 * 64
