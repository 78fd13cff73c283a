"""Whether tensors are what a kernel takes them for: it would read and write beside them if not."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = (torch.int32, torch.int64)


def expect(
    name: str, tensor: Tensor, shape: tuple[int, ...], *types: torch.dtype, packed: bool = True
) -> None:
    """Raise unless ``tensor`` has this shape and one of these types.

    Args:
        packed: neighbouring entries of the last dimension are neighbours in memory.

    Raises:
        ValueError: it has not.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} is {list(tensor.shape)} and should be {list(shape)}")
    if tensor.dtype not in types:
        raise ValueError(f"{name} is {tensor.dtype} and should be {' or '.join(map(str, types))}")
    if packed and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has gaps in its last dimension")


def output(name: str, given: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """``given``, or a new tensor of this shape and ``like``'s type."""
    if given is None:
        return like.new_empty(shape)
    expect(name, given, shape, like.dtype)
    return given
