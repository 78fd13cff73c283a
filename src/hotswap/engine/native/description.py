"""A skeleton, its pool and a batch in the words of `hotswap.engine.native.records`."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hotswap.engine.forward.base import Segment, UnsupportedForward
from hotswap.engine.forward.layout import stretches
from hotswap.engine.forward.linear import Linear
from hotswap.engine.forward.skeleton import GatedMLP, Layer, Norm, Rope, Skeleton
from hotswap.engine.kv_pool import KVPool
from hotswap.engine.native import records, step
from hotswap.engine.native.machine import DOTS_BFLOAT16, TILE, may_use_matrices
from hotswap.engine.native.products import SCRATCH_BYTES

MOST_TOKENS = 128
"""Of a step. Above, what each of a prompt's tokens sees is computed faster by torch."""
MOST_SAMPLED = 64
"""Of a step, tokens with logits."""
_PIECE_BYTES = 32 << 10, 512 << 10
"""Of weights, least and most: large beside what it costs to take a piece, small beside what a
thread would have to wait for at the end."""
_PIECES = 8
"""Of a weight for each thread, within these limits."""
_ACTIVATIONS = {"silu": records.SILU, "gelu": records.GELU, "gelu_tanh": records.GELU_TANH}
_LINE_BYTES = 8 * step.LINE
_GIVE_BACK = getattr(mmap, "MADV_DONTNEED", None) if sys.platform == "linux" else None


