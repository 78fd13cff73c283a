"""The sampler of CUDA devices, around the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from hotswap.engine.drawing import DrawParams, SamplingRow
from hotswap.engine.sampler import kernels
from hotswap.engine.sampler.drawn import Drawn, Logprobs
from hotswap.engine.sampler.edits import Edits, forbidden_ids
from hotswap.engine.sampler.kernels import LANES, Room, Step, Table
from hotswap.engine.sampler.reference import highest
from hotswap.engine.sampler.settled import settle
from hotswap.engine.transfers import sent

_WARPS = 8
_SPLITS = (1, 8, 32)
"""Few, because each is compiled by itself: 11 s on the first machine that it was measured on."""
_PROGRAMS_PER_MULTIPROCESSOR = 2
_MULTIPROCESSORS_ELSEWHERE = 4
"""What Triton's interpreter is taken for."""
_FEWEST_EDITS = 1024
"""Of a row, 12 bytes each. Graphs are recorded anew when there are more."""
_MOST_LOGPROBS = 128
"""Of a row. The API lets 20 be asked for."""


class FusedSampler:
    """Draws as `hotswap.engine.sampler.reference.ReferenceSampler` does.

    A draw is `prepare`, which tells the device what rows want that it does not know yet, and
    `launch`, which can be part of a CUDA graph: it waits for nothing, allocates nothing, and how it
    is launched depends on no value on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: _Slots | None = None
        self._made = 0
        """How often tables have been."""

    def reserve(self, rows: int, vocab: int) -> None:
        """Have room for ``rows`` rows from the beginning, so that nothing but a row with many edits
        makes tables be made anew."""
        self._room_for(rows, vocab, 0)

    def release(self) -> None:
        """Give the tables' memory back; there are others when they are needed again."""
        self._slots = None

    def compile_for(self, rows: int, vocab: int, dtype: torch.dtype) -> None:
        """What launches for up to ``rows`` rows take where no log-probabilities are wanted, so that
        no answer waits for it. Triton keeps it on the disk for later processes."""
        other, multiprocessors = FusedSampler(self._device), _multiprocessors(self._device)
        fewest: dict[int, int] = {}
        for count in range(1, rows + 1):
            fewest.setdefault(split_count(count, vocab, multiprocessors), count)
        for count in fewest.values():
            other.prepare([SamplingRow(DrawParams(), seed=0) for _ in range(count)], vocab)
            other.launch(torch.zeros(count, vocab, dtype=dtype, device=self._device), None)

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Drawn:
        """One draw for each row of ``logits`` ([rows, vocab], any float type)."""
        if all(row.plain for row in rows):
            return Drawn(highest(logits))
        self.prepare(rows, logits.shape[-1])
        most = _most_logprobs(rows, logits.shape[-1])
        self.launch(logits, most)
        return self._drawn(rows, most)

    def prepare(self, rows: Sequence[SamplingRow], vocab: int) -> int:
        """Have the next launches draw for ``rows``, and for nobody in further rows.

        Returns:
            The number of the tables. When they are made anew, here or in `draw`, there is another
            one, and graphs with a launch are to be recorded anew.
        """
        self._room_for(len(rows), vocab, max(map(_edits_of, rows))).seat(rows)
        return self._made

    def launch(self, logits: Tensor, most: int | None) -> Tensor:
        """A token for each row of ``logits`` ([rows, vocab], neighbouring entries in its last
        dimension), int64 [rows], overwritten by the next launch.

        Args:
            most: of the largest log-probabilities; None: none are needed, not the tokens' either.
        """
        assert self._slots is not None, "prepare first"
        slots = self._slots
        count, vocab = logits.shape
        if vocab != slots.vocab or count > slots.rows:
            raise ValueError(f"logits are {list(logits.shape)}, for {slots.rows} x {slots.vocab}")
        if logits.stride(-1) != 1:
            raise ValueError("logits have gaps in their last dimension")
        splits = split_count(count, vocab, _multiprocessors(self._device))
        given = (logits, logits.stride(0), vocab, slots.table, slots.step, slots.room, slots.edits)
        sizes = {"SPLITS": splits, "TILE": LANES}
        options = {"num_warps": _WARPS, "enable_fp_fusion": False}
        shared, alone = (count, splits), (count,)
        kernels.survey[shared](*given, RAW=False, **sizes, **options)
        kernels.gather[shared](*given, RAW=False, **sizes, **options)
        kernels.check[shared](*given, **sizes, **options)
        kernels.choose[alone](*given, **sizes, **options)
        if most is not None:
            kernels.survey[shared](*given, RAW=True, **sizes, **options)
            kernels.gather[shared](*given, RAW=True, **sizes, **options)
            kernels.tell[alone](*given, most, **sizes, **options)
        return slots.step.tokens[:count]

    def _room_for(self, rows: int, vocab: int, edits: int) -> _Slots:
        slots = self._slots
        if slots is None or not slots.has_room(rows, vocab, edits):
            if slots is not None:
                rows, edits = max(rows, slots.rows), max(edits, slots.edits)
            slots = self._slots = _Slots(rows, vocab, edits, self._device)
            self._made += 1
        return slots

    def _drawn(self, rows: Sequence[SamplingRow], most: int | None) -> Drawn:
        """Copies of the results: the next launch overwrites them."""
        assert self._slots is not None
        step = self._slots.step
        tokens = step.tokens[: len(rows)].clone()
        if most is None:
            return Drawn(tokens)
        asked = {i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None}
        index = sent(list(asked), self._device)
        top, top_ids = (
            tensor.flatten()[: len(rows) * most].view(len(rows), most)[index]
            for tensor in (step.top, step.top_ids)
        )
        logprobs = Logprobs(tuple(asked), tuple(asked.values()), step.own[index], top, top_ids)
        return Drawn(tokens, logprobs)


