"""Keys and values of all sequences: one pool per layer, divided into blocks."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotswap.engine.blocks import BLOCK_TOKENS, Run
from hotswap.engine.device_memory import DeviceMemory, brought
from hotswap.engine.pages import reserved

# Linux only.
_NO_HUGE_PAGES = getattr(mmap, "MADV_NOHUGEPAGE", None)
_GIVE_BACK = getattr(mmap, "MADV_DONTNEED", None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the keys or the values of a layer are among the copies."""

    begin: int
    """Bytes from the beginning."""
    shape: tuple[int, int, int]
    """[groups, slots, size]"""
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape) * self.dtype.itemsize

    def of(self, content: Tensor) -> Tensor:
        return content[self.begin : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class KVCopies:
    """Keys and values of some blocks of all layers: one piece of host memory, because each copy
    from a device or to it is waited for."""

    content: Tensor
    """uint8"""
    layers: Mapping[int, tuple[_Part, _Part]]
    blocks: int
    """As many of each layer."""

    @property
    def bytes(self) -> int:
        return self.content.nbytes


class KVPool:
    """For each layer keys [groups, slots, size] and values [groups, slots, value size]; block b
    is the slots from ``b * BLOCK_TOKENS`` on. What was never written is zero, so that it may be
    read where it does not count."""

    def __init__(self, device: torch.device, blocks: int) -> None:
        self._device = device
        self.slots = blocks * BLOCK_TOKENS
        """Tokens there is room for."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        """What lies under a tensor in host memory, by its address."""

    @property
    def token_bytes(self) -> int:
        """Of a token, in the layers that have been used."""
        return sum(t.nbytes // t.shape[1] for pair in self._layers.values() for t in pair)

    def resize(self, blocks: int) -> None:
        """Another number of blocks; what is in them is lost."""
        self.slots = blocks * BLOCK_TOKENS
        self._mapped.clear()
        for index, (keys, values) in list(self._layers.items()):
            del self._layers[index]
            self._layers[index] = self._made(keys), self._made(values)

    def grow(self, blocks: int) -> None:
        """More blocks; what is in those that there are stays. Layer after layer, so that hardly
        more memory is taken meanwhile than afterwards.

        Raises:
            torch.OutOfMemoryError: some layers may have more room than they had, and none less.
        """
        before, self.slots = self.slots, blocks * BLOCK_TOKENS
        try:
            for index, (keys, values) in self._layers.items():
                grown = self._grown(keys)
                self._layers[index] = grown, values  # what was moved is not where it was
                self._layers[index] = grown, self._grown(values)
        except BaseException:
            self.slots = before
            raise

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The pools of a layer whose keys and values look like these ([tokens, groups, size])."""
        found = self._layers.get(index)
        if found is None:
            found = self._made(keys.transpose(0, 1)), self._made(values.transpose(0, 1))
            self._layers[index] = found
        return found

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, from the first of each pair to the second. All are read before any is
        written."""
        sources, targets = torch.tensor(pairs, device=self._device).unbind(1)
        for layer in self._layers.values():
            for pool in layer:
                blocks = _in_blocks(pool)
                blocks.index_copy_(1, targets, blocks.index_select(1, sources))

    def copies(self, blocks: Sequence[int]) -> KVCopies:
        """What lies in ``blocks``, in this order.

        Raises:
            torch.OutOfMemoryError: the device has no room to gather it.
            OSError: the host has none.
        """
        chosen = torch.tensor(blocks, device=self._device)
        end, layers = 0, dict[int, tuple[_Part, _Part]]()
        for index, (keys, values) in self._layers.items():
            of_keys = _part(end, keys, len(blocks))
            of_values = _part(of_keys.end, values, len(blocks))
            layers[index], end = (of_keys, of_values), of_values.end
        gathered = torch.empty(end, dtype=torch.uint8, device=self._device)
        for index, parts in layers.items():
            for part, pool in zip(parts, self._layers[index], strict=True):
                out = _in_blocks(part.of(gathered))
                torch.index_select(_in_blocks(pool), 1, chosen, out=out)
        if self._device.type == "cpu":
            return KVCopies(gathered, layers, len(blocks))
        return KVCopies(reserved(end).copy_(gathered), layers, len(blocks))

    def restore(self, blocks: Sequence[int], copies: KVCopies, memory: DeviceMemory) -> None:
        """Put copies of as many blocks of such a pool into ``blocks``; ``memory``: of the device.

        Raises:
            torch.OutOfMemoryError
        """
        chosen = torch.tensor(blocks, device=self._device)
        content = brought(memory, copies.content)
        for index, (of_keys, of_values) in copies.layers.items():
            keys, values = of_keys.of(content), of_values.of(content)
            pools = self.layer(index, keys.transpose(0, 1), values.transpose(0, 1))
            for pool, copy in zip(pools, (keys, values), strict=True):
                _in_blocks(pool).index_copy_(1, chosen, _in_blocks(copy))

    def vacate(self, runs: Sequence[Run]) -> None:
        """Give the host memory of blocks back, as far as it is whole pages; these are zero again.
        On another device the pool is there anyway."""
        for pool in (pool for layer in self._layers.values() for pool in layer):
            memory = self._mapped.get(pool.data_ptr())
            if memory is None:
                continue
            block = BLOCK_TOKENS * pool.shape[2] * pool.element_size()
            group = self.slots // BLOCK_TOKENS * block
            for start in range(0, pool.nbytes, group):
                for first, count in runs:
                    _give_back(memory, start + first * block, count * block)

    def close(self) -> None:
        """Free it all, on a device even where a stray reference to it lives."""
        if self._device.type != "cpu":
            for pool in (pool for layer in self._layers.values() for pool in layer):
                pool.untyped_storage().resize_(0)
        self._layers.clear()
        self._mapped.clear()

    def _grown(self, pool: Tensor) -> Tensor:
        if pool.shape[1] >= self.slots:  # by a growth that failed half way
            return pool
        grown = self._made(pool)
        grown[:, : pool.shape[1]] = pool
        self._mapped.pop(pool.data_ptr(), None)
        if self._device.type != "cpu":
            pool.untyped_storage().resize_(0)
        return grown

    def _made(self, like: Tensor) -> Tensor:
        shape = like.shape[0], self.slots, like.shape[2]
        if self._device.type != "cpu":
            return torch.zeros(shape, dtype=like.dtype, device=self._device)
        # Fresh private pages are zero and take no memory before they are written. Huge ones would:
        # a sequence is a small stretch in the range of every head.
        size = max(1, math.prod(shape)) * like.element_size()
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if _NO_HUGE_PAGES is not None:
            memory.madvise(_NO_HUGE_PAGES)
        made = torch.frombuffer(memory, dtype=like.dtype)[: math.prod(shape)].view(shape)
        self._mapped[made.data_ptr()] = memory
        return made


def _in_blocks(pool: Tensor) -> Tensor:
    """[groups, blocks, numbers of a block]"""
    return pool.view(pool.shape[0], -1, BLOCK_TOKENS * pool.shape[2])


def _part(begin: int, pool: Tensor, blocks: int) -> _Part:
    return _Part(begin, (pool.shape[0], blocks * BLOCK_TOKENS, pool.shape[2]), pool.dtype)


def _give_back(memory: mmap.mmap, start: int, size: int) -> None:
    """The pages that lie within a range of bytes."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if _GIVE_BACK is not None and first < end:
        memory.madvise(_GIVE_BACK, first, end - first)
