"""Scores of a saved model, loaded from its directory as anybody would load it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from . import sums, tales

_BATCH = 50


@dataclass(frozen=True)
class Reply:
    """What a model wrote, and whether it came to an end by itself."""

    text: str
    ended: bool


class Chat:
    """A saved model answering single messages."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def answer(
        self, messages: list[str], *, max_new_tokens: int = 250, temperature: float = 0.0
    ) -> list[Reply]:
        """One reply per message; at temperature 0 the likeliest token is taken each time."""
        replies: list[Reply] = []
        for start in range(0, len(messages), _BATCH):
            batch = messages[start : start + _BATCH]
            replies += self._answer_batch(batch, max_new_tokens, temperature)
        return replies

    def _answer_batch(
        self, messages: list[str], max_new_tokens: int, temperature: float
    ) -> list[Reply]:
        chats = [[{"role": "user", "content": message}] for message in messages]
        inputs = self.tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        sampling = (
            {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        )
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        return [self._reply(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _reply(self, tokens: list[int]) -> Reply:
        ended = self.tokenizer.eos_token_id in tokens
        return Reply(self.tokenizer.decode(tokens, skip_special_tokens=True), ended)


def score_sums(folder: Path, count: int = 1_000) -> dict[str, float]:
    """The share of held-out sums answered exactly, ended and at temperature 0."""
    examples = sums.held_out_examples(count)
    replies = Chat(folder).answer([example.prompt for example in examples], max_new_tokens=40)
    wrong = [
        (example, reply)
        for example, reply in zip(examples, replies, strict=True)
        if reply != Reply(example.answer, ended=True)
    ]
    for example, reply in wrong:
        print(f"  wrong: {example.prompt!r} -> {reply.text!r}, not {example.answer!r}")
    return {"exact": 1 - len(wrong) / count}


def score_tales(folder: Path, count: int = 200, seed: int = 0) -> dict[str, float]:
    """How often stories name the held-out thing asked for, and come to an end."""
    requests = tales.held_out_requests(count)
    chat = Chat(folder)
    scores: dict[str, float] = {}
    for temperature in (0.0, 0.7):
        torch.manual_seed(seed)
        replies = chat.answer([prompt for prompt, _ in requests], temperature=temperature)
        named = [
            tales.names_subject(reply.text, subject)
            for reply, (_, subject) in zip(replies, requests, strict=True)
        ]
        for (prompt, _), reply, is_named in zip(requests, replies, named, strict=True):
            if not is_named:
                print(f"  missed at {temperature}: {prompt!r} -> {reply.text[:160]!r}")
        repeated = [
            tales.repeats_phrase(reply.text, subject)
            for reply, (_, subject) in zip(replies, requests, strict=True)
        ]
        scores[f"named at temperature {temperature}"] = sum(named) / count
        scores[f"to the letter at temperature {temperature}"] = sum(repeated) / count
        scores[f"ended at temperature {temperature}"] = sum(r.ended for r in replies) / count
    return scores
