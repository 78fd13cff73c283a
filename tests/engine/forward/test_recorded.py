"""Decode steps as a list of kernels, beside the steps of the model; the kernels are those in
plain torch, and a tape stands for the device's graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.checkpoints import ARCHITECTURES, VARIANTS, WITHOUT_SKELETON
from tests.engine.forward.test_lean import LENGTH, SEQUENCES, Stepping, model_of, plain, worst
from tests.engine.serving import Served, serving
from tests.engine.test_ahead import mixed, note_launches, told
from tests.engine.test_graphs import Tape

if TYPE_CHECKING:
    from hotswap.engine.forward.recorded import RecordedForward

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]

EAGER = {"olmo2", "olmo3", "olmoe", "qwen3_moe", "qwen3_moe_normalised"}
"""Norms over all heads, no norms before, experts."""
RECORDABLE = sorted((ARCHITECTURES | VARIANTS).keys() - WITHOUT_SKELETON - EAGER)


def recorded(model: Any, tape: Tape | None = None, kernels: Any = None) -> RecordedForward:
    import torch

    from hotswap.engine.forward.reading import read
    from hotswap.engine.forward.recorded import RecordedForward
    from hotswap.engine.kv_pool import KVPool

    forward = RecordedForward(read(model), KVPool(torch.device("cpu"), 1), kernels)
    forward.reserve(16)
    forward.record(rows=SEQUENCES, tokens=LENGTH, recorder=tape)
    return forward


def count_lean_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of segments of each step that is not of the recorded kind."""
    from hotswap.engine.forward.lean import LeanForward

    counts: list[int] = []
    logits = LeanForward.logits

    def counting(self: LeanForward, segments: Any, ids: Any = None) -> Any:
        counts.append(len(segments))
        return logits(self, segments, ids)

    monkeypatch.setattr(LeanForward, "logits", counting)
    return counts


@pytest.mark.parametrize("architecture", RECORDABLE)
def test_steps_of_all_kinds_give_the_logits_of_the_model(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    model = model_of(checkpoint(architecture))
    counts = count_lean_steps(monkeypatch)
    assert worst(recorded(model), plain(model)) < 1e-4
    assert len(counts) == 4, "those with prompts in them"


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_replayed_steps_give_the_logits_of_the_model(
    checkpoint: Checkpoint, architecture: str
) -> None:
    model, tape = model_of(checkpoint(architecture)), Tape()
    assert worst(recorded(model, tape), plain(model)) < 1e-4
    assert tape.log.count("replay") > 5


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "llama_biases"])
def test_half_precision_is_about_right(checkpoint: Checkpoint, architecture: str) -> None:
    model = model_of(checkpoint(architecture), "bfloat16")
    assert worst(recorded(model), plain(model)) < 6e-2


@pytest.mark.parametrize("architecture", sorted(EAGER))
def test_what_the_kernels_do_not_know_is_computed_as_before(
    checkpoint: Checkpoint, architecture: str
) -> None:
    from hotswap.engine.forward.recorded import decode_blocks

    model = model_of(checkpoint(architecture))
    forward = recorded(model)
    assert decode_blocks(forward.skeleton) is None
    assert worst(forward, plain(model)) < 1e-4
    assert forward.highest([]) is None


def decoding(model: Any, **options: Any) -> Stepping:
    """Sequences whose first 20 and 9 tokens are computed."""
    stepping = Stepping(recorded(model, **options), plain(model))
    stepping.step([(0, 0, 20), (1, 0, 9)])
    return stepping


def segments_at(stepping: Stepping, starts: list[int], ids: list[list[int]]) -> list[Any]:
    from hotswap.engine.forward.base import Segment

    return [
        Segment(number, ids[number], start, True, stepping.tables[number])
        for number, start in enumerate(starts)
    ]


def test_the_highest_logits_are_found_in_the_step(checkpoint: Checkpoint) -> None:
    import torch

    stepping = decoding(model_of(checkpoint("qwen3")))
    segments = segments_at(stepping, [20, 9], [[3], [4]])
    forward: Any = stepping.forward
    with torch.inference_mode():
        tokens = forward.highest(segments)
        logits = forward.logits(segments)
    assert tokens.tolist() == logits.argmax(-1).tolist()


def test_a_step_with_a_prompt_has_no_highest(checkpoint: Checkpoint) -> None:
    stepping = decoding(model_of(checkpoint("qwen3")))
    forward: Any = stepping.forward
    assert forward.highest(segments_at(stepping, [20, 9], [[3], [4, 5]])) is None