class Description:
    """Made once for a skeleton and a pool, filled anew for each step."""

    def __init__(self, skeleton: Skeleton, pool: KVPool, threads: int, matrices_from: int) -> None:
        self._skeleton = skeleton
        self._pool = pool
        self._threads = threads
        self._kept: list[Any] = []
        """What the addresses point to."""
        self._scratch: list[mmap.mmap] = []
        """What among that holds nothing between steps."""
        self.half = _is_half(skeleton.embedding)
        self._size = 2 if self.half else 4
        self._activation_size = 2 if self.half and DOTS_BFLOAT16 else 4
        self._longest = 0
        self._ropes: dict[int, tuple[Rope, list[int]]] = {}
        self._tables: list[tuple[Tensor, Tensor]] = []

        width = skeleton.embedding.shape[1]
        heads = max(x.attention.heads * x.attention.size for x in skeleton.layers)
        qkv = max(x.attention.qkv.rows for x in skeleton.layers)
        inner = max(_mlp(x).down.width for x in skeleton.layers)
        self._normed = self._room(width, self._activation_size)
        self._qkv = self._room(qkv, 4)
        self._seen = self._room(heads, self._activation_size)
        self._made = self._room(width, 4)
        self._inner = self._room(inner, self._activation_size)
        logits = self._blank((MOST_SAMPLED, skeleton.head.rows), np.float32)
        tokens = np.zeros(MOST_SAMPLED, np.int64)
        self.logits, self.tokens = torch.from_numpy(logits), torch.from_numpy(tokens)

        self.layers = np.zeros(len(skeleton.layers), records.LAYER)
        self._phases: list[dict[str, Any]] = []
        self._pieces: list[dict[str, int]] = []
        self._describe()
        self.phases = _array(self._phases, records.PHASE)
        self.pieces = _array(self._pieces, records.PIECE)
        self.rows = np.zeros(MOST_TOKENS, records.ROW)
        self.stretches = np.zeros((MOST_TOKENS * (1 + pool.slots // 16), 2), np.int64)
        shared = max(x.attention.heads // x.attention.groups for x in skeleton.layers)
        scores = pool.slots
        scratch = SCRATCH_BYTES + 4 * max(
            MOST_TOKENS * 2 * max(piece["rows"] for piece in self._pieces if piece["gated"]),
            (2 * shared + 1) * max(x.attention.size for x in skeleton.layers) + shared * scores,
            width,
        )
        scratch += -scratch % _LINE_BYTES
        self.model = np.zeros(1, records.MODEL)
        model = self.model[0]
        model["embedding"] = skeleton.embedding.data_ptr()
        model["width"] = width
        model["residual"] = self._room(width, 4)[0]
        model["slots"] = pool.slots
        model["vocab"] = skeleton.head.rows
        model["scratch"] = self._address(self._blank((threads * scratch,), np.uint8))
        model["scratch_bytes"] = scratch
        model["workers"] = threads
        model["shapes"] = self._matrix_shapes(threads)
        self.use_matrices_from(matrices_from)
        model["scores"] = scores

    @property
    def arrays(self) -> tuple[Any, ...]:
        """As the loops take them."""
        return self.model, self.phases, self.pieces, self.layers, self.rows, self.stretches

    @property
    def has_matrices(self) -> bool:
        """The processor's can be used with these weights."""
        return bool(self.model[0]["shapes"] != 0)

    def use_matrices_from(self, tokens: int) -> None:
        """In steps of so many tokens or more, where it can be."""
        self.matrices_from = tokens if self.has_matrices else MOST_TOKENS + 1

    def rest(self) -> None:
        """Give back the memory that only steps need; the next one has it again."""
        self._tables, self._longest = [], 0
        if _GIVE_BACK is not None:
            for memory in self._scratch:
                memory.madvise(_GIVE_BACK)

    def fill(self, segments: Sequence[Segment], ids: Sequence[int] | None) -> tuple[int, int]:
        """Take a batch in. How many tokens it has, and how many of them have logits."""
        rows: list[tuple[int, ...]] = []
        lines: list[tuple[int, int]] = []
        sampled = 0
        for number, segment in enumerate(segments):
            last = len(segment.ids) - 1
            for offset, given in enumerate(segment.ids):
                token = given if ids is None else ids[number]
                position = segment.start + offset
                own = list(stretches(segment.table, 0, position + 1))
                self._check(token, position, own)
                first, length = own[-1]
                wanted = segment.samples and offset == last
                place = sampled if wanted else -1
                sampled += wanted
                rows.append((token, position, first + length - 1, len(lines), len(own), place))
                lines += own
        self.rows[: len(rows)] = rows
        self.stretches[: len(lines)] = lines
        longest = max(segment.start + len(segment.ids) for segment in segments)
        if longest > self._longest:
            self._turn(longest)
        return len(rows), sampled

    def _check(self, token: int, position: int, lines: list[tuple[int, int]]) -> None:
        """The loops would read and write beside what is not there."""
        vocab = self._skeleton.embedding.shape[0]
        if not 0 <= token < vocab:
            raise IndexError(f"token {token} is none of {vocab}")
        if sum(length for _, length in lines) != position + 1:
            raise IndexError(f"there is no room for position {position}")

    # -- the model ---------------------------------------------------------------------------

    def _describe(self) -> None:
        skeleton = self._skeleton
        scale = 1.0 if skeleton.embedding_scale is None else float(skeleton.embedding_scale)
        first = skeleton.layers[0]
        self._phase(
            records.EMBED, self._normed, each=1, scale=scale, **self._after(first.before_attention)
        )
        for index, layer in enumerate(skeleton.layers):
            self._describe_layer(index, layer)
            following = skeleton.layers[index + 1 : index + 2]
            norm = following[0].before_attention if following else skeleton.norm
            self._add(layer.after_mlp, norm)
        self._phases[-1]["sampled"] = 1
        peaks = self._project(skeleton.head, 0, self._normed, self._place(self.logits))
        self._phases[-1]["peaks"] = self._address(self._blank((MOST_SAMPLED, peaks, 2), np.int64))
        self._phases[-1]["sampled"] = 1
        self._phases[-1]["softcap"] = skeleton.softcap or 0.0

    def _describe_layer(self, index: int, layer: Layer) -> None:
        data, mlp = layer.attention, _mlp(layer)
        self._describe_attention(index, layer)
        self._project(data.qkv, index, self._normed, self._qkv)
        per_group: Any = {"source": self._qkv, "layer": index, "each": data.groups}
        self._phase(records.KEEP, (0, 0), **per_group)
        self._phase(records.ATTEND, self._seen, **per_group)
        self._project(data.out, index, self._seen, self._made)
        self._add(layer.after_attention, layer.before_mlp)
        self._gate(mlp, index)
        self._project(mlp.down, index, self._inner, self._made)

    def _describe_attention(self, index: int, layer: Layer) -> None:
        data, record = layer.attention, self.layers[index]
        record["heads"], record["groups"], record["size"] = data.heads, data.groups, data.size
        like = self._skeleton.embedding.new_empty(1, data.groups, data.size)
        keys, values = self._pool.layer(index, like, like)
        record["keys"], record["values"] = keys.data_ptr(), values.data_ptr()
        norms = [norm for norm in (data.q_norm, data.k_norm) if norm is not None]
        if norms:
            record["eps"] = norms[0].eps
            if len(norms) != 2 or norms[0].eps != norms[1].eps:
                raise UnsupportedForward("norms of queries and keys that differ")
            record["q_norm"], record["k_norm"] = (self._floats(norm.weight) for norm in norms)
            record["norm_all"] = int(norms[0].weight.shape[0] != data.size)
        record["rotated"] = data.rope.size
        record["window"] = data.window or 0
        record["activation"] = _ACTIVATIONS[_mlp(layer).activation]
        if not data.scale > 0:  # the largest product has to be the largest score
            raise UnsupportedForward("scores that fall as products grow")
        record["scale"] = data.scale
        record["softcap"] = data.softcap or 0.0
        self._ropes.setdefault(id(data.rope), (data.rope, []))[1].append(index)

    def _turn(self, longest: int) -> None:
        """Tables of rotations for more positions than before."""
        self._longest = min(self._pool.slots, max(64, 1 << (longest - 1).bit_length()))
        tables = []
        for rope, indices in self._ropes.values():
            cosines, sines = (table.float().contiguous() for table in rope.table(self._longest))
            sines = sines.clone()
            sines[:, : rope.size // 2].neg_()
            tables.append((cosines, sines))
            for index in indices:
                self.layers[index]["cosines"] = cosines.data_ptr()
                self.layers[index]["sines"] = sines.data_ptr()
        self._tables = tables

    # -- phases and pieces -------------------------------------------------------------------

    def _phase(self, kind: int, target: tuple[int, int], **fields: Any) -> None:
        source = fields.pop("source", (0, 0))
        self._phases.append(
            {
                "kind": kind,
                "first": len(self._pieces),
                "source": source[0],
                "source_stride": source[1],
                "target": target[0],
                "target_stride": target[1],
                **fields,
            }
        )

    def _add(self, before: Norm | None, after: Norm | None) -> None:
        fields = self._after(after)
        if before is not None:
            fields |= {"norm_before": self._floats(before.weight), "eps_before": before.eps}
        self._phase(records.ADD, self._normed, source=self._made, each=1, **fields)

    def _after(self, norm: Norm | None) -> dict[str, Any]:
        width = self._skeleton.embedding.shape[1]
        if norm is None:
            return {"width": width}
        weight = self._floats(norm.weight)
        return {"width": width, "norm_after": weight, "eps_after": norm.eps}

    def _project(
        self, linear: Linear, layer: int, source: tuple[int, int], target: tuple[int, int]
    ) -> int:
        """How many pieces it has."""
        self._phase(records.PROJECT, target, source=source, layer=layer)
        place, pieces = 0, 0
        for weight, tensor in linear.parts:
            self._check_weight(weight)
            bias = self._bias(tensor)
            for first, rows in _split(weight, 1, self._threads):
                self._pieces.append(self._piece(weight, bias, first, rows, place))
                place, pieces = place + rows, pieces + 1
        self._phases[-1]["pieces"] = pieces
        return pieces

    def _gate(self, mlp: GatedMLP, layer: int) -> None:
        self._phase(records.GATE, self._inner, source=self._normed, layer=layer)
        halves = [
            half for part in mlp.gate_up.parts for half in _halves(part, len(mlp.gate_up.parts))
        ]
        (gate, gate_bias), (up, up_bias) = halves
        self._check_weight(gate)
        self._check_weight(up)
        bias, gated_bias = self._bias(gate_bias), self._bias(up_bias)
        pieces = _split(gate, 2, self._threads)
        for first, rows in pieces:
            piece = self._piece(gate, bias, first, rows, first)
            gated = self._piece(up, gated_bias, first, rows, first)
            piece |= {"gated": gated["weight"], "gated_bias": gated["bias"]}
            self._pieces.append(piece)
        self._phases[-1]["pieces"] = len(pieces)

    def _check_weight(self, weight: Tensor) -> None:
        if not weight.is_contiguous() or _is_half(weight) != self.half:
            raise UnsupportedForward("weights of several types or layouts")

    def _piece(
        self, weight: Tensor, bias: int, first: int, rows: int, place: int
    ) -> dict[str, int]:
        """Some rows of a weight; ``bias``: address of the first row's."""
        width = weight.shape[1]
        return {
            "weight": weight.data_ptr() + first * width * self._size,
            "gated": 0,
            "bias": bias + 4 * first if bias else 0,
            "gated_bias": 0,
            "width": width,
            "rows": rows,
            "place": place,
        }

    # -- memory ------------------------------------------------------------------------------

    def _room(self, width: int, size: int) -> tuple[int, int]:
        """Address and stride of a row for each token."""
        stride = width * size + -(width * size) % _LINE_BYTES
        return self._address(self._blank((MOST_TOKENS, stride), np.uint8)), stride

    def _blank(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        """Zeros in pages of their own."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._scratch.append(memory)
        return np.frombuffer(memory, dtype).reshape(shape)

    def _address(self, array: Any) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)

    def _matrix_shapes(self, threads: int) -> int:
        """0: the processor has no matrices, may not use them, or not for these weights."""
        fitting = all(piece["width"] % 32 == 0 and piece["rows"] >= TILE for piece in self._pieces)
        if not (self.half and fitting and may_use_matrices()):
            return 0
        shapes = np.zeros((1 + 2 * threads, 64), np.uint8)
        shapes[0, 0] = 1
        shapes[0, 16:32].view(np.uint16)[:] = 64  # bytes of a row, for each of eight
        shapes[0, 48:56] = TILE
        return self._address(shapes)

    def _bias(self, tensor: Tensor | None) -> int:
        return 0 if tensor is None else self._floats(tensor)

    def _floats(self, tensor: Tensor) -> int:
        floats = tensor.detach().float().contiguous()
        self._kept.append(floats)
        return floats.data_ptr()

    def _place(self, logits: Tensor) -> tuple[int, int]:
        return logits.data_ptr(), 4 * logits.shape[1]


def _mlp(layer: Layer) -> GatedMLP:
    if not isinstance(layer.mlp, GatedMLP):
        raise UnsupportedForward("experts")
    return layer.mlp


def _is_half(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.bfloat16, torch.float32):
        raise UnsupportedForward(f"{tensor.dtype} on {tensor.device}")
    return tensor.dtype == torch.bfloat16


def _split(weight: Tensor, beside: int, threads: int) -> list[tuple[int, int]]:
    """First row and rows of pieces of a weight of which ``beside`` are read together."""
    least, most = _PIECE_BYTES
    size = min(max(least, weight.nbytes * beside // (_PIECES * threads)), most)
    rows, row_bytes = weight.shape[0], weight[0].nbytes * beside
    most = max(TILE, size // row_bytes // TILE * TILE)
    ends = [*range(most, rows - TILE + 1, most), rows]
    return [(first, end - first) for first, end in pairwise([0, *ends])]


def _halves(
    part: tuple[Tensor, Tensor | None], parts: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The gate and what it gates, where one weight holds both."""
    weight, bias = part
    if parts == 2:
        yield part
        return
    biases = (None, None) if bias is None else bias.chunk(2)
    yield from zip(weight.chunk(2), biases, strict=True)


def _array(entries: list[dict[str, Any]], kind: Any) -> Any:
    """What an entry does not say is zero."""
    names = kind.names
    return np.array([tuple(map(entry.get, names, repeat(0))) for entry in entries], kind)
