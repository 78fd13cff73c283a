from __future__ import annotations

import random

import pytest

from hotswap.engine.embedding.batches import next_batch


@pytest.mark.parametrize(
    ("lengths", "budget", "batch"),
    [
        ([5], 10, {0}),
        ([50], 10, {0}),
        ([5, 5], 10, {0, 1}),
        ([5, 5, 5], 10, {0, 1}),
        ([3, 3, 90], 100, {0, 1}),
        ([90, 3, 3], 100, {0}),
        ([4, 100, 8, 4], 100, {0, 2, 3}),
        ([10, 9, 8, 7], 20, {0, 1}),
        ([7, 8, 9, 10], 20, {0, 1}),
    ],
)
def test_texts_of_like_lengths_are_computed_together(
    lengths: list[int], budget: int, batch: set[int]
) -> None:
    assert set(next_batch(lengths, budget)) == batch


def test_no_batch_is_too_large_or_mostly_padding_and_the_oldest_text_is_in_the_first() -> None:
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randint(1, 200) for _ in range(draw.randint(1, 40))]
        batch = next_batch(lengths, 300)
        longest = max(lengths[i] for i in batch)
        assert 0 in batch
        assert len(set(batch)) == len(batch)
        assert len(batch) == 1 or longest * len(batch) <= 300
        assert all(lengths[i] * 2 >= longest for i in batch)
