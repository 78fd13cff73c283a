"""What a decode step on a CUDA device is made of, besides matrix products.

`Kernels` says what there is. Two modules offer it: `fused`, in Triton, and `reference`, in plain
torch, which runs everywhere and which the other is compared with. Importing this needs no Triton.

The fused ones can be part of a CUDA graph: they do not wait for the device, and how they are
launched depends on no value that is there. With every output given they allocate nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor


class Kernels(Protocol):
    """Rows are tokens or sequences. Tensors need neighbouring entries in their last dimension,
    and may be strided in the others. Shapes and types that do not fit are a `ValueError`.

    ``out`` receives the result; without it a new tensor does.
    """

    def paged_attention(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        tables: Tensor,
        lengths: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
        scratch: Tensor | None = None,
    ) -> Tensor:
        """The newest token of each sequence attends to its sequence: query [rows, heads, size] to
        [rows, heads, value size].

        Args:
            keys: pool of the layer, [groups, slots, size]; the heads of a group are neighbours.
            values: the same for values, [groups, slots, value size].
            tables: int32 [rows, blocks], the blocks of each sequence in order. Only those that a
                sequence has tokens in are read.
            lengths: int32 [rows], tokens of each sequence, the newest included. The result of a
                row without any is zero.
            window: how many of the last tokens are seen.
            softcap: bound of the scores, ``softcap * tanh(score / softcap)``.
            sinks: [heads], a score each that takes part in the softmax and has no value.
            scratch: what `attention_scratch` made for tensors of these shapes.
        """

    def attention_scratch(self, query: Tensor, values: Tensor, tables: Tensor) -> Tensor:
        """Room for what `paged_attention` keeps between its two passes. One for all layers."""

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, out: Tensor | None = None
    ) -> Tensor:
        """Each row of x [rows, width] divided by its root mean square, times ``weight`` [width].

        A weight of x's type multiplies the rounded quotient, as in Llama, a float32 weight the
        exact one, as in Gemma. ``out`` may be ``x``.
        """

    def add_rms_norm(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        *,
        out: Tensor | None = None,
        total: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`rms_norm` of ``x + residual``, and that sum, which goes to ``total`` where it is given.
        ``out`` may be ``x`` and ``total`` may be ``residual``."""

    def rope_and_store(
        self,
        qkv: Tensor,
        *,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Queries and keys are normed (per head, where weights are given) and turned to their
        positions; keys and values go to the pools. The queries, [tokens, heads, size].

        Args:
            qkv: [tokens, heads + 2 * groups, size].
            cos: [positions, rotary], the first ``rotary`` entries of a head being turned, half
                against half.
            sin: the same.
            positions: int32 or int64 [tokens].
            slots: int32 or int64 [tokens], where each token goes; below zero: nowhere.
            keys: pool of the layer, [groups, slots, size], written to.
            values: the same for values.
            q_norm: [size], as in `rms_norm`; with ``k_norm`` or not at all.
        """

    def gated_activation(
        self, gate_up: Tensor, activation: str, *, out: Tensor | None = None
    ) -> Tensor:
        """``activation(gate) * up`` of [tokens, 2 * width], gates first: [tokens, width].

        Args:
            activation: "silu", "gelu" or "gelu_tanh".
        """


def kernels_on(device: torch.device) -> Kernels:
    """The fastest ones for tensors of ``device``."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from hotswap.engine.kernels import fused  # noqa: PLC0415 - Triton may not be installed

        return fused
    from hotswap.engine.kernels import reference  # noqa: PLC0415 - not needed beside the other

    return reference
