"""What a row's bias and penalties change, as one list without repetitions, kept up to date."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hotswap.engine.drawing import SamplingRow

_UNSEEN = -1.0


class Edits:
    """The tokens whose logits a row changes: those of its bias, then those of its history.

    Raises:
        ValueError: there is no such token; loops and kernels would write beside the logits.
    """

    def __init__(self, row: SamplingRow, vocab: int) -> None:
        bias = row.params.logit_bias
        for token in bias:
            _expect_token(token, vocab)
        self._vocab = vocab
        self._row = row
        self._entries: list[int] = []
        """Of each place of the history."""
        self._counted = 0
        """Tokens of the answer that are."""
        self._entry_of_bias = {token: entry for entry, token in enumerate(bias)}
        self._length = len(bias)
        self._ids = np.fromiter(bias, np.int64, len(bias))
        self._biases = np.fromiter(bias.values(), np.float32, len(bias))
        self._counts = np.full(len(bias), _UNSEEN, np.float32)
        self.update()

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: self._length]

    @property
    def biases(self) -> NDArray[np.float32]:
        return self._biases[: self._length]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each is in the answer; -1: neither there nor in the prompt."""
        return self._counts[: self._length]

    def update(self) -> list[int]:
        """Take in what the row has seen since. The entries that changed."""
        history = self._row.history
        changed = [self._enter(token) for token in history.ids[len(self._entries) :]]
        touched = [self._entries[place] for place in history.touched[self._counted :]]
        for entry in touched:
            self._counts[entry] += 1
        self._counted += len(touched)
        return changed + touched

    def _enter(self, token: int) -> int:
        """A token is seen for the first time."""
        _expect_token(token, self._vocab)
        entry = self._entry_of_bias.get(token)
        if entry is None:
            entry = self._length
            self._make_room()
            self._length += 1
            self._ids[entry], self._biases[entry] = token, 0.0
        self._counts[entry] = 0.0
        self._entries.append(entry)
        return entry

    def _make_room(self) -> None:
        if self._length == len(self._ids):
            more = max(16, self._length)
            self._ids = np.append(self._ids, np.zeros(more, np.int64))
            self._biases = np.append(self._biases, np.zeros(more, np.float32))
            self._counts = np.append(self._counts, np.zeros(more, np.float32))


def forbidden_ids(row: SamplingRow, vocab: int) -> NDArray[np.int64]:
    """Those that there are logits for: an end of text may be beyond them, and is never drawn."""
    return np.array([token for token in row.forbidden if 0 <= token < vocab], np.int64)


def _expect_token(token: int, vocab: int) -> None:
    if not 0 <= token < vocab:
        raise ValueError(f"token {token} is none of {vocab}")
