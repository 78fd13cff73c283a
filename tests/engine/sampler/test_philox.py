from __future__ import annotations

import pytest

pytestmark = pytest.mark.torch


def words(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    import torch

    from hotswap.engine.sampler.philox import philox

    tensors = tuple(torch.tensor(word) for word in counter)
    return tuple(
        int(word) for word in philox(tensors, (torch.tensor(key[0]), torch.tensor(key[1])))
    )


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_test_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert words(counter, key) == expected


def test_noise_of_a_token_is_the_same_in_a_whole_row_and_alone() -> None:
    import torch

    from hotswap.engine.sampler.philox import gumbel, gumbel_rows

    seeds, positions = torch.tensor([7, -3]), torch.tensor([0, 99])
    rows = gumbel_rows(seeds, positions, 103)
    ids = torch.tensor([0, 1, 6, 102])
    for row in range(2):
        alone = gumbel(seeds[row].expand(4), positions[row].expand(4), ids)
        assert torch.equal(alone, rows[row, ids])


def test_noise_is_standard_gumbel_and_never_infinite() -> None:
    import torch

    from hotswap.engine.sampler.philox import _to_gumbel, gumbel_rows

    noise = gumbel_rows(torch.tensor([1]), torch.tensor([0]), 200_000)[0]
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert abs(float(noise.var()) - 1.6449) < 0.03
    assert bool(_to_gumbel(torch.tensor([0, 0xFFFFFFFF])).isfinite().all())
