from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.errors import CheckpointRefused

if TYPE_CHECKING:
    from hotswap.engine.placement import Placement
    from hotswap.engine.weights import Verdict

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]


def model_of(path: Path) -> Any:
    import torch

    from tests.engine.checkpoints import hf

    return hf().AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def placed(model: Any) -> Placement:
    import torch

    from hotswap.engine.placement import InPlace
    from hotswap.engine.weights import HostWeights
    from tests.engine.checkpoints import VOCAB

    return InPlace(HostWeights(model, 0, "float32", VOCAB), torch.device("cpu"))


def verdict_on(model: Any) -> Verdict:
    import torch

    from hotswap.engine.forward.choice import choose

    with torch.inference_mode():
        forward, verdict = choose(placed(model))
        forward.close()
    assert forward.tier == verdict.tier
    return verdict


def tier_of(model: Any) -> str:
    return verdict_on(model).tier


def doubled(_module: Any, _args: Any, output: Any) -> Any:
    return output * 2


def leaking(_module: Any, _args: Any, output: Any) -> Any:
    """A convolution over the flat batch lets one sequence see another."""
    return output + 0.5 * output.roll(1, dims=1).index_fill(1, output.new_zeros(1, dtype=int), 0.0)


def test_the_fastest_tier_that_can_is_taken(checkpoint: Checkpoint) -> None:
    for architecture, tier in (("qwen3", "S"), ("gpt2", "A"), ("mamba", "B")):
        assert tier_of(model_of(checkpoint(architecture))) == tier


def test_bytes_of_state_are_measured(checkpoint: Checkpoint) -> None:
    for architecture in ("qwen3", "granite"):
        verdict = verdict_on(model_of(checkpoint(architecture)))
        # 2 layers x (keys + values) x 2 heads x 8 x float32
        assert (verdict.token_bytes, verdict.fixed_bytes) == (256, 0)
    recurrent = verdict_on(model_of(checkpoint("mamba")))
    assert recurrent.token_bytes <= 8
    assert recurrent.fixed_bytes > 1000


def test_a_model_that_is_more_than_the_skeleton_runs_through_its_modules(
    checkpoint: Checkpoint,
) -> None:
    model = model_of(checkpoint("qwen3"))
    model.model.layers[0].mlp.register_forward_hook(doubled)
    assert tier_of(model) == "A"


def test_a_skeleton_that_computes_something_else_is_not_used(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.forward import choice
    from hotswap.engine.forward.reading import read

    def misread(model: Any) -> Any:
        skeleton = read(model)
        norm = dataclasses.replace(skeleton.norm, eps=0.1)
        return dataclasses.replace(skeleton, norm=norm)

    monkeypatch.setattr(choice, "read", misread)
    assert tier_of(model_of(checkpoint("qwen3"))) == "A"


def test_a_skeleton_that_breaks_is_not_used(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.forward import choice

    def breaks(_model: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(choice, "read", breaks)
    assert tier_of(model_of(checkpoint("qwen3"))) == "A"


def test_a_model_whose_layers_hide_their_window_runs_one_by_one(checkpoint: Checkpoint) -> None:
    """The prompts of the check are shorter than a window, so numbers alone would not tell."""
    model = model_of(checkpoint("qwen3"))
    model.config.layer_types = ["sliding_attention"] * 2
    model.config.sliding_window = 4096
    model.model.has_sliding_layers = True
    assert tier_of(model) == "B"


def test_a_rotary_embedding_that_depends_on_the_length_runs_one_by_one(
    checkpoint: Checkpoint,
) -> None:
    assert tier_of(model_of(checkpoint("llama_rope_dynamic"))) == "B"


def test_a_model_that_mixes_its_tokens_elsewhere_runs_one_by_one(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint("qwen3"))
    model.model.layers[0].mlp.register_forward_hook(leaking)
    assert tier_of(model) == "B"


def test_the_attention_that_a_model_had_comes_back(checkpoint: Checkpoint) -> None:
    """After a tier that was left, and after one that was tried."""
    kept, refused = model_of(checkpoint("granite")), model_of(checkpoint("qwen3"))
    refused.model.layers[0].mlp.register_forward_hook(leaking)
    for model, tier in ((kept, "A"), (refused, "B")):
        before = model.config._attn_implementation
        assert tier_of(model) == tier
        assert model.config._attn_implementation == before


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "falcon"])
def test_a_verdict_that_is_known_is_not_found_out_again(
    checkpoint: Checkpoint, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine.forward import choice

    model = model_of(checkpoint(architecture))
    known = verdict_on(model)
    for name in ("_plain", "_difference", "_measure"):
        monkeypatch.delattr(choice, name)
    with torch.inference_mode():
        forward = choice.made(placed(model), known, 1)
        forward.close()
    assert forward.tier == known.tier


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "falcon"])
def test_weights_of_nan_are_refused(checkpoint: Checkpoint, architecture: str) -> None:
    import torch

    model = model_of(checkpoint(architecture))
    with torch.no_grad():
        list(model.parameters())[-1].fill_(torch.nan)
    with pytest.raises(CheckpointRefused, match="NaN"):
        verdict_on(model)
    assert not [t for t in threading.enumerate() if t.name.startswith("decode-")]


