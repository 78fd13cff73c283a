"""Copies between the host and the device that nobody waits for when they are asked for.

Only pinned memory can be copied so. Torch keeps what it has pinned for the next time, and not
before the device is done with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(values: object, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor` of ``values``, on its way to the device; what is computed with it there comes
    after."""
    host = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":  # torch does not pin what it makes of a NumPy array
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


class Fetched:
    """Copies on the host of tensors that the device may change afterwards."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [_copy(tensor) for tensor in tensors]
        self._arrival: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Until they are there. On the host itself they are the tensors."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copies


def _copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
