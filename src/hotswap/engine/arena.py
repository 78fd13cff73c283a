"""The tensors of a skeleton in one flat range of memory: on a device, or on the host in its image.

Weights that belong together (queries, keys and values; a gate and what it gates) lie next to each
other, so that they are one weight there. Tensors that are tied lie in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotswap.engine.blueprint import Leaf, with_leaves
from hotswap.engine.forward.linear import Linear
from hotswap.engine.forward.skeleton import Rope, Skeleton

ALIGNMENT = 256
"""Bytes. What kernels ask of the memory that they read is less."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor in host memory, and where it goes."""

    offset: int
    """Bytes from the arena's beginning."""
    tensor: Tensor

    @property
    def content(self) -> Tensor:
        """Its bytes, uint8."""
        return self.tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True, slots=True)
class Layout:
    size: int
    """Bytes."""
    pieces: tuple[Piece, ...]
    """In the order of the arena; they do not overlap."""
    source: Skeleton
    """That was laid out."""
    placed: Skeleton
    """The same with products of one part each, and without memory."""
    offsets: Mapping[int, int]
    """Of the tensors of ``placed``, by their `id`."""

    @classmethod
    def of(cls, skeleton: Skeleton) -> Layout:
        """Skeletons of one model are laid out alike, whatever memory they lie in."""
        places = _Places()
        placed = with_leaves(skeleton, places.find)
        return cls(places.size, tuple(places.pieces), skeleton, placed, places.offsets)

    def place(self, arena: Tensor) -> Skeleton:
        """The skeleton in ``arena``, uint8 [size] on any device."""
        ropes: dict[int, Rope] = {}

        def find(leaf: Leaf) -> Leaf:
            if isinstance(leaf, Linear):
                return Linear([(seen(w), None if b is None else seen(b)) for w, b in leaf.parts])
            if isinstance(leaf, Tensor):
                return seen(leaf)
            if id(leaf) not in ropes:
                ropes[id(leaf)] = Rope(leaf.table.on(arena.device), leaf.size)
            return ropes[id(leaf)]

        def seen(tensor: Tensor) -> Tensor:
            return _seen(arena, self.offsets[id(tensor)], tensor)

        return with_leaves(self.placed, find)

    def views(self, arena: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The tensors that were laid out, each with what takes its place."""
        for piece in self.pieces:
            yield piece.tensor, _seen(arena, piece.offset, piece.tensor)


class _Places:
    """Hands out places, one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self.pieces: list[Piece] = []
        self.offsets: dict[int, int] = {}
        self._taken: dict[tuple[tuple[int, int], ...], int] = {}
        """Offsets of what has a place, by the addresses and sizes of its tensors."""

    def find(self, leaf: Leaf) -> Leaf:
        if isinstance(leaf, Linear):
            weights = [weight for weight, _ in leaf.parts]
            biases = [bias for _, bias in leaf.parts if bias is not None]
            return Linear([(self._joined(weights), self._joined(biases) if biases else None)])
        return self._joined([leaf]) if isinstance(leaf, Tensor) else leaf

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor without memory of the rows of all of them."""
        rows = sum(tensor.shape[0] for tensor in tensors) if len(tensors) > 1 else None
        first = tensors[0]
        shape = first.shape if rows is None else (rows, *first.shape[1:])
        joined = torch.empty(shape, dtype=first.dtype, device="meta")
        self.offsets[id(joined)] = self._offset(tensors)
        return joined

    def _offset(self, tensors: Sequence[Tensor]) -> int:
        key = tuple((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
        if key not in self._taken:
            self._taken[key] = end = -(-self.size // ALIGNMENT) * ALIGNMENT
            for tensor in tensors:
                self.pieces.append(Piece(end, tensor))
                end += tensor.nbytes
            self.size = end
        return self._taken[key]


def _seen(arena: Tensor, offset: int, like: Tensor) -> Tensor:
    """The bytes of ``arena`` from ``offset`` on as a tensor."""
    size = like.numel() * like.element_size()
    return arena[offset : offset + size].view(like.dtype).view(like.shape)
