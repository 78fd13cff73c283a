"""From token ids to vectors: a model of transformers, and its recipe in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hotswap.engine.embedding.recipe import Dense, Normalise, Recipe
from hotswap.engine.wide import half_precision_products


class Encoder(nn.Module):
    """Texts in, vectors out. Its weights never change."""

    def __init__(
        self, body: PreTrainedModel, pooling: Sequence[str], steps: Sequence[nn.Module]
    ) -> None:
        """
        Args:
            pooling: names in `POOLED`.
            steps: take and give float32 [texts, numbers].
        """
        super().__init__()
        self.body = body
        self.pooling = tuple(pooling)
        self.steps = nn.ModuleList(steps)
        self._padding = _padding_id(body)

    @property
    def dtype(self) -> torch.dtype:
        return self.body.dtype

    def forward(
        self, texts: Sequence[Sequence[int]], before_layer: Callable[[], None] = lambda: None
    ) -> Tensor:
        """
        Args:
            texts: token ids, none of them empty.
            before_layer: called all the time; may raise to give it up.

        Returns:
            float32 [texts, dimensions], on the device.
        """
        ids, mask = self._padded(texts)
        with _watched(self.body, before_layer), half_precision_products(ids.numel()):
            hidden = self.body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        vectors = torch.cat([POOLED[name](hidden, mask) for name in self.pooling], dim=1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors

    def _padded(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """int64 [texts, tokens] and the same with 1 for each token and 0 for what is behind the
        end. There no position is shifted, whichever way the model counts them, and a token that
        sees only those before it does not see them."""
        longest = max(map(len, texts))
        rows = [[*text, *([self._padding] * (longest - len(text)))] for text in texts]
        ends = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(longest) < ends[:, None]).long()
        device = self.body.device
        return torch.tensor(rows).to(device), mask.to(device)


def read_encoder(body: PreTrainedModel, recipe: Recipe) -> Encoder:
    """``body`` with its recipe's own weights, of files that have been checked."""
    body.config.use_cache = False
    steps = [_Unit() if isinstance(step, Normalise) else _layer(step) for step in recipe.steps]
    return Encoder(body, recipe.pooling, steps).eval()


class _Unit(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=1)


def _layer(dense: Dense) -> nn.Module:
    linear = nn.Linear(dense.inputs, dense.outputs, bias=dense.bias)
    tensors = load(dense.file.read_bytes())  # a few MB, which are copied anyway
    linear.load_state_dict({name.removeprefix("linear."): t for name, t in tensors.items()})
    return nn.Sequential(linear.float().requires_grad_(False), _ACTIVATIONS[dense.activation]())


_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "Sigmoid": nn.Sigmoid,
}


def _first(hidden: Tensor, _: Tensor) -> Tensor:
    return hidden[:, 0]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    there = mask[:, :, None]
    return torch.where(there.bool(), hidden, 0.0).sum(dim=1) / there.sum(dim=1)


def _highest(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, :, None].bool(), hidden, -torch.inf).amax(dim=1)


POOLED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _highest,
    "mean": _mean,
    "lasttoken": _last,
}
"""From float32 [texts, tokens, width] and their mask to [texts, width]."""


@contextmanager
def _watched(body: nn.Module, before_layer: Callable[[], None]) -> Iterator[None]:
    """``before_layer`` is called before each of the layers: a long text takes minutes on a CPU."""
    hooks = [layer.register_forward_pre_hook(lambda *_: before_layer()) for layer in _layers(body)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layers(body: nn.Module) -> Sequence[nn.Module]:
    stacks = (module for module in body.modules() if isinstance(module, nn.ModuleList))
    return list(next(stacks, nn.ModuleList()))  # what is in a layer comes after it


def _padding_id(body: PreTrainedModel) -> int:
    """Some models tell by it where there is nothing."""
    own = getattr(body.config.get_text_config(decoder=True), "pad_token_id", None)
    return own if isinstance(own, int) and own >= 0 else 0
