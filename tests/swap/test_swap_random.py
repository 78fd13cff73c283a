"""Random histories of the controller, in virtual time: whatever happens, the promises hold."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotswap.config import SwapRules
from hotswap.errors import EngineFailed, HotswapError, InsufficientMemory, ModelLoadFailed
from hotswap.scripted import Script
from tests.swap.house import House, play, text

RULES = SwapRules(
    on_demand=True, patience_s=1.0, max_wait_s=5.0, drain_timeout_s=30.0, swap_timeout_s=60.0,
    max_queue=20, idle_timeout_s=10.0,
)  # fmt: skip
models = st.sampled_from("ABC")
moments = st.integers(0, 40).map(lambda tenths: tenths / 10)
pauses = moments | st.sampled_from([9.9, 10.0, 10.1, 15.0])


@dataclass(frozen=True)
class Ask:
    model: str
    tokens: int
    leaves_after_s: float | None


@dataclass(frozen=True)
class Load:
    model: str
    max_model_len: int | None


@dataclass(frozen=True)
class Unload:
    model: str | None
    abort: bool


@dataclass(frozen=True)
class Break:
    """Make something of a model fail, or all of it work again."""

    model: str
    what: str


actions = st.one_of(
    st.builds(Ask, models, st.integers(1, 40), st.none() | moments),
    st.builds(Ask, models, st.integers(1, 5), st.none()),
    st.builds(Load, models, st.none() | st.integers(1, 3)),
    st.builds(Unload, st.none() | models, st.booleans()),
    st.builds(Break, models, st.sampled_from(["prepare", "start", "step", "nothing"])),
)
histories = st.lists(st.tuples(pauses, actions), min_size=1, max_size=25)


async def act(house: House, action: Ask | Load | Unload | Break) -> None:
    match action:
        case Ask(model, tokens, leaves_after_s):
            with trio.move_on_after(leaves_after_s or 10_000) as leaving:
                answer = await house.ask(model, tokens)
                assert answer.finished != (answer.error is not None), "ended in exactly one way"
                if answer.finished:
                    assert answer.text == text(model, tokens)
                    assert answer.model == model
            assert leaves_after_s or not leaving.cancelled_caught, "nobody waits for ever"
        case Load(model, max_model_len):
            overrides = {} if max_model_len is None else {"max_model_len": max_model_len}
            with trio.fail_after(10_000), suppress(HotswapError):  # a refusal is an answer too
                await house.service.load(model, overrides, "request")
        case Unload(model, abort):
            with trio.fail_after(10_000), suppress(HotswapError):
                report = await house.service.unload(model, mode="abort" if abort else "drain")
                assert model is None or report.model in (None, model)
        case Break(model, what):
            break_down(house, model, what)


def break_down(house: House, model: str, what: str) -> None:
    script, engine = house.registry.script, house.registry.current
    if what == "prepare":
        script.prepare_errors[model] = ModelLoadFailed("broken")
    elif what == "start":
        script.start_errors[model] = InsufficientMemory("too big")
    elif what == "step" and engine is not None:
        engine.fail(EngineFailed("a step raised"))
    else:
        script.prepare_errors.clear()
        script.start_errors.clear()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_whatever_happens_every_request_ends_once_and_nothing_is_left(
    history: list[tuple[float, Ask | Load | Unload | Break]],
) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for pause, action in history:
                await trio.sleep(pause)
                nursery.start_soon(act, house, action)
        house.registry.script.prepare_errors.clear()
        house.registry.script.start_errors.clear()
        await trio.sleep(400)  # virtual seconds: every cooldown has passed
        assert (await house.ask("A")).finished, "it serves again once nothing fails"

    house = play(scenario, RULES, Script(prepare_s=1.5, start_s=0.3, stop_s=0.5, render_s=0.05))
    assert len(house.registry.started) <= len(history) * 3 + 3
