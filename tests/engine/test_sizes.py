from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hotswap.engine.preflight import TensorEntry, WeightFiles
from hotswap.engine.sizes import refuse_more_than_the_files_hold, refuse_nonsense
from hotswap.errors import CheckpointRefused
from tests.engine.serving import spec_of

Checkpoint = Callable[..., Path]
VALUES = (-(10**30), -1, 0, 1, 2, 127, 128, 129, 5000, 10**6, 10**9, 2**63, 10**30)


def files_of(names: Iterable[str], *shape: int) -> WeightFiles:
    return WeightFiles((), {name: TensorEntry("f", "BF16", shape, 2) for name in names})


def stack(layers: int, *parts: str, prefix: str = "model.layers") -> WeightFiles:
    names = [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in parts]
    return files_of(names, 128256, 16384)


def check(config: dict[str, Any], files: WeightFiles) -> None:
    refuse_nonsense(config)
    refuse_more_than_the_files_hold(config, files)


def refusal(config: dict[str, Any], files: WeightFiles) -> str:
    with pytest.raises(CheckpointRefused) as caught:
        check(config, files)
    return caught.value.message


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"num_hidden_layers": 126, "vocab_size": 128256}, stack(126, *"abcdefghi")),
        ({"num_hidden_layers": 12}, files_of(["encoder.albert_layer_groups.0.x", "a", "b"], 30000)),
        ({"num_hidden_layers": 162}, stack(162, "norm", prefix="backbone.layers")),
        ({"text_config": {"num_hidden_layers": 61, "n_routed_experts": 384}}, stack(61, "mlp.w")),
        ({"num_experts": 4096}, files_of(f"layers.0.experts.{n}.w" for n in range(4096))),
        ({"layer_types": ["full_attention"] * 48}, stack(48, "a")),
        ({"vision_config": {"vocab_size": 0, "hidden_size": 10**9}}, stack(2, "a")),
        ({"hidden_size": 8192, "intermediate_size": 28672}, files_of(["q_packed"], 29360128, 1)),
    ],
)
def test_right_models_pass(config: dict[str, Any], files: WeightFiles) -> None:
    check(config, files)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "decoder_layers"])
@pytest.mark.parametrize("nested", [False, True])
def test_more_layers_than_there_are_tensors_are_refused(key: str, nested: bool) -> None:
    config: dict[str, Any] = {key: 1_000}
    message = refusal({"text_config": config} if nested else config, stack(2, *"abcdefghi"))
    assert message == (
        f"config.json: {key} is 1000, and the weight files hold 18 tensors, of 2 layers."
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1000000, more than"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, and must be at least 1"),
        ({"vocab_size": -1}, "vocab_size is -1, and must"),
        ({"text_config": {"vocab_size": 0}}, "vocab_size is 0, and must"),
        ({"vocab_size": 200_000}, "vocab_size is 200000, and no tensor"),
        ({"layer_types": ["full_attention"] * 1_000}, "the length of layer_types is 1000"),
        ({"num_experts": 100_000}, "num_experts is 100000"),
        ({"intermediate_size": 10**30}, "intermediate_size is 1.0e+30"),
        ({"hidden_size": 10**400}, "hidden_size is endless"),
    ],
)
def test_numbers_that_cannot_be_right_are_named(config: dict[str, Any], named: str) -> None:
    assert named in refusal(config, stack(2, "a"))


def test_a_file_with_many_experts_does_not_make_many_layers_right() -> None:
    files = stack(60, *(f"mlp.experts.{n}.w" for n in range(256)))
    assert "of 60 layers" in refusal({"num_hidden_layers": 9_000}, files)


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mamba", "gpt_oss", "qwen3_moe"])
def test_any_number_is_refused_or_makes_a_model_soon(
    checkpoint: Checkpoint, tmp_path: Path, architecture: str
) -> None:
    from hotswap.engine.front import Fronts
    from hotswap.engine.outline import outline
    from hotswap.engine.planning import look_at

    model = Path(shutil.copytree(checkpoint(architecture), tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    counted = 0
    for key in (key for key, value in config.items() if type(value) is int):
        for value in VALUES:
            (model / "config.json").write_text(json.dumps(config | {key: value}))
            counted += 1
            begun = time.thread_time()
            with suppress(CheckpointRefused):
                spec = spec_of(model)
                front = Fronts().get(spec)
                look_at(spec, front, lambda device: (), {})
                outline(front, spec.engine)
            assert time.thread_time() - begun < 5, (key, value)
    assert counted > len(VALUES)
