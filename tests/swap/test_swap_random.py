"""Random histories of the controller, in virtual time: whatever happens, the promises hold."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import trio
from hypothesis import given
from hypothesis import strategies as st

from hotswap.config import SwapRules
from hotswap.contracts.models import ModelSpec
from hotswap.errors import EngineFailed, HotswapError, InsufficientMemory, ModelLoadFailed
from hotswap.scripted import Script
from tests.swap.house import House, drawn, play, spec, text, watch_counters

RULES = SwapRules(
    on_demand=True, patience_s=1.0, max_wait_s=5.0, drain_timeout_s=30.0, swap_timeout_s=60.0,
    max_queue=20, idle_timeout_s=10.0,
)  # fmt: skip
models = st.sampled_from("ABC")
askable = st.sampled_from(["A", "B", "C", "current", "tasks"])
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
class Sleep:
    park: bool
    abort: bool


@dataclass(frozen=True)
class WakeUp:
    pass


@dataclass(frozen=True)
class Break:
    """Make something of a model fail, or all of it work again."""

    model: str
    what: str


actions = st.one_of(
    st.builds(Ask, askable, st.integers(1, 40), st.none() | moments),
    st.builds(Ask, askable, st.integers(1, 5), st.none()),
    st.builds(Load, models, st.none() | st.integers(1, 3)),
    st.builds(Unload, st.none() | models, st.booleans()),
    st.builds(Sleep, st.booleans(), st.booleans()),
    st.just(WakeUp()),
    st.builds(Break, models, st.sampled_from(["prepare", "start", "step", "nothing"])),
)
Action = Ask | Load | Unload | Sleep | WakeUp | Break
histories = st.lists(st.tuples(pauses, actions), min_size=1, max_size=25)


async def act(house: House, action: Action) -> None:
    match action:
        case Ask(model, tokens, leaves_after_s):
            with trio.move_on_after(leaves_after_s or 10_000) as leaving:
                answer = await house.ask(model, tokens)
                assert answer.finished != (answer.error is not None), "ended in exactly one way"
                if answer.finished:
                    assert answer.text == text(answer.model, tokens)
                    assert answer.model in (model if model in "ABC" else "ABC")
            assert leaves_after_s or not leaving.cancelled_caught, "nobody waits for ever"
        case Load(model, max_model_len):
            overrides = {} if max_model_len is None else {"max_model_len": max_model_len}
            with trio.fail_after(10_000), suppress(HotswapError):  # a refusal is an answer too
                await house.service.load(model, overrides, "request")
        case Unload(model, abort):
            with trio.fail_after(10_000), suppress(HotswapError):
                report = await house.service.unload(model, mode="abort" if abort else "drain")
                assert model is None or report.model in (None, model)
        case Sleep(park, abort):
            with trio.fail_after(10_000), suppress(HotswapError):
                await house.service.sleep(park=park, mode="abort" if abort else "drain")
        case WakeUp():
            with trio.fail_after(10_000), suppress(HotswapError):
                await house.service.wake_up()
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


MODELS = (spec("A"), spec("B"), spec("C"), ModelSpec(id="tasks", path=None, background=True))


def unhurried() -> Script:
    return Script(prepare_s=1.5, start_s=0.3, stop_s=0.5, render_s=0.05)


@given(histories)
def test_whatever_happens_every_request_ends_once_and_nothing_is_left(
    history: list[tuple[float, Action]],
) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as watching:
            watching.start_soon(watch_counters, house)
            async with trio.open_nursery() as nursery:
                for pause, action in history:
                    await trio.sleep(pause)
                    nursery.start_soon(act, house, action)
            house.registry.script.prepare_errors.clear()
            house.registry.script.start_errors.clear()
            await trio.sleep(400)  # virtual seconds: every cooldown has passed
            assert (await house.ask("A")).finished, "it serves again once nothing fails"
            assert (await house.ask("current")).model == "A"
            watching.cancel_scope.cancel()

    house = play(scenario, RULES, unhurried(), MODELS, startup="B")
    assert len(house.registry.started) <= len(history) * 3 + 3
    assert house.controller.snapshot().tokens == drawn(house)


@given(histories, moments, st.booleans())
def test_whatever_goes_on_sleep_leaves_the_device_empty(
    history: list[tuple[float, Action]], pause_s: float, park: bool
) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for pause, action in history:
                await trio.sleep(pause)
                nursery.start_soon(act, house, action)
            await trio.sleep(pause_s + 0.01)
            await house.service.sleep(park=park, mode="abort")
            assert (house.phase, house.registry.current) == ("empty", None)
            started = len(house.registry.started)
            await trio.sleep(400)
            assert (house.phase, len(house.registry.started)) == ("empty", started)

    play(scenario, RULES, replace(unhurried(), render_s=0.0), MODELS, startup="B")


takers_of_any = st.builds(
    Ask, st.sampled_from(["current", "tasks"]), st.integers(1, 40), st.none() | moments
)


@given(st.lists(st.tuples(pauses, takers_of_any | st.builds(Load, models, st.none())), max_size=25))
def test_whoever_takes_any_model_never_causes_a_swap(history: list[tuple[float, Action]]) -> None:
    async def scenario(house: House) -> None:
        async with trio.open_nursery() as nursery:
            for pause, action in history:
                await trio.sleep(pause)
                nursery.start_soon(act, house, action)

    rules = replace(RULES, idle_timeout_s=None)
    house = play(scenario, rules, unhurried(), MODELS, startup="B")
    assert not [answer.error for answer in house.answers if answer.error]
    loads = [action.model for _, action in history if isinstance(action, Load)]
    first = house.registry.started[:1]
    assert len(house.registry.started) <= len(loads) + (first == ["B"])
