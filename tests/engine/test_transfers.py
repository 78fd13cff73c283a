from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device(request.param)


def test_what_is_sent_arrives_before_it_is_computed_with(device: Any) -> None:
    import numpy as np
    import torch

    from hotswap.engine.transfers import sent

    numbers = sent([[1, 2], [3, 4]], device)
    assert (numbers.device.type, numbers.dtype) == (device.type, torch.int64)
    assert (numbers + 1).tolist() == [[2, 3], [4, 5]]
    assert sent([1, 2], device, torch.float32).dtype == torch.float32
    assert (sent(np.arange(3, dtype=np.int32), device) + 1).tolist() == [1, 2, 3]


def test_tensors_are_fetched_together(device: Any) -> None:
    import torch

    from hotswap.engine.transfers import Fetched

    tensors = [torch.arange(4, device=device), torch.ones(2, 3, device=device)]
    ids, ones = Fetched(tensors).wait()
    assert ids.device.type == ones.device.type == "cpu"
    assert ids.tolist() == [0, 1, 2, 3]
    assert ones.tolist() == [[1.0] * 3] * 2


@pytest.mark.gpu
def test_what_the_device_writes_afterwards_is_not_fetched() -> None:
    import torch

    from hotswap.engine.transfers import Fetched

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    tensor = torch.zeros(1 << 20, dtype=torch.int64, device="cuda")
    fetched = Fetched([tensor])
    tensor.fill_(7)
    assert not fetched.wait()[0].any()