def test_a_skeleton_that_was_taken_on_is_not_read_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hotswap.engine.forward import choice
    from hotswap.engine.forward.lean import LeanForward

    place = placed(model_of(checkpoint("qwen3")))
    with torch.inference_mode():
        forward, verdict = choice.choose(place)
        assert isinstance(forward, LeanForward)
        place.take_on(forward.skeleton)
        monkeypatch.delattr(choice, "read")
        again = choice.made(place, verdict, 1)
    assert isinstance(again, LeanForward)
    assert again.skeleton is forward.skeleton


@pytest.fixture
def native() -> Any:
    """The forward of the compiled loops."""
    from hotswap.engine.native.code import native_forward

    found = native_forward()
    if found is None:
        pytest.skip("there are no compiled loops here")
    return found


def chosen(model: Any) -> tuple[type, Verdict]:
    import torch

    from hotswap.engine.forward.choice import choose

    with torch.inference_mode():
        forward, verdict = choose(placed(model))
        forward.close()
    return type(forward), verdict


def kind_of(model: Any, known: Verdict) -> type:
    """Of the forward of a model that is known."""
    import torch

    from hotswap.engine.forward.choice import made

    with torch.inference_mode():
        forward = made(placed(model), known, 1)
        forward.close()
    return type(forward)


def test_the_compiled_loops_are_taken_where_they_know_all_that_a_model_has(
    checkpoint: Checkpoint, native: Any
) -> None:
    from hotswap.engine.forward.lean import LeanForward

    for architecture, wanted in (("qwen3", native), ("qwen3_moe", LeanForward)):
        model = model_of(checkpoint(architecture))
        kind, verdict = chosen(model)
        assert (kind, verdict.tier, verdict.native) == (wanted, "S", wanted is native)
        assert kind_of(model, verdict) is wanted


def test_compiled_loops_that_compute_something_else_are_not_used(
    checkpoint: Checkpoint, native: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.forward.lean import LeanForward

    logits = native.logits

    def wrong(self: Any, segments: Any, ids: Any = None) -> Any:
        found = logits(self, segments, ids).clone()
        found[:, 5] += 1.0
        return found

    model = model_of(checkpoint("qwen3"))
    monkeypatch.setattr(native, "logits", wrong)
    kind, verdict = chosen(model)
    assert (kind, verdict.tier, verdict.native) == (LeanForward, "S", False)
    assert kind_of(model, verdict) is LeanForward


def test_without_compiled_loops_torch_computes_the_skeleton(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.forward import choice
    from hotswap.engine.forward.lean import LeanForward

    monkeypatch.setattr(choice, "native_forward", lambda: None)
    kind, verdict = chosen(model_of(checkpoint("qwen3")))
    assert (kind, verdict.tier, verdict.native) == (LeanForward, "S", False)
