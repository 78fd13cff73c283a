"""Draws follow the distribution that they are said to. The loops draw them, because they are many;
that the other samplers draw the same is for test_agreement."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed"),
]

DRAWS = 100_000
WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 11},
    {"top_p": 0.99},
    {"top_p": 0.8},
    {"top_p": 0.1},
    {"min_p": 0.1},
    {"min_p": 0.5, "temperature": 2.0},
    {"top_k": 5, "top_p": 0.9},
    {"top_k": 8, "min_p": 0.02},
    {"top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
    {"temperature": 0.5, "top_k": 6, "top_p": 0.9, "min_p": 0.01},
]


def draws(logits: Any, count: int, **values: Any) -> Any:
    """Tokens drawn from one row of logits for ``count`` positions, each with a seed of its own."""
    import numpy as np
    import torch

    from hotswap.engine.drawing import DrawParams
    from hotswap.engine.sampler import loops
    from hotswap.engine.sampler.looped import _Room
    from hotswap.engine.sampler.settled import settle

    vocab = logits.shape[-1]
    known = settle(DrawParams(**values), vocab)
    floats = np.zeros((count, len(loops.FLOATS)), np.float32)
    floats[:, :3] = known.scale, known.top_p, known.floor
    integers = np.full((count, len(loops.INTEGERS)), -1, np.int64)
    integers[:, loops.TOP_K] = known.top_k
    integers[:, loops.SEED] = np.random.default_rng(1).integers(2**63, size=count)
    integers[:, loops.POSITION] = np.arange(count)
    none, nowhere = np.zeros(0, np.int64), np.zeros(count + 1, np.int64)
    nothing = np.zeros(0, np.float32)
    tokens, own = np.empty(count, np.int64), np.empty(count, np.float32)
    draw: Any = loops.draw
    draw(
        np.repeat(logits.numpy()[None], count, 0), floats, integers,
        nowhere, none, nothing, nothing, nowhere, none, np.zeros((0, 1), np.uint8),
        *_Room(vocab).arrays, tokens, own,
        np.empty((count, 0), np.float32), np.empty((count, 0), np.int64),
    )  # fmt: skip
    return torch.from_numpy(tokens)


@pytest.mark.parametrize("values", WISHES, ids=str)
def test_draws_follow_the_distribution(values: dict[str, Any]) -> None:
    """Chi-square at a level that a right sampler fails once in ten thousand runs; the seeds are
    fixed, so it is passed for good. The expected shares come from transformers' warpers."""
    import torch

    from tests.engine.checkpoints import hf

    vocab = 12
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 2
    warm = (logits / values.get("temperature", 1.0))[None]
    if "top_k" in values:
        warm = hf().TopKLogitsWarper(values["top_k"])(None, warm)
    if "top_p" in values:
        warm = hf().TopPLogitsWarper(values["top_p"])(None, warm)
    if "min_p" in values:
        warm = hf().MinPLogitsWarper(values["min_p"])(None, warm)
    expected = warm[0].double().softmax(-1) * DRAWS
    counted = torch.bincount(draws(logits, DRAWS, **values), minlength=vocab)
    possible = expected > 0
    assert int(counted[~possible].sum()) == 0
    chi_square = float((((counted - expected) ** 2) / expected)[possible].sum())
    freedom = int(possible.sum()) - 1
    assert chi_square <= freedom + 3.72 * math.sqrt(2 * freedom) + 10  # Laurent and Massart (2000)


def test_rare_tokens_are_drawn_as_often_as_they_should() -> None:
    """Of 2,000,000 draws, each of 50 tokens of probability 1e-6 is expected in 2, and all of them
    together in 100."""
    import torch

    count, rare = 2_000_000, 50
    probabilities = torch.tensor([*(rare * [1e-6]), 0.4, 0.6 - rare * 1e-6], dtype=torch.float64)
    logits = probabilities.log().float()
    tokens = draws(logits, count)
    counted = torch.bincount(tokens, minlength=rare + 2)
    assert abs(int(counted[:rare].sum()) - 100) < 4 * math.sqrt(100)
    assert int(counted[:rare].max()) < 11
    assert abs(int(counted[rare]) - 0.4 * count) < 4 * math.sqrt(0.24 * count)
