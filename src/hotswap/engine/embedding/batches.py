"""Which waiting texts are computed together: a pure function of their lengths."""

from __future__ import annotations

from collections.abc import Sequence

_LEAST_SHARE = 0.5
"""Of the longest text's length that the others of its batch have at least: less than half of what
is computed is padding."""


def next_batch(lengths: Sequence[int], budget: int) -> list[int]:
    """The texts to be computed now.

    They are ordered by their lengths and cut into batches; the one with the text that has waited
    longest is next. So nobody is passed over for ever, whatever comes.

    Args:
        lengths: Tokens of the waiting texts, the oldest first; not empty.
        budget: Tokens of a batch at most, padding included. A longer text is a batch of its own.

    Returns:
        Indices into ``lengths``.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[batch[0]] if batch else lengths[index]
        is_full = longest * (len(batch) + 1) > budget
        if batch and (is_full or lengths[index] < longest * _LEAST_SHARE):
            if 0 in batch:
                break
            batch = []
        batch.append(index)
    return batch
