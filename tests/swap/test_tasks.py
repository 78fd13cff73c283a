"""Models for another task: they swap like any, and each answers only what it is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from hotswap.config import SwapRules
from hotswap.contracts.answers import Embeddings
from hotswap.contracts.models import ModelSpec
from hotswap.contracts.requests import ChatPrompt, EmbeddingRequest, GenerationRequest, TextPrompt
from hotswap.errors import HotswapError, InvalidRequest, ModelNotFound
from hotswap.scripted import Script
from tests.swap.house import House, play, spec

MODELS = (spec("A"), spec("B"), spec("E", task="embed"), spec("F", task="embed"))


async def embed(house: House, model: str | None, texts: int = 1) -> Embeddings | HotswapError:
    prompts = tuple(TextPrompt("hello") for _ in range(texts))
    try:
        return await house.service.embed(EmbeddingRequest(prompts=prompts, model=model))
    except HotswapError as error:
        return error


async def embedded(house: House, model: str | None, texts: int = 1) -> Embeddings:
    found = await embed(house, model, texts)
    assert isinstance(found, Embeddings), found
    return found


def test_an_embedding_model_swaps_in_and_the_chat_model_back() -> None:
    async def scenario(house: House) -> None:
        assert (await house.ask("A")).finished
        found = await embedded(house, "E", texts=2)
        assert (found.model, len(found.vectors), found.prompt_tokens) == ("E", 2, 14)
        assert (await house.ask("A")).finished

    assert play(scenario, models=MODELS).registry.started == ["A", "E", "A"]


@pytest.mark.parametrize("resident", ["A", "E"])
def test_a_request_for_the_wrong_task_costs_no_swap(resident: str) -> None:
    async def scenario(house: House) -> None:
        await house.service.load(resident, {}, "request")
        refused = (await house.ask("F")).error
        assert isinstance(refused, InvalidRequest)
        assert refused.param == "model"
        assert "'F' is an embedding model" in refused.message
        refused = (await house.ask("E")).error
        assert isinstance(refused, InvalidRequest)
        for name in ("A", "B"):
            found = await embed(house, name)
            assert isinstance(found, InvalidRequest)
            assert "is not an embedding model" in found.message

    assert play(scenario, models=MODELS).registry.started == [resident]


def test_any_model_is_any_for_the_same_task() -> None:
    async def scenario(house: House) -> None:
        assert isinstance(await embed(house, None), ModelNotFound)
        await house.ask("B")
        await embedded(house, "E")
        assert (await embedded(house, "current")).model == "E"
        assert (await house.ask("current")).model == "B"
        assert (await embedded(house, None)).model == "E"

    assert play(scenario, models=MODELS, startup="A").registry.started == ["B", "E", "B", "E"]


@pytest.mark.parametrize("asked_after_s", [0.0, 0.5, 0.99, 1.0, 1.2, 1.4, 1.49, 1.5, 1.6])
def test_who_takes_any_while_another_task_comes_is_answered_by_his_own(
    asked_after_s: float,
) -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(embedded, house, "E")
            await trio.sleep(asked_after_s)
            answer = await house.ask("current")
        assert answer.finished
        assert answer.model == "A"

    script = Script(render_s=0.3, start_s=0.1, stop_s=0.2)
    play(scenario, script=script, models=MODELS, startup="A")


def test_a_served_embedding_model_tells_who_would_chat_with_it() -> None:
    async def scenario(house: House) -> None:
        assert (await embedded(house, None)).model == "E"
        refused = (await house.ask(None)).error
        assert isinstance(refused, InvalidRequest)
        assert "embedding model" in refused.message

    rules = SwapRules(on_demand=False)
    house = play(scenario, rules, models=MODELS, startup="E")
    assert house.registry.started == ["E"]


def test_what_a_model_is_for_is_seen_once_it_is_downloaded() -> None:
    """Both requests are let through to the download, and one of them is refused after it."""
    remote = ModelSpec(id="R", path=None)

    async def scenario(house: House) -> None:
        house.catalog.fetched_tasks["R"] = "embed"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(embedded, house, "R")
            refused = (await house.ask("R")).error
        assert isinstance(refused, InvalidRequest)

    play(scenario, models=(remote,))


def test_who_leaves_while_vectors_are_computed_leaves_nothing_behind() -> None:
    async def scenario(house: House) -> None:
        await embedded(house, "E")
        with trio.move_on_after(0.05):
            await embed(house, "E")
        assert house.controller.snapshot().leases == 0

    play(scenario, models=MODELS)


def test_embedding_models_are_not_listed_and_can_be_looked_up() -> None:
    async def scenario(house: House) -> None:
        await embedded(house, "E")
        listed = [listing.id for listing in await house.service.models()]
        assert not {"E", "F"} & set(listed)
        found = await house.service.model("E")
        assert (found.task, found.status) == ("embed", "loaded")

    play(scenario, models=MODELS)


def test_texts_are_tokenised_for_it_and_messages_are_not() -> None:
    async def scenario(house: House) -> None:
        request = GenerationRequest(prompts=(TextPrompt("hello"),), model="E")
        assert (await house.service.tokenize(request)).model == "E"
        messages = ChatPrompt(messages=({"role": "user", "content": "hello"},))
        with pytest.raises(InvalidRequest, match="takes no messages"):
            await house.service.tokenize(replace(request, prompts=(messages,)))

    play(scenario, models=MODELS)
