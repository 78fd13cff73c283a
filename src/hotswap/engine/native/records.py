"""What a step is described by, for the compiled loops: records of addresses and sizes.

Addresses are of the first number; 0 stands for something that is not there. A step is a list of
phases, each a list of pieces of work that may be done in any order, by any thread.
"""

from __future__ import annotations

from typing import Final

import numpy as np

EMBED: Final = 0
"""A token's residual is its embedding; the first norm."""
PROJECT: Final = 1
"""Some rows of one weight, for all tokens, or for the sampled ones."""
KEEP: Final = 2
"""The key and the value of one group of heads of one token, into the pool."""
ATTEND: Final = 3
"""What the heads of one group see for one token."""
GATE: Final = 4
"""Some rows of a gate and of what it gates, for all tokens."""
ADD: Final = 5
"""A token's residual grows by what a block made of it; the next norm."""

SILU: Final = 0
GELU: Final = 1
GELU_TANH: Final = 2

WORD = np.int64

PHASE = np.dtype(
    [
        ("kind", WORD),
        ("layer", WORD),
        ("first", WORD),  # its pieces among all of them; 0 pieces: as many per token as `each`
        ("pieces", WORD),
        ("each", WORD),
        ("source", WORD),  # address of the first token's numbers
        ("source_stride", WORD),  # bytes
        ("target", WORD),
        ("target_stride", WORD),
        ("norm_before", WORD),  # on what is added, float32
        ("norm_after", WORD),  # on the sum, float32
        ("width", WORD),  # of the norms
        ("sampled", WORD),  # 1: what it writes or reads is of the tokens with logits only
        ("peaks", WORD),  # where each piece and token has its largest number and its place
        ("eps_before", np.float32),
        ("eps_after", np.float32),
        ("softcap", np.float32),
        ("scale", np.float32),
    ],
    align=True,
)

PIECE = np.dtype(
    [
        ("weight", WORD),  # of its first row
        ("gated", WORD),  # the same of what is gated
        ("bias", WORD),  # float32
        ("gated_bias", WORD),
        ("width", WORD),
        ("rows", WORD),
        ("place", WORD),  # of its first row among the results
    ],
    align=True,
)

LAYER = np.dtype(
    [
        ("heads", WORD),
        ("groups", WORD),
        ("size", WORD),
        ("keys", WORD),  # the pools, [groups, slots, size]
        ("values", WORD),
        ("q_norm", WORD),  # float32
        ("k_norm", WORD),
        ("norm_all", WORD),  # 1: the norms are over all heads together
        ("cosines", WORD),  # float32 [positions, rotated]
        ("sines", WORD),  # the first half of them negated
        ("rotated", WORD),
        ("window", WORD),  # 0: none
        ("activation", WORD),
        ("eps", np.float32),
        ("scale", np.float32),
        ("softcap", np.float32),
    ],
    align=True,
)

ROW = np.dtype(
    [
        ("token", WORD),
        ("position", WORD),
        ("slot", WORD),
        ("first_stretch", WORD),  # among the stretches: first slot, count
        ("stretches", WORD),
        ("sampled", WORD),  # its place among the tokens with logits; -1: it has none
    ]
)

MODEL = np.dtype(
    [
        ("embedding", WORD),
        ("width", WORD),
        ("residual", WORD),  # float32 [tokens, width]
        ("slots", WORD),  # of the pools
        ("vocab", WORD),
        ("scratch", WORD),  # of all workers
        ("scratch_bytes", WORD),  # of each
        ("scores", WORD),  # float32 numbers that scratch has room for, per head
        ("workers", WORD),
        ("shapes", WORD),  # of the processor's matrices; then room to keep the former ones
    ]
)
