"""Packs the weights of a model little by little, between and after its answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import Tensor

from hotswap.engine.device import free_host_bytes, is_out_of_memory
from hotswap.engine.forward.linear import Linear, tune
from hotswap.engine.forward.skeleton import Skeleton
from hotswap.engine.mapped import drop_file_pages

_log = logging.getLogger(__name__)

_RESERVE_BYTES = 256 << 20
"""Host memory that packing leaves free."""


class Packing:
    """The way to a faster model, in steps of a few milliseconds (a quarter of a second for a very
    large head). It goes on where another one over the same skeleton has stopped."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._linears = skeleton.linears  # the head, which gains the most, comes first
        self._steps = self._all_steps()

    @property
    def bytes(self) -> int:
        """Of the weights that are to be packed."""
        return sum(linear.bytes for linear in self._linears if not linear.packed)

    def step(self) -> bool:
        """False: there is nothing left to do, or no memory to do it with."""
        try:
            return next(self._steps, False)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            _log.warning("There is no memory to pack more weights")
            return False

    def _all_steps(self) -> Iterator[bool]:
        done: list[tuple[int, int]] = []
        for linear in self._linears:
            if not linear.packed:
                if free_host_bytes() < linear.bytes + _RESERVE_BYTES:
                    raise MemoryError
                done += map(_place, linear.pack())
                yield True
        for alike in _by_shape(self._linears):
            tune(alike)
            yield True
        if done:
            drop_file_pages(done)
            yield True


def _by_shape(linears: list[Linear]) -> list[list[Linear]]:
    """Those that are to be tuned, by their shape."""
    shapes: dict[tuple[int, int], list[Linear]] = {}
    for linear in linears:
        if linear.tunable:
            shapes.setdefault((linear.rows, linear.width), []).append(linear)
    return list(shapes.values())


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.nbytes
