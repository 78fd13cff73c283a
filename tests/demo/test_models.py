"""The bundled models answer as their cards promise, through the saved folders."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.demo import MODELS_DIR
from tools.demo_models import chatter, sums, tales

if TYPE_CHECKING:
    from tools.demo_models.evaluation import Chat

pytestmark = pytest.mark.torch

LONGEST_PROMPT = 400
"""160 characters are at most 640 bytes, each a token at worst; plain text stays far below."""

TOOL = {"type": "function", "function": {"name": "search", "description": "Searches the web."}}


@cache
def chat(name: str) -> Chat:
    from tools.demo_models.evaluation import Chat

    return Chat(MODELS_DIR / "hotswap" / name)


def prompt(name: str, messages: list[dict[str, Any]], **options: Any) -> str:
    text = chat(name).tokenizer.apply_chat_template(
        messages, tokenize=False, **{"add_generation_prompt": True, **options}
    )
    assert isinstance(text, str)
    return text


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_sums_are_exact() -> None:
    examples = sums.held_out_examples(40, seed=7)
    replies = chat("sums").answer([example.prompt for example in examples])
    right = [reply.text == example.answer for example, reply in zip(examples, replies, strict=True)]
    assert sum(right) >= 38
    assert all(reply.ended for reply in replies)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 45 + 27?", "45 + 27 = 72"),
        ("Subtract 13 from 90", "90 - 13 = 77"),
        ("and 12 - 40?", "12 - 40 = -28"),
        ("450 + 3", sums.OUT_OF_RANGE),
        ("hi", sums.HELLO),
    ],
)
def test_sums_in_plain_words(question: str, answer: str) -> None:
    assert chat("sums").answer([question])[0].text == answer


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tales_name_what_was_asked_for(temperature: float) -> None:
    import torch

    torch.manual_seed(0)
    requests = tales.held_out_requests(10, seed=7)
    replies = chat("tales").answer([text for text, _ in requests], temperature=temperature)
    named = [
        tales.names_subject(reply.text, subject)
        for reply, (_, subject) in zip(replies, requests, strict=True)
    ]
    repeated = [
        tales.repeats_phrase(reply.text, subject)
        for reply, (_, subject) in zip(replies, requests, strict=True)
    ]
    assert sum(named) >= 9
    assert sum(repeated) >= 8
    assert sum(reply.ended for reply in replies) >= 9


@pytest.mark.parametrize("name", ["sums", "tales"])
@pytest.mark.parametrize(
    ("task", "key", "kind"),
    [
        (chatter.TITLE_TASKS[0], "title", str),
        (chatter.TAG_TASKS[0], "tags", list),
        (chatter.FOLLOW_UP_TASKS[0], "follow_ups", list),
    ],
)
def test_background_tasks_of_open_webui(name: str, task: str, key: str, kind: type) -> None:
    history = "\n### Chat History:\n<chat_history>\nUSER: hi\nASSISTANT: Hello!\n</chat_history>"
    answer = json.loads(chat(name).answer([task + history])[0].text)
    assert isinstance(answer[key], kind)
    assert answer[key]


@pytest.mark.parametrize("name", ["sums", "tales"])
class TestTemplate:
    def test_tools_and_system_messages_are_left_out(self, name: str) -> None:
        plain = prompt(name, [user("hello")])
        assert prompt(name, [user("hello")], tools=[TOOL] * 100) == plain
        assert prompt(name, [{"role": "system", "content": "x" * 9999}, user("hello")]) == plain

    def test_prompts_are_short(self, name: str) -> None:
        tokens = chat(name).tokenizer(prompt(name, [user("Hello there, my friend. " * 500)]))
        assert len(tokens["input_ids"]) <= LONGEST_PROMPT

    def test_only_the_last_user_message_counts(self, name: str) -> None:
        messages = [user("hi"), {"role": "assistant", "content": "Hello!"}, user("2 + 2")]
        assert prompt(name, messages) == prompt(name, [user("2 + 2")])

    def test_content_may_come_in_parts(self, name: str) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        parts = [{"type": "text", "text": "2 + 2"}, image]
        assert prompt(name, [user(parts)]) == prompt(name, [user("2 + 2")])

    def test_final_answer_can_be_continued(self, name: str) -> None:
        messages = [user("2 + 2"), {"role": "assistant", "content": "2 + 2"}]
        text = prompt(name, messages, add_generation_prompt=False, continue_final_message=True)
        assert text.endswith("<|im_start|>assistant\n2 + 2")

    def test_any_text_comes_back_from_its_tokens(self, name: str) -> None:
        tokenizer = chat(name).tokenizer
        for text in ("Grüße aus München", "日本語 🐉", "\x00\x7f", "1234567890", " two  spaces "):
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_digits_stand_alone(self, name: str) -> None:
        assert chat(name).tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