@pytest.mark.parametrize("tape", [False, True])
def test_tokens_may_be_known_to_the_device_only(checkpoint: Checkpoint, tape: bool) -> None:
    import torch

    stepping = decoding(model_of(checkpoint("qwen3")), tape=Tape() if tape else None)
    known = segments_at(stepping, [20, 9], [[3], [4]])
    unknown = segments_at(stepping, [20, 9], [[0], [0]])
    with torch.inference_mode():
        for _ in range(3):
            wanted = stepping.forward.logits(known).clone()
            got = stepping.forward.logits(unknown, torch.tensor([3, 4]))
            torch.testing.assert_close(got, wanted)


def test_a_row_may_change_its_sequence_and_tables_may_grow(checkpoint: Checkpoint) -> None:
    """Rows are handed on as answers end, and only what is new of a table is written."""
    from hotswap.engine.blocks import BlockPool, BlockTable

    model = model_of(checkpoint("llama"))
    stepping = Stepping(recorded(model), plain(model))
    pool = BlockPool(16)
    stepping.tables = [BlockTable() for _ in range(SEQUENCES)]
    ends = [0] * SEQUENCES

    def step(*parts: tuple[int, int]) -> float:
        """As (sequence, tokens)."""
        spans = []
        for number, count in parts:
            spans.append((number, ends[number], ends[number] + count))
            ends[number] += count
            assert pool.grow(stepping.tables[number], ends[number])
        return stepping.step(spans)

    errors = [step((0, 14), (1, 15), (2, 30))]
    errors += [step((0, 1), (1, 1), (2, 1)) for _ in range(4)]
    errors += [step((1, 1), (2, 1)), step((3, 12)), step((3, 1), (1, 1))]
    errors += [step((0, 1), (3, 1), (1, 1), (2, 1)) for _ in range(3)]
    assert max(errors) < 1e-4
    assert len(stepping.tables[0].blocks) == 2


def test_a_pool_of_another_size_is_not_computed_with_by_old_graphs(checkpoint: Checkpoint) -> None:
    model, tape = model_of(checkpoint("qwen3")), Tape()
    forward = recorded(model, tape)
    assert worst(forward, plain(model)) < 1e-4
    forward.reserve(20)
    assert tape.log.count("reset") > 0
    tape.log.clear()
    assert worst(forward, plain(model)) < 1e-4
    assert tape.log == [], "not recorded again"
    forward.record(rows=SEQUENCES, tokens=LENGTH, recorder=tape)
    assert worst(forward, plain(model)) < 1e-4
    assert "replay" in tape.log


def test_closing_frees_graphs_and_pool(checkpoint: Checkpoint) -> None:
    tape = Tape()
    forward = recorded(model_of(checkpoint("qwen3")), tape)
    assert worst(forward, plain(model_of(checkpoint("qwen3")))) < 1e-4
    forward.close()
    assert tape.log.count("reset") == tape.log.count("record") > 0
    assert forward.pool.token_bytes == 0


@pytest.mark.anyio
@pytest.mark.parametrize("ahead", [False, True])
async def test_answers_are_those_of_the_plain_steps(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    path = checkpoint("qwen3")
    async with serving(path) as served:
        wanted = await mixed(served)
    async with serving(path) as served:
        use_recorded(served)
        served.engine._ahead = ahead
        launches, counts = note_launches(served), count_lean_steps(monkeypatch)
        got = await mixed(served)
    assert told(got) == told(wanted)
    assert any(launches) == ahead
    assert 0 < len(counts) < len(launches)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_graphs_of_the_device_give_the_logits_of_the_model(
    checkpoint: Checkpoint, architecture: str
) -> None:
    import torch

    from hotswap.engine.forward.reading import read
    from hotswap.engine.forward.recorded import RecordedForward
    from hotswap.engine.graphs import recorder_on
    from hotswap.engine.kv_pool import KVPool

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")

    class OnHost(RecordedForward):
        """Answers where it can be compared."""

        def logits(self, segments: Any, ids: Any = None) -> Any:
            return super().logits(segments, ids).cpu()

    device = torch.device("cuda")
    model = model_of(checkpoint(architecture))
    wanted = plain(model)
    forward = OnHost(read(model.to(device)), KVPool(device, 1))
    forward.reserve(16)
    forward.record(rows=SEQUENCES, tokens=LENGTH, recorder=recorder_on(device))
    assert worst(forward, wanted) < 1e-3
    forward.close()


def use_recorded(served: Served) -> None:
    from hotswap.engine.forward.recorded import RecordedForward
    from hotswap.engine.runner import ModelRunner
    from hotswap.engine.sampler import sampler_on

    lean: Any = served.engine._runner.forward
    forward = RecordedForward(lean.skeleton, lean.pool)
    forward.record(rows=16, tokens=served.engine.max_model_len, recorder=None)
    served.engine._runner = ModelRunner(forward, sampler_on(forward.skeleton.embedding.device))
