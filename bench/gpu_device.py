"""What a report says about the device."""

from __future__ import annotations

import torch

NO_DEVICE = "There is no CUDA device on this machine."


def device_name(device: str) -> str:
    if device == "cpu":
        return device
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
