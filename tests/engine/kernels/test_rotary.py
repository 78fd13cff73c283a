from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.torch

Dice = Callable[..., Any]
TOKENS, POSITIONS, SLOTS = 5, 50, 32


def make_case(
    dice: Dice, *, heads: int = 6, groups: int = 2, size: int = 24, rotary: int = 24, **types: Any
) -> SimpleNamespace:
    """Arguments of `rope_and_store`, with pools that hold something already."""
    import torch

    dtype = types.get("dtype", torch.float32)
    qkv = dice(TOKENS, heads + 2 * groups, size, dtype=dtype)
    angles = dice(POSITIONS, rotary // 2).repeat(1, 2)
    case = SimpleNamespace(
        qkv=qkv,
        cos=angles.cos().to(dtype),
        sin=angles.sin().to(dtype),
        positions=torch.tensor([0, 49, 7, 7, 30], device=qkv.device),
        slots=torch.tensor([3, -1, 31, 0, 17], device=qkv.device),
        keys=dice(groups, SLOTS, size, dtype=dtype),
        values=dice(groups, SLOTS, size, dtype=dtype),
    )
    if "norm" in types:
        case.q_norm, case.k_norm = (dice(size, dtype=types["norm"]) for _ in range(2))
        case.eps = 1e-5
    return case


def run(kernels: Any, case: SimpleNamespace, **options: Any) -> tuple[Any, Any, Any]:
    """Queries, and the pools afterwards."""
    arguments = vars(case) | {"keys": case.keys.clone(), "values": case.values.clone()} | options
    return (
        kernels.rope_and_store(**arguments),
        arguments["keys"],
        arguments["values"],
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", [None, "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "rotary"),
    [(6, 2, 24, 24), (1, 1, 8, 4), (5, 5, 20, 10), (14, 2, 64, 64), (71, 1, 64, 16)],
)
def test_it_equals_the_reference(
    fused: Any,
    dice: Dice,
    *,
    dtype: str,
    norm: str | None,
    heads: int,
    groups: int,
    size: int,
    rotary: int,
) -> None:
    import torch

    from hotswap.engine.kernels import reference
    from tests.engine.kernels.closeness import assert_same

    shape = {"heads": heads, "groups": groups, "size": size, "rotary": rotary}
    types = {"dtype": getattr(torch, dtype)}
    if norm is not None:
        types["norm"] = getattr(torch, norm)
    case = make_case(dice, **shape, **types)
    if dtype == "float32" and norm == "bfloat16":
        with pytest.raises(ValueError, match="q_norm"):
            run(fused, case)
        return
    for got, wanted in zip(run(fused, case), run(reference, case), strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("kernels", ["fused", "reference"])
def test_values_go_to_their_slots_as_they_are_and_nothing_else_changes(
    fused: Any, dice: Dice, kernels: str
) -> None:
    import torch

    from hotswap.engine.kernels import reference

    case = make_case(dice)
    _, keys, values = run(fused if kernels == "fused" else reference, case)
    stored = case.slots[case.slots >= 0]
    assert torch.equal(values[:, stored], case.qkv[case.slots >= 0, 8:].transpose(0, 1))
    assert not torch.equal(keys[:, stored], case.keys[:, stored])
    others = [slot for slot in range(SLOTS) if slot not in stored]
    assert torch.equal(keys[:, others], case.keys[:, others])
    assert torch.equal(values[:, others], case.values[:, others])


@pytest.mark.parametrize("rotary", [24, 10])
def test_the_reference_turns_as_transformers_does(dice: Dice, rotary: int) -> None:
    import torch
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    from hotswap.engine.kernels import reference

    case = make_case(dice, rotary=rotary)
    query, keys, _ = run(reference, case)
    cos, sin = case.cos[case.positions][None], case.sin[case.positions][None]
    heads = case.qkv.transpose(0, 1)[None]
    wanted: Any = apply_rotary_pos_emb(  # type: ignore[no-untyped-call]
        heads[:, :6], heads[:, 6:8], cos, sin
    )
    torch.testing.assert_close(query.transpose(0, 1)[None], wanted[0])
    torch.testing.assert_close(keys[:, 17], wanted[1][0, :, 4])


def test_int32_indices_strided_rows_and_a_given_output(fused: Any, dice: Dice) -> None:
    import torch

    case = make_case(dice, dtype=torch.bfloat16, norm=torch.bfloat16)
    wanted = run(fused, case)
    wide = dice(TOKENS, 13, 30, dtype=torch.bfloat16)
    wide[:, 2:12, 4:28] = case.qkv
    out = dice(TOKENS, 8, 24, dtype=torch.bfloat16)
    kept = out[:, 6:].clone()
    indices = {"positions": case.positions.int(), "slots": case.slots.int()}
    got = run(fused, case, qkv=wide[:, 2:12, 4:28], out=out[:, :6], **indices)
    assert got[0].data_ptr() == out.data_ptr()
    assert torch.equal(out[:, 6:], kept)
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_is_refused(fused: Any, dice: Dice) -> None:
    import torch

    case = make_case(dice)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("keys", {"keys": case.keys.bfloat16()}),
        ("values", {"values": case.values[:, :16]}),
        ("sin", {"sin": case.sin[:, :8]}),
        ("positions", {"positions": case.positions[:2]}),
        ("slots", {"slots": case.slots.float()}),
        ("turned", {"cos": dice(9, 26), "sin": dice(9, 26)}),
        ("turned", {"cos": dice(9, 5), "sin": dice(9, 5)}),
        ("neither", {"q_norm": dice(24)}),
        ("k_norm", {"q_norm": dice(24), "k_norm": dice(23)}),
        ("out", {"out": torch.empty(TOKENS, 5, 24, device=case.qkv.device)}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            fused.rope_and_store(**(vars(case) | options))
