"""Checkpoints with quantised weights: read with what is installed, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hotswap.errors import CheckpointRefused
from tests.engine.serving import ignore, reference, serving, spec_of
from tests.engine.spreading import PROMPT, new_registry, play, spread_spec

if TYPE_CHECKING:
    from torch import Tensor

    Quantise = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]

pytestmark = [pytest.mark.torch, pytest.mark.anyio, pytest.mark.usefixtures("no_reserve")]

Checkpoint = Callable[..., Path]
BLOCK = 16


def fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What stands in the file for a weight, by what follows on its name, and what that means."""
    import torch

    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    small = (blocks / scale).to(torch.float8_e4m3fn)
    meant = (small.float() * scale).reshape(weight.shape)
    saved = {"": small.reshape(weight.shape), "_scale_inv": scale.reshape(rows, columns)}
    return saved, meant


def int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    import torch

    scale = weight.abs().amax(1, keepdim=True) / 127
    small = (weight / scale).round().to(torch.int8)
    return {"": small, "_scale": scale}, small * scale


def mxfp4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Of experts, [experts, in, out]: two numbers in a byte, 32 with one power of two."""
    import torch

    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    table = torch.cat((table, -table))
    groups = weight.transpose(1, 2).reshape(len(weight), weight.shape[2], -1, 32)
    power = (groups.abs().amax(-1, keepdim=True) / 6).log2().ceil()
    chosen = ((groups * 2**-power)[..., None] - table).abs().argmin(-1)
    meant = (table[chosen] * 2**power).flatten(2).transpose(1, 2)
    packed = chosen[..., ::2] | chosen[..., 1::2] << 4
    scales = (power + 127).squeeze(-1)
    saved = {"_blocks": packed.to(torch.uint8), "_scales": scales.to(torch.uint8)}
    return saved, meant.contiguous()


METHODS: dict[str, tuple[str, Quantise, str, dict[str, Any]]] = {
    "fp8": ("qwen3", fp8, "proj.weight", {"weight_block_size": [BLOCK, BLOCK]}),
    "gemma": ("qwen3", int8, "proj.weight", {"num_bits": 8}),
    "mxfp4": ("gpt_oss", mxfp4, "experts.{}_proj", {}),
}
"""Architecture, how a weight is quantised, which ones (their names' end), and settings."""


def is_quantised(name: str, ending: str) -> bool:
    return name.endswith((ending.format("gate_up"), ending.format("down")))


def quantised(path: Path, to: Path, method: str) -> tuple[Path, Path]:
    """The checkpoint with quantised weights, and one with the plain weights that these mean."""
    import torch
    from safetensors.torch import load_file, save_file

    _, quantise, ending, settings = METHODS[method]
    small, plain = (Path(shutil.copytree(path, to / name)) for name in ("quantised", "plain"))
    tensors = load_file(path / "model.safetensors")
    meant, saved = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if is_quantised(name, ending):
            parts, meant[name] = quantise(tensor)
            del saved[name]
            saved |= {name + suffix: part.contiguous() for suffix, part in parts.items()}
            if method == "gemma":  # not calibrated
                for side in ("input", "output"):
                    scale = f"{name.removesuffix('weight')}{side}_activation_scale"
                    saved[scale] = torch.tensor(0.0)
    save_file(saved, small / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    declare(small, {"quant_method": method, **settings})
    return small, plain


def declare(path: Path, settings: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = settings
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("method", "tier", "growth"), [("fp8", "S", 2), ("gemma", "A", 1), ("mxfp4", "A", 2)]
)
async def test_answers_are_those_of_the_weights_that_are_meant(
    checkpoint: Checkpoint, tmp_path: Path, method: str, tier: str, growth: int
) -> None:
    """And what they will take is known before they are read."""
    small, plain = quantised(checkpoint(METHODS[method][0]), tmp_path, method)
    async with serving(plain) as served:
        wanted = await served.ask(PROMPT, max_tokens=16, ignore_eos=True)
    async with serving(small) as served:
        answer = await served.ask(PROMPT, max_tokens=16, ignore_eos=True)
        details = served.engine.stats().details
        estimate = await served.registry.estimate(served.spec)
    assert answer.text == wanted.text
    assert details["tier"] == tier
    assert details["weights_bytes"] == estimate.weights_bytes
    grown = estimate.weights_bytes / (small / "model.safetensors").stat().st_size
    assert (grown > 1.2) is (growth > 1)


@pytest.mark.parametrize(
    ("method", "sizes"),
    [("fp8", (140_000, 50_000)), ("gemma", (100_000, 12_000)), ("mxfp4", (220_000, 140_000))],
)
async def test_they_can_be_spread(
    checkpoint: Checkpoint, tmp_path: Path, method: str, sizes: tuple[int, int]
) -> None:
    small, plain = quantised(checkpoint(METHODS[method][0]), tmp_path, method)
    async with serving(plain) as served:
        wanted = (await served.ask(PROMPT, max_tokens=8)).text
    spec = spread_spec(small, max_model_len=48)
    async with new_registry(*sizes) as registry:
        text, details = await play(registry, spec)
        assert details["weights"] == "spread"
        assert text == wanted
        assert registry.parked()
        assert (await play(registry, spec))[0] == wanted


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch, of itself
@pytest.mark.parametrize("linear", ["bitlinear", "autobitlinear"])
async def test_bitnet_computes_what_transformers_computes(
    checkpoint: Checkpoint, tmp_path: Path, linear: str
) -> None:
    """It rounds what goes in as well, so that no plain weights mean the same."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.bitnet import pack_weights

    path = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    tensors = load_file(path / "model.safetensors")
    for name, weight in list(tensors.items()):
        if name.endswith("proj.weight"):
            size = weight.abs().mean()
            tensors[name] = pack_weights((weight / size).round().clamp(-1, 1))
            scale = size if linear == "autobitlinear" else 1 / size
            tensors[f"{name}_scale"] = scale.reshape(1)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    declare(
        path,
        {"quant_method": "bitnet", "linear_class": linear, "quantization_mode": "offline"},
    )
    async with serving(path) as served:
        answer = await served.ask(PROMPT, max_tokens=8, ignore_eos=True)
        [ids] = reference(path, [PROMPT], 8)
        assert answer.text == served.prepared.front.vocabulary.text(ids)
        assert served.engine.stats().details["tier"] == "A"


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
@pytest.mark.parametrize("asked", ["auto", "bfloat16", "float16"])
async def test_all_weights_become_of_the_type_that_is_computed_in(
    checkpoint: Checkpoint, tmp_path: Path, method: str, asked: str
) -> None:
    """Where nobody says which, bfloat16: nothing is computed in what the files hold."""
    small, _ = quantised(checkpoint(METHODS[method][0]), tmp_path, method)
    config = json.loads((small / "config.json").read_text())
    del config["dtype"]
    (small / "config.json").write_text(json.dumps(config))
    async with serving(small, dtype=asked) as served:
        dtype = served.engine.stats().details["dtype"]
        assert dtype == ("bfloat16" if asked == "auto" else asked)
        assert (await served.ask(PROMPT, max_tokens=4)).finished


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "compressed-tensors"}, r"compressed-tensors\).*pip install"),
        ({"quant_method": "gptq", "bits": 4}, r"gptq\).*pip install optimum"),
        ({"quant_method": "awq", "bits": 4}, r"awq\).*pip install gptqmodel"),
        ({"load_in_4bit": True}, r"bitsandbytes\).*pip install"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"bitsandbytes\).*pip install"),
        ({"quant_method": "torchao"}, r"torchao\).*"),
        ({"quant_method": "fbgemm_fp8"}, r"fbgemm_fp8\).*requires a GPU"),
        ({"quant_method": "metal"}, r"metal\): they need kernels from the Hub"),
        ({"quant_method": "thrifty"}, r"thrifty\): which is not known"),
        ({}, r"None\): which is not known"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": 7}, "settings that make no sense"),
        ("fp8", r"config\.json has values that make no model"),
    ],
)
async def test_what_cannot_be_read_is_refused_by_name_before_it_is_read(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    reason: str,
) -> None:
    from hotswap.engine import loader as module

    monkeypatch.setattr(module, "map_files", lambda *_: pytest.fail("it is read"))
    path = Path(shutil.copytree(checkpoint(), tmp_path / "model"))
    declare(path, settings)
    async with new_registry() as registry:
        with pytest.raises(CheckpointRefused, match=reason):
            await registry.estimate(spec_of(path))
        with pytest.raises(CheckpointRefused, match=reason) as caught:
            await registry.prepare(spec_of(path), ignore)
    assert str(tmp_path) not in caught.value.message


async def test_no_kernels_are_fetched_for_what_can_be_made_plain(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a GPU, transformers would keep such weights as they are."""
    import torch

    from hotswap.engine.quantization import for_reading, quantizer_of
    from tests.engine.checkpoints import hf

    small, _ = quantised(checkpoint(), tmp_path, "fp8")
    config = hf().AutoConfig.from_pretrained(small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    quantizer = quantizer_of(for_reading(config))
    assert quantizer is not None
    assert quantizer.quantization_config.dequantize  # type: ignore[attr-defined]
    assert "dequantize" not in config.quantization_config
