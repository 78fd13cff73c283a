from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from hotswap.engine.blocks import BLOCK_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from hotswap.engine.kv_pool import KVPool

pytestmark = pytest.mark.torch

GROUPS, SIZE, VALUE_SIZE = 2, 4, 6


def pool_of(blocks: int) -> KVPool:
    import torch

    from hotswap.engine.kv_pool import KVPool

    return KVPool(torch.device("cpu"), blocks)


def layer_of(pool: KVPool, index: int = 0, dtype: str = "float32") -> tuple[Tensor, Tensor]:
    import torch

    kind = getattr(torch, dtype)
    keys = torch.empty(3, GROUPS, SIZE, dtype=kind)
    return pool.layer(index, keys, torch.empty(3, GROUPS, VALUE_SIZE, dtype=kind))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_layer_looks_like_what_it_is_made_for_and_is_zero(dtype: str) -> None:
    import torch

    pool = pool_of(5)
    keys, values = layer_of(pool, dtype=dtype)
    assert pool.slots == 5 * BLOCK_TOKENS
    assert keys.shape == (GROUPS, pool.slots, SIZE)
    assert values.shape == (GROUPS, pool.slots, VALUE_SIZE)
    assert keys.dtype == values.dtype == getattr(torch, dtype)
    assert not keys.any()
    assert not values.any()


def test_a_layer_is_made_once_and_keeps_what_is_written() -> None:
    pool = pool_of(2)
    keys, values = layer_of(pool, 7)
    keys[0, 3], values[1, 20] = 1.5, 2.5
    again = layer_of(pool, 7)
    assert again[0].equal(keys)
    assert float(again[1][1, 20, 0]) == 2.5
    assert not layer_of(pool, 8)[0].any()


def test_the_bytes_of_a_token_are_those_of_all_layers() -> None:
    pool = pool_of(3)
    assert pool.token_bytes == 0
    for index in range(4):
        layer_of(pool, index, "bfloat16")
    assert pool.token_bytes == 4 * GROUPS * (SIZE + VALUE_SIZE) * 2


def test_another_size_begins_empty() -> None:
    pool = pool_of(1)
    layer_of(pool)[0].fill_(1.0)
    pool.resize(9)
    keys, values = layer_of(pool)
    assert (keys.shape[1], values.shape[1]) == (9 * BLOCK_TOKENS,) * 2
    assert not keys.any()
    assert pool.token_bytes == GROUPS * (SIZE + VALUE_SIZE) * 4


def test_blocks_are_copied_in_every_layer_and_all_are_read_before_any_is_written() -> None:
    import torch

    pool = pool_of(6)
    layers = [layer_of(pool, index) for index in (0, 5)]
    before = []
    for pair in layers:
        for stored in pair:
            stored.normal_()
            before.append(stored.clone())
    pool.copy([(0, 1), (1, 4), (4, 0)])
    places = torch.tensor([4, 0, 2, 3, 1, 5])  # where the content of each comes from
    for stored, was in zip((stored for pair in layers for stored in pair), before, strict=True):
        blocks = was.view(GROUPS, 6, BLOCK_TOKENS, -1)[:, places]
        assert stored.equal(blocks.reshape(was.shape))


def test_a_pool_without_blocks_has_layers_without_slots() -> None:
    assert layer_of(pool_of(0))[0].shape == (GROUPS, 0, SIZE)


def test_room_that_was_never_written_takes_no_memory() -> None:
    import torch

    from hotswap.engine.device import used_bytes

    cpu, pool = torch.device("cpu"), pool_of(1 << 20)
    before = used_bytes(cpu)
    keys, _ = layer_of(pool)
    assert keys.nbytes == 512 << 20
    keys[:, 5 * BLOCK_TOKENS : 9 * BLOCK_TOKENS] = 1.0
    assert used_bytes(cpu) - before < 4 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the memory is kept")
def test_vacated_blocks_take_no_memory_and_the_others_keep_what_is_in_them() -> None:
    import torch

    from hotswap.engine.device import used_bytes

    cpu, pool = torch.device("cpu"), pool_of(1 << 16)
    layers = [layer_of(pool, index) for index in (0, 5)]
    for pair in layers:
        for stored in pair:
            stored.fill_(1.0)
    before, first, end = used_bytes(cpu), 1 << 15, (1 << 16) - 1
    pool.vacate([(first, end - first)])
    whole = sum(stored.nbytes for pair in layers for stored in pair) // 2
    assert abs(before - used_bytes(cpu) - whole) < 2 << 20
    page = 4096 // BLOCK_TOKENS // SIZE // 4 * BLOCK_TOKENS  # its slots, at most cut off
    for keys, values in layers:
        for stored in (keys, values):
            assert bool((stored[:, : first * BLOCK_TOKENS] == 1.0).all())
            assert bool((stored[:, end * BLOCK_TOKENS :] == 1.0).all())
            middle = stored[:, first * BLOCK_TOKENS + page : end * BLOCK_TOKENS - page]
            assert not middle.any()


