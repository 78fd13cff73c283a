"""A plain training loop for models of about a million parameters on one CPU thread."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .example import Example

MakeExample = Callable[[Random], Example]
Encoded = tuple[list[int], int]
"""Token ids and how many of them are the prompt, which is not learned."""

POOL_BATCHES = 16
WARM_UP_STEPS = 100
LOG_EVERY = 100
_IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """The size of a model and how it is trained."""

    layers: int
    intermediate: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    steps: int


def train(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, make_example: MakeExample, seed: int
) -> Qwen3ForCausalLM:
    """A model trained from scratch on examples that are generated as it goes."""
    make_deterministic(seed)
    model = new_model(recipe, tokenizer)
    optimizer = _optimizer(model, recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    stream = _batches(recipe, tokenizer, make_example, Random(seed))
    started, losses = time.monotonic(), []
    model.train()
    for step in range(1, recipe.steps + 1):
        loss = answer_loss(model, *next(stream))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % LOG_EVERY == 0:
            print(f"step {step} loss {sum(losses) / len(losses):.4f}"
                  f" after {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
            losses.clear()
    return model


def make_deterministic(seed: int) -> None:
    """One thread: the sums of floats then have one order, whatever the machine's load."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model of the Qwen3 architecture."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,  # chat UIs reserve 1,000 tokens for a title
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def answer_loss(model: Qwen3ForCausalLM, tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean loss over answer tokens.

    Padding lies to the right, out of sight of a causal model, so no attention
    mask is needed; only the positions that count go through the output layer.
    """
    hidden: Tensor = model.model(tokens).last_hidden_state
    counted = targets != _IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[counted]), targets[counted])


def encode(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[Encoded]:
    """Examples as the chat template renders them, with the end-of-answer token."""
    chats = [[{"role": "user", "content": example.prompt}] for example in examples]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    answers = [example.answer + str(tokenizer.eos_token) for example in examples]
    heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    tails = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [(head + tail, len(head)) for head, tail in zip(heads, tails, strict=True)]


def _optimizer(model: Qwen3ForCausalLM, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that spares the norms: decayed query and key norms would blur attention,
    and copying a word needs it sharp."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))


def _rate(step: int, recipe: Recipe) -> float:
    """A short linear warm-up, then a cosine down to nothing."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return recipe.learning_rate * warm_up * (1 + math.cos(math.pi * step / recipe.steps)) / 2


def _batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, make_example: MakeExample, rng: Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of examples of similar length, which keeps padding low."""
    size = recipe.batch_size
    while True:
        examples = [make_example(rng) for _ in range(size * POOL_BATCHES)]
        encoded = sorted(encode(tokenizer, examples), key=lambda item: len(item[0]))
        starts = list(range(0, len(encoded), size))
        rng.shuffle(starts)
        for start in starts:
            yield _padded(encoded[start : start + size], tokenizer.pad_token_id)


def _padded(batch: list[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """Input tokens and the target of each: the next token where it belongs to the answer."""
    width = max(len(tokens) for tokens, _ in batch) - 1
    inputs = torch.full((len(batch), width), pad)
    targets = torch.full((len(batch), width), _IGNORED)
    for row, (tokens, prompt_length) in enumerate(batch):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        targets[row, prompt_length - 1 : len(tokens) - 1] = torch.tensor(tokens[prompt_length:])
    return inputs, targets
