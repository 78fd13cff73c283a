"""Counter-based noise: Philox4x32-10, so that a draw is a function of what it is drawn for.

The noise of a token depends on its request's seed, its place in the answer and its id, never on
the batch, the order of evaluation or the device. Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hotswap.engine.sampler.arithmetic import exponential, log

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LANES = 4


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words in [0, 2^32) for each counter of four words and key of two.

    All words are int64 tensors that broadcast: torch has no arithmetic on uint32, and a product
    of two words wraps around in int64 without losing the bits that are used.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_M0, c0)
        high1, low1 = _multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def gumbel(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, for broadcastable int64 seeds, positions and token ids."""
    words = torch.stack(_words(seeds, positions, token_ids // _LANES))
    lanes = (token_ids % _LANES).expand(words.shape[1:])
    return _to_gumbel(words.gather(0, lanes[None])[0])


def gumbel_rows(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """`gumbel` of all token ids below ``vocab``, as [rows, vocab], for seeds and positions of
    shape [rows]; a quarter of the work, because one counter serves four neighbouring ids."""
    blocks = torch.arange((vocab + _LANES - 1) // _LANES, device=seeds.device)
    words = _words(seeds[:, None], positions[:, None], blocks[None])
    return _to_gumbel(torch.stack(words, dim=-1).flatten(1)[:, :vocab])


def _words(seeds: Tensor, positions: Tensor, blocks: Tensor) -> tuple[Tensor, ...]:
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    counter = (blocks, positions & _MASK, zero, zero)
    return philox(counter, (seeds & _MASK, (seeds >> 32) & _MASK))


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    product = b * a
    return (product >> 32) & _MASK, product & _MASK


def _to_gumbel(words: Tensor) -> Tensor:
    # -log(-log1p(-v)) rather than -log(-log(u)): float32 is fine near 0 and coarse near 1, and it
    # is the tokens of probability 1e-6 that win with a v near 0.
    v = words.to(torch.float32) * 2.0**-32 + 2.0**-33
    return -log(exponential(v.clamp_(max=1 - 2.0**-24)))
