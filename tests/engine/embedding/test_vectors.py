"""What comes out is what transformers and the pooling written in these tests make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotswap.errors import CheckpointRefused, ContextLengthExceeded, InvalidRequest
from tests.engine.embedding.encoders import WIDTH, plain_vectors
from tests.engine.embedding.serving import embedding, embedding_spec, rows

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Encoders = Callable[..., Path]

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MAX = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
LAST = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a cat",
    "a lazy dog",
    "the quick brown fox jumps over the lazy dog and a quick brown cat jumps over the fox!" * 2,
    "fox",
)


def same(found: Any, expected: Any) -> bool:
    import torch

    return torch.allclose(rows(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "pooling", "by"),
    [
        ("bert", MEAN, "mean"),
        ("bert", CLS, "cls"),
        ("bert", MAX, "max"),
        ("bert", {"pooling_mode": "cls"}, "cls"),
        ("bert", {}, "mean"),
        ("bert", None, "mean"),
        ("xlm_roberta", MEAN, "mean"),
        ("xlm_roberta", CLS, "cls"),
        ("mpnet", MEAN, "mean"),
        ("modernbert", MEAN, "mean"),
        ("modernbert", CLS, "cls"),
        ("nomic_bert", MEAN, "mean"),
        ("qwen3", LAST, "lasttoken"),
        ("qwen3", {"pooling_mode": "lasttoken"}, "lasttoken"),
        ("qwen3", MEAN, "mean"),
        ("qwen3", None, "lasttoken"),
    ],
)
async def test_alone_and_in_a_batch_it_is_the_vector_of_a_plain_forward(
    encoder: Encoders, architecture: str, pooling: dict[str, Any] | None, by: str
) -> None:
    path = encoder(architecture, pooling=pooling)
    async with embedding(path) as served:
        expected = plain_vectors(path, await served.ids(*TEXTS), by)
        together = await served.ask(*TEXTS)
        assert same(together, expected)
        for text, row in zip(TEXTS, expected, strict=True):
            assert same(await served.ask(text), row[None])
        assert together.prompt_tokens == sum(map(len, await served.ids(*TEXTS)))
        details = served.engine.stats().details
        assert (details["pooling"], details["dimensions"]) == (by, WIDTH)


async def test_a_text_ends_with_the_mark_that_its_tokenizer_appends(encoder: Encoders) -> None:
    async with embedding(encoder("qwen3", pooling=LAST)) as served:
        [ids] = await served.ids("a cat")
        tokenizer = (await served.registry._fronts.get(served.spec)).tokenizer
        assert ids[-1] == tokenizer.pad_token_id
        assert tokenizer.padding_side == "left"


async def test_a_head_for_the_next_token_is_left_out(encoder: Encoders) -> None:
    path = encoder("qwen3", pooling=LAST, causal_head=True)
    async with embedding(path) as served:
        expected = plain_vectors(path, await served.ids(*TEXTS), "lasttoken")
        assert same(await served.ask(*TEXTS), expected)


async def test_token_ids_are_taken_as_they_are(encoder: Encoders) -> None:
    path = encoder(pooling=MEAN)
    async with embedding(path) as served:
        assert same(await served.ask([5, 6, 7]), plain_vectors(path, [[5, 6, 7]], "mean"))
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            await served.ask([5, 10_000])


async def test_a_dense_module_and_several_poolings_are_what_they_say(encoder: Encoders) -> None:
    import torch
    from safetensors.torch import load_file

    path = encoder(pooling=MEAN, modules=("Dense", "Normalize"))
    dense = load_file(path / "2_Dense" / "model.safetensors")
    async with embedding(path) as served:
        [ids] = await served.ids(TEXTS[0])
        found = rows(await served.ask(TEXTS[0]))[0]
    plain = encoder(pooling={"pooling_mode": ["cls", "mean"]}, modules=())
    async with embedding(plain) as served:
        pooled = rows(await served.ask(ids))[0]
        assert served.engine.stats().details["dimensions"] == 2 * WIDTH
    expected = torch.tanh(dense["linear.weight"] @ pooled[WIDTH:] + dense["linear.bias"])
    assert torch.allclose(found, expected / expected.norm(), atol=1e-5)


async def test_without_a_module_for_it_vectors_are_not_normalised(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN, modules=())) as served:
        assert rows(await served.ask("a cat")).norm() > 1.5


@pytest.mark.parametrize("modules", [(), ("Normalize",)])
async def test_fewer_dimensions_are_the_first_ones_of_length_one(
    encoder: Encoders, modules: tuple[str, ...]
) -> None:
    import torch

    async with embedding(encoder(pooling=MEAN, modules=modules)) as served:
        [whole] = rows(await served.ask("a cat"))
        [cut] = rows(await served.ask("a cat", dimensions=7))
        assert torch.allclose(cut, whole[:7] / whole[:7].norm(), atol=1e-6)
        for wrong in (0, WIDTH + 1):
            with pytest.raises(InvalidRequest) as caught:
                await served.ask("a cat", dimensions=wrong)
            assert caught.value.param == "dimensions"


@pytest.mark.parametrize("longest", [None, 16])
@pytest.mark.parametrize("architecture", ["bert", "xlm_roberta", "qwen3"])
async def test_what_is_too_long_is_refused_or_cut_before_its_end_mark(
    encoder: Encoders, architecture: str, longest: int | None
) -> None:
    limit = longest or {"bert": 64, "xlm_roberta": 65, "qwen3": 256}[architecture]
    async with embedding(encoder(architecture, pooling=MEAN, longest=longest)) as served:
        for text in ("fox " * limit, "fox " * 10_000):
            with pytest.raises(ContextLengthExceeded) as caught:
                await served.ask(text)
            assert str(limit) in caught.value.message
            [ids] = await served.ids(text, truncate=True)
            [short] = await served.ids("fox fox fox")
            assert len(ids) == limit
            assert ids[-1] == short[-1]
            assert ids[:2] == short[:2]
            assert len((await served.ask(text, truncate=True)).vectors) == 1
        assert len((await served.ask([5] * limit)).vectors) == 1
        with pytest.raises(ContextLengthExceeded):
            await served.ask([5] * (limit + 1))


async def test_a_text_that_is_only_counted_may_be_empty_or_too_long(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        [some, none] = await served.ids("fox " * 10_000, "", counted=True)
        assert len(some) > 10_000
        assert len(none) < 3


async def test_a_default_prompt_stands_before_each_text(encoder: Encoders, tmp_path: Path) -> None:
    path = Path(shutil.copytree(encoder(pooling=MEAN), tmp_path / "m"))
    settings = {"prompts": {"query": "the ", "other": "fox "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    async with embedding(path) as served:
        assert await served.ids("cat") == await ids_of(encoder(pooling=MEAN), "the cat")


async def ids_of(path: Path, *texts: str) -> list[tuple[int, ...]]:
    async with embedding(path) as served:
        return await served.ids(*texts)


async def test_a_text_without_tokens_is_refused(encoder: Encoders) -> None:
    async with embedding(encoder(pooling=MEAN)) as served:
        assert len((await served.ask("")).vectors) == 1  # [CLS] and [SEP]
        with pytest.raises(InvalidRequest, match="no tokens"):
            await served.ask([])


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("modules.json", "{}", "not a JSON list"),
        ("modules.json", "[]", "does not begin with Transformer and Pooling"),
        ("modules.json", '[{"type": "a.Transformer", "path": "0_Transformer"}]', "does not begin"),
        ("modules.json", "[7]", "entry without type and path"),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', "'weightedmean'"),
        ("1_Pooling/config.json", '{"pooling_mode": "magic"}', "'magic'"),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": false}', "takes nothing"),
        ("sentence_bert_config.json", '{"max_seq_length": "x"}', "max_seq_length"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "q"}', "prompt is missing"),
        ("2_Dense/config.json", '{"in_features": 5, "out_features": 3}', "does not take 32"),
        (
            "2_Dense/config.json",
            '{"in_features": 32, "out_features": 3}',
            "do not agree with its config.json",
        ),
        (
            "2_Dense/config.json",
            '{"in_features": 32, "out_features": 16, "activation_function": "os.system"}',
            "'system' is not supported",
        ),
        ("2_Dense/model.safetensors", "x", "truncated or not a safetensors file"),
    ],
)
async def test_what_is_not_supported_is_refused_before_anything_is_loaded(
    encoder: Encoders, tmp_path: Path, file: str, content: str, reason: str
) -> None:
    from hotswap.engine.front import Fronts

    path = encoder(pooling=MEAN, modules=("Dense", "Normalize"))
    path = Path(shutil.copytree(path, tmp_path / "m"))
    (path / file).write_text(content)
    with pytest.raises(CheckpointRefused) as caught:
        Fronts().get(embedding_spec(path))
    assert reason in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("kind", ["SpladePooling", "CNN", "Router"])
async def test_an_unknown_module_is_refused_by_name(
    encoder: Encoders, tmp_path: Path, kind: str
) -> None:
    from hotswap.engine.front import Fronts

    path = Path(shutil.copytree(encoder(pooling=MEAN), tmp_path / "m"))
    modules = json.loads((path / "modules.json").read_text())
    modules.append({"type": f"sentence_transformers.models.{kind}", "path": ""})
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointRefused, match=kind):
        Fronts().get(embedding_spec(path))


async def test_a_module_is_not_looked_for_outside(encoder: Encoders, tmp_path: Path) -> None:
    from hotswap.engine.front import Fronts

    path = Path(shutil.copytree(encoder(pooling=MEAN), tmp_path / "m"))
    shutil.move(path / "1_Pooling", tmp_path / "elsewhere")
    (path / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointRefused, match="outside"):
        Fronts().get(embedding_spec(path))
    modules = json.loads((path / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointRefused, match="not a plain name"):
        Fronts().get(embedding_spec(path))