def split_count(rows: int, vocab: int, multiprocessors: int) -> int:
    """Among how many programs a row is divided: so many that rows times it fill the device, where
    the row is long enough."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // max(rows, 1)
    possible = [splits for splits in _SPLITS if splits <= max(1, vocab // LANES)]
    return next((splits for splits in possible if splits >= wanted), possible[-1])


class _Seat:
    """A row's place in the table, and what the table holds of it."""

    def __init__(self, row: SamplingRow, slot: int, vocab: int) -> None:
        self.row = row
        self.slot = slot
        self.edits = Edits(row, vocab)
        self._settled = settle(row.params, vocab)
        self._forbidden = row.forbidden
        self._allowed: bytes | None = None
        self._vocab, self._words = vocab, -(-vocab // 32)
        self.skipped = self._skipped()

    @property
    def masked(self) -> bool:
        """The table says that there is a mask."""
        return self._allowed is not None

    @property
    def integers(self) -> tuple[int, ...]:
        row, edits = self.row, len(self.edits.ids)
        flags = kernels.EDITED * bool(edits or row.forbidden)
        flags |= kernels.MASKED * (row.allowed is not None)
        logprobs = -1 if row.logprobs is None else row.logprobs
        low, high = _signed(row.seed), _signed(row.seed >> 32)
        return self._settled.top_k, low, high, flags, edits, logprobs

    @property
    def floats(self) -> tuple[float, ...]:
        known = self._settled
        filters = known.scale, known.top_p, known.floor
        return *filters, known.repetition, known.frequency, known.presence

    def count(self, entry: int) -> float:
        """What the table says of an entry."""
        token = int(self.edits.ids[entry])
        return kernels.FORBIDDEN if token in self._forbidden else self.edits.counts[entry].item()

    def counts(self) -> NDArray[np.float32]:
        forbidden = np.isin(self.edits.ids, list(self._forbidden))
        return np.where(forbidden, np.float32(kernels.FORBIDDEN), self.edits.counts)

    def update(self) -> list[int] | None:
        """Take in what changed about the row. The entries that did; None: possibly all."""
        changed = self.edits.update()
        if self.row.forbidden != self._forbidden:
            self._forbidden = self.row.forbidden
            self.skipped = self._skipped()
            return None
        for entry in changed:
            token = int(self.edits.ids[entry])
            self.skipped[token >> 5] |= np.uint32(1 << (token & 31))
        return changed

    def new_mask(self) -> NDArray[np.uint32] | None:
        """What is allowed, as words, where that is not what it was."""
        allowed, before = self.row.allowed, self._allowed
        self._allowed = allowed
        if allowed is None or allowed == before:
            return None
        octets = allowed[: 4 * self._words].ljust(4 * self._words, b"\0")
        return np.frombuffer(octets, np.uint32)

    def _skipped(self) -> NDArray[np.uint32]:
        words = np.zeros(self._words, np.uint32)
        ids = np.concatenate([self.edits.ids, forbidden_ids(self.row, self._vocab)])
        np.bitwise_or.at(words, ids >> 5, np.uint32(1) << (ids & 31).astype(np.uint32))
        return words


class _Slots:
    """The device's tables, and who sits where. A row that is not in a step loses its slot."""

    def __init__(self, rows: int, vocab: int, edits: int, device: torch.device) -> None:
        self.rows = triton.next_power_of_2(rows)
        self.vocab = vocab
        self.edits = triton.next_power_of_2(max(edits, _FEWEST_EDITS))
        self._device = device
        self._seats: dict[int, _Seat] = {}
        words = -(-vocab // 32)
        integers = partial(torch.zeros, dtype=torch.int32, device=device)
        floats = partial(torch.zeros, dtype=torch.float32, device=device)
        masses = partial(torch.zeros, dtype=torch.int64, device=device)
        stretches = self.rows, max(_SPLITS)
        self.table = Table(
            integers=integers(self.rows, kernels.INTEGERS),
            floats=floats(self.rows, kernels.FLOATS),
            ids=integers(self.rows, self.edits),
            biases=floats(self.rows, self.edits),
            counts=floats(self.rows, self.edits),
            skipped=integers(self.rows, words),
            allowed=integers(self.rows, words),
        )
        self._inputs = integers(2, self.rows)
        self.step = Step(
            slots=self._inputs[0],
            positions=self._inputs[1],
            tokens=masses(self.rows),
            own=floats(self.rows),
            top=floats(self.rows, _MOST_LOGPROBS),
            top_ids=masses(self.rows, _MOST_LOGPROBS),
        )
        self.room = Room(
            lanes=integers(self.rows, LANES),
            keys=integers(*stretches),
            holders=integers(*stretches),
            scores=floats(*stretches),
            winners=integers(*stretches),
            winner_keys=integers(*stretches),
            totals=masses(*stretches),
            above=masses(*stretches),
            found=integers(self.rows),
            found_ids=integers(self.rows, kernels.CANDIDATES),
            found_logits=floats(self.rows, kernels.CANDIDATES),
        )

    def has_room(self, rows: int, vocab: int, edits: int) -> bool:
        return rows <= self.rows and vocab == self.vocab and edits <= self.edits

    def seat(self, rows: Sequence[SamplingRow]) -> None:
        """Write down what the next step draws for."""
        try:
            self._seat(rows)
        except BaseException:
            self._seats.clear()  # nobody knows what has been written
            raise

    def _seat(self, rows: Sequence[SamplingRow]) -> None:
        stay = {id(row) for row in rows}
        self._seats = {key: seat for key, seat in self._seats.items() if key in stay}
        taken = {seat.slot for seat in self._seats.values()}
        free = (slot for slot in range(self.rows) if slot not in taken)
        changed: list[_Seat] = []
        single: list[tuple[_Seat, int]] = []
        for row in rows:
            seat = self._seats.get(id(row))
            if seat is None:
                seat = self._seats[id(row)] = _Seat(row, next(free), self.vocab)
                self._write_all(seat)
                changed.append(seat)
            else:
                entries = seat.update()
                if entries is None or len(entries) > 1:
                    self._write_all(seat)
                elif entries:
                    single.append((seat, entries[0]))
                if entries != [] or seat.masked != (row.allowed is not None):
                    changed.append(seat)
            mask = seat.new_mask()
            if mask is not None:
                self.table.allowed[seat.slot].copy_(self._sent(mask.view(np.int32)))
        self._write_numbers(changed)
        self._write_entries(single)
        self._write_inputs(rows)

    def _write_numbers(self, seats: Sequence[_Seat]) -> None:
        if seats:
            slots = sent([seat.slot for seat in seats], self._device)
            integers = sent([seat.integers for seat in seats], self._device, torch.int32)
            floats = sent([seat.floats for seat in seats], self._device, torch.float32)
            self.table.integers[slots], self.table.floats[slots] = integers, floats

    def _write_all(self, seat: _Seat) -> None:
        """A seat's whole list."""
        table, slot, length = self.table, seat.slot, len(seat.edits.ids)
        if length:
            table.ids[slot, :length].copy_(self._sent(seat.edits.ids.astype(np.int32)))
            table.biases[slot, :length].copy_(self._sent(seat.edits.biases))
            table.counts[slot, :length].copy_(self._sent(seat.counts()))
        if length or seat.row.forbidden:
            table.skipped[slot].copy_(self._sent(seat.skipped.view(np.int32)))

    def _write_entries(self, changes: Sequence[tuple[_Seat, int]]) -> None:
        """One entry of each of some seats' lists."""
        if not changes:
            return
        places, values = [], []
        for seat, entry in changes:
            token = int(seat.edits.ids[entry])
            word = int(seat.skipped[token >> 5])
            places.append((seat.slot, entry, token, token >> 5, _signed(word)))
            values.append((float(seat.edits.biases[entry]), seat.count(entry)))
        slots, entries, tokens, spots, words = sent(places, self._device, torch.int64).T
        biases, counts = sent(values, self._device, torch.float32).T
        self.table.ids[slots, entries] = tokens.int()
        self.table.biases[slots, entries] = biases
        self.table.counts[slots, entries] = counts
        self.table.skipped[slots, spots] = words.int()

    def _write_inputs(self, rows: Sequence[SamplingRow]) -> None:
        inputs = np.zeros((2, self.rows), np.int32)
        inputs[0, : len(rows)] = [self._seats[id(row)].slot for row in rows]
        inputs[0, len(rows) :] = -1
        inputs[1, : len(rows)] = [_signed(row.position) for row in rows]
        self._inputs.copy_(self._sent(inputs))

    def _sent(self, values: NDArray[np.generic]) -> Tensor:
        return sent(values, self._device)


def _signed(word: int) -> int:
    """The lowest 32 bits, as an int32 holds them."""
    word &= 0xFFFFFFFF
    return word - (word >> 31 << 32)


def _edits_of(row: SamplingRow) -> int:
    """At most so many entries."""
    return len(row.params.logit_bias) + len(row.history.ids)


def _most_logprobs(rows: Sequence[SamplingRow], vocab: int) -> int | None:
    """None: nobody asks for log-probabilities."""
    asked = [row.logprobs for row in rows if row.logprobs is not None]
    return min(max(asked), vocab, _MOST_LOGPROBS) if asked else None


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _MULTIPROCESSORS_ELSEWHERE
    return torch.cuda.get_device_properties(device).multi_processor_count
