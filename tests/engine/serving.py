"""A running engine for tests, and what one asks of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.contracts.models import EngineConfig, ModelSpec
from hotswap.contracts.requests import (
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)

if TYPE_CHECKING:  # torch: not in the fast run
    from hotswap.engine.engine import TorchEngine
    from hotswap.engine.prepared import TorchPrepared
    from hotswap.engine.registry import TorchEngineRegistry
    from hotswap.engine.sequence import Sequence

GREEDY = SamplingParams(temperature=0.0)


def ignore(*_: object) -> None:
    """A report or a `changed` that nobody listens to."""


@dataclass(slots=True)
class Answer:
    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Name and arguments of each tool call."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    deltas: list[str] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, event: GenerationEvent) -> None:
        assert self.finished is None, "an event after the last one"
        match event:
            case Finished():
                self.finished = event
            case TextDelta():
                self.text += event.text
                self.deltas.append(event.text)
                self.logprobs += event.logprobs
            case ReasoningDelta():
                self.reasoning += event.text
            case ToolCallDelta():
                if event.name is not None:
                    self.calls.append([event.name, ""])
                self.calls[event.call][1] += event.arguments


@dataclass(slots=True)
class Served:
    registry: TorchEngineRegistry
    prepared: TorchPrepared
    engine: TorchEngine

    @property
    def spec(self) -> ModelSpec:
        return self.prepared.spec

    @property
    def tier(self) -> str:
        return str(self.engine.stats().details["tier"])

    def note_preempted(self) -> list[int]:
        """Grows by the id of each sequence that gives up its room from now on."""
        scheduler, ids = self.engine._scheduler, list[int]()
        preempt = scheduler.preempt

        def noted(sequence: Sequence) -> None:
            ids.append(sequence.id)
            preempt(sequence)

        scheduler.preempt = noted  # type: ignore[method-assign]
        return ids

    async def ask(self, prompt: Prompt | str | list[int], **fields: Any) -> Answer:
        """The only choice of the only prompt, to its end."""
        [answer] = await self.ask_all(prompt, **fields)
        return answer

    async def ask_all(self, *prompts: Prompt | str | list[int], **fields: Any) -> list[Answer]:
        rendered = await self.registry.render(self.spec, request(*prompts, **fields))
        answers = [Answer() for _ in range(len(prompts) * fields.get("n", 1))]
        async with self.engine.generate(rendered) as generation:
            async for events in generation:
                assert events
                for event in events:
                    answers[event.index].take(event)
        assert all(answer.finished for answer in answers)
        return answers


def request(*prompts: Prompt | str | list[int], **fields: Any) -> GenerationRequest:
    """Greedy unless ``sampling`` is given."""
    return GenerationRequest(
        prompts=tuple(map(_prompt, prompts)), **({"sampling": GREEDY} | fields)
    )


def _prompt(prompt: Prompt | str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return TextPrompt(prompt)
    return TokenPrompt(tuple(prompt)) if isinstance(prompt, list) else prompt


def spec_of(path: Path, **engine: Any) -> ModelSpec:
    sampling = engine.pop("sampling", SamplingParams())
    config = EngineConfig(**{"device": "cpu"} | engine)
    return ModelSpec(id=f"test/{path.name}", path=path, engine=config, sampling=sampling)


@asynccontextmanager
async def serving(
    path: Path, *, changed: Callable[[], None] = ignore, **engine: Any
) -> AsyncIterator[Served]:
    from hotswap.engine.registry import TorchEngineRegistry

    async with TorchEngineRegistry() as registry:
        prepared = await registry.prepare(spec_of(path, **engine), ignore)
        async with registry.start(prepared, ignore, changed) as running:
            yield Served(registry, prepared, running)


def reference(path: Path, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """What transformers' own `generate` answers greedily, one by one, end tokens ignored."""
    import torch

    from tests.engine.checkpoints import hf

    model = hf().AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = hf().GenerationConfig(
        max_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    model.generation_config.eos_token_id = None  # or generate takes it from there
    answers: list[list[int]] = []
    for ids in prompts:
        batch = torch.tensor([ids])
        with torch.inference_mode():
            out = model.generate(
                batch, attention_mask=torch.ones_like(batch), generation_config=config
            )
        answers.append(out[0, len(ids) :].tolist())
    return answers