def test_what_is_written_after_a_resize_can_be_vacated_too() -> None:
    pool = pool_of(64)
    layer_of(pool)
    pool.resize(1024)
    keys, values = layer_of(pool)
    keys.fill_(1.0)
    values.fill_(1.0)
    pool.vacate([(0, 1024)])
    if sys.platform == "linux":
        assert not keys.any()
    layer_of(pool)[0].fill_(2.0)
    assert bool((keys == 2.0).all())


def test_growing_keeps_what_is_in_the_blocks() -> None:
    import torch

    pool = pool_of(3)
    layers = [layer_of(pool, index) for index in (0, 1)]
    for tensor in (tensor for layer in layers for tensor in layer):
        tensor.normal_()
    pool.grow(1024)
    assert pool.slots == 1024 * BLOCK_TOKENS
    for index, before in enumerate(layers):
        for old, new in zip(before, layer_of(pool, index), strict=True):
            assert torch.equal(new[:, : 3 * BLOCK_TOKENS], old)
            assert not new[:, 3 * BLOCK_TOKENS :].any()
            new.fill_(1.0)
    pool.vacate([(0, 1024)])
    if sys.platform == "linux":
        assert not layer_of(pool, 1)[0].any()


def test_a_pool_that_cannot_grow_is_as_large_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    pool = pool_of(3)
    wanted = [layer_of(pool, index)[0].normal_().clone() for index in (0, 1)]
    made, left = pool._made, [3]

    def scarce(like: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError
        return made(like)

    monkeypatch.setattr(pool, "_made", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        pool.grow(8)
    assert pool.slots == 3 * BLOCK_TOKENS
    left[0] = 99
    pool.grow(5)  # less than some layers have
    assert pool.slots == 5 * BLOCK_TOKENS
    for index, keys in enumerate(wanted):
        assert torch.equal(layer_of(pool, index)[0][:, : 3 * BLOCK_TOKENS], keys)
        assert layer_of(pool, index)[0].shape[1] >= pool.slots


def test_closing_gives_the_memory_back() -> None:
    import torch

    from hotswap.engine.device import used_bytes

    cpu, pool = torch.device("cpu"), pool_of(1 << 16)
    layer_of(pool)[0].fill_(1.0)
    before = used_bytes(cpu)
    pool.close()
    assert before - used_bytes(cpu) > 30 << 20
    assert pool.token_bytes == 0


@pytest.mark.parametrize("made_before", [False, True])
def test_copies_of_blocks_go_back_into_other_blocks_of_another_pool(*, made_before: bool) -> None:
    import torch

    from hotswap.engine.device_memory import HostMemory

    pool, other = pool_of(5), pool_of(7)
    layers = [layer_of(pool, index) for index in (0, 1)]
    for tensor in (tensor for layer in layers for tensor in layer):
        tensor.normal_()
    wanted = [tensor.clone() for layer in layers for tensor in layer]
    copies = pool.copies([4, 1])
    pool.close()
    if made_before:  # and what refers to it must see what comes
        seen = layer_of(other, 1)
    other.restore([0, 6], copies, HostMemory())
    found = [tensor for index in (0, 1) for tensor in layer_of(other, index)]
    if made_before:
        assert [t.data_ptr() for t in seen] == [t.data_ptr() for t in found[2:]]
    for old, new in zip(wanted, found, strict=True):
        for before, after in ((4, 0), (1, 6)):
            assert torch.equal(_block(old, before), _block(new, after))
        assert not new[:, BLOCK_TOKENS : 6 * BLOCK_TOKENS].any()


def _block(pool: Tensor, block: int) -> Tensor:
    return pool[:, block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS]


@pytest.mark.gpu
def test_keys_and_values_come_back_to_a_cuda_device_and_their_memory_to_it() -> None:
    import torch

    from hotswap.engine.device_memory import CudaMemory
    from hotswap.engine.kv_pool import KVPool

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    device = torch.device("cuda")
    keys = torch.randn(3, GROUPS, SIZE, dtype=torch.bfloat16, device=device)
    first = KVPool(device, 5)
    written = first.layer(0, keys, keys)[0].normal_()
    wanted = written.cpu()
    copies = first.copies([1, 4])
    assert copies.content.device.type == "cpu"
    first.grow(40)
    assert not written.untyped_storage().nbytes()
    written = first.layer(0, keys, keys)[0]
    for block in (1, 4):
        assert torch.equal(_block(written.cpu(), block), _block(wanted, block))
    assert not written[:, 5 * BLOCK_TOKENS :].any()
    first.close()
    assert not written.untyped_storage().nbytes()
    second = KVPool(device, 9)
    second.restore([1, 4], copies, CudaMemory(device))
    found = second.layer(0, keys, keys)[0].cpu()
    for block in (1, 4):
        assert torch.equal(_block(found, block), _block(wanted, block))
    second.close()
