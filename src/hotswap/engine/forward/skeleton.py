"""The decoder that most open models share, its variants as data.

Norm, attention with grouped heads and rotary positions, norm, gated MLP, again and again: what
differs between Llama, Qwen, Mistral, Gemma, Phi and OLMo is which of the optional parts are there.
`read` finds them in a transformers model, `LeanForward` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hotswap.engine.forward.linear import Linear


@dataclass(frozen=True, slots=True)
class Norm:
    """Root mean square norm, computed in float32. A weight of another type than the activations is
    applied before the result is rounded to theirs (Gemma's and OLMo's way), else after it
    (everybody else's)."""

    weight: Tensor
    """[width]; what it is multiplied by, Gemma's 1 + weight included."""
    eps: float


class RopeTable(Protocol):
    def __call__(self, length: int) -> tuple[Tensor, Tensor]: ...

    def on(self, device: torch.device) -> RopeTable:
        """Another one, which computes on ``device`` and has its own memory there."""

    def close(self) -> None:
        """Free its memory, even where a stray reference to it lives. It is of no use afterwards."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions, in the half-and-half layout: entry i turns with entry i + size / 2."""

    table: RopeTable
    """Cosines and sines of the positions below a length, each [length, size], any scaling of the
    model's included. In the type in which the model rotates: that of the activations, or float32
    (OLMo), and then it is the result that is rounded. Layers that rotate alike share a table."""
    size: int
    """How many entries of a head are rotated, from the first one on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal attention: norms, then positions, then softmax in float32."""

    qkv: Linear
    """Queries, keys and values of all heads, in this order."""
    out: Linear
    heads: int
    groups: int
    """Heads of keys and values."""
    size: int
    """Of a head."""
    scale: float
    """What the products of queries and keys are multiplied by."""
    rope: Rope
    q_norm: Norm | None = None
    """Over each head where its weight has the size of one, else over all of them together."""
    k_norm: Norm | None = None
    window: int | None = None
    """How many positions a query sees, its own included."""
    softcap: float | None = None
    """Of the scaled products: softcap * tanh(product / softcap)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMLP:
    """``down(activation(gate) * up)``"""

    gate_up: Linear
    """The rows of the gate, then those of what it gates."""
    down: Linear
    activation: str
    """"silu", "gelu" or "gelu_tanh"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Gated MLPs, of which the router chooses some for each token. Their outputs are weighted by
    the softmax, in float32, of the router's products with all of them, rounded to the type of the
    activations."""

    router: Linear
    gate_up: Tensor
    """[experts, 2 * width, hidden]; the rows of the gate first."""
    down: Tensor
    """[experts, hidden, width]"""
    chosen: int
    """Experts per token."""
    normalised: bool
    """The weights of the chosen ones are made to sum to one before they are rounded."""
    activation: str
    """As in `GatedMLP`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and then the MLP, each added to what it read."""

    attention: Attention
    mlp: GatedMLP | Experts
    before_attention: Norm | None
    after_attention: Norm | None
    """On the output, before it is added to the residual."""
    before_mlp: Norm | None
    after_mlp: Norm | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    embedding: Tensor
    """[vocab, hidden]"""
    embedding_scale: Tensor | None
    """A scalar in the type of the activations."""
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear
    softcap: float | None
    """Of the logits."""
