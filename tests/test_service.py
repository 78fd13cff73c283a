"""What the listing says, and that it is only made again when it would say something else."""

from __future__ import annotations

from hotswap.config import SwapRules
from hotswap.contracts import ModelListing, ParkedModel
from hotswap.errors import ModelLoadFailed
from hotswap.scripted import Script, ScriptedRegistry
from hotswap.service import SwapService
from hotswap.swap import SwapController
from tests.swap.house import ON_DEMAND, House, play, spec


def statuses(listings: tuple[ModelListing, ...]) -> dict[str, str]:
    return {listing.id: listing.status for listing in listings}


def test_an_answer_is_kept_while_it_holds() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        first = await house.service.models()
        await house.ask("A")
        assert await house.service.models() is first

    play(scenario)


def test_a_swap_is_seen_at_once() -> None:
    async def scenario(house: House) -> None:
        await house.ask("A")
        assert statuses(await house.service.models())["A"] == "loaded"
        await house.ask("B")
        seen = statuses(await house.service.models())
        assert (seen["A"], seen["B"]) == ("unloaded", "loaded")
        await house.service.unload()
        assert set(statuses(await house.service.models()).values()) == {"unloaded"}

    play(scenario)


def test_each_step_of_a_load_is_seen() -> None:
    async def scenario(house: House) -> None:
        seen = []
        await house.service.request_load("A")
        while house.resident is None:
            version = house.controller.snapshot().version
            listing = (await house.service.models())[0]
            if listing.progress is not None:
                assert listing.status == "loading"
                seen.append(listing.progress.value)
            await house.service.changed(version)
        assert len(set(seen)) > 1
        assert seen == sorted(seen)

    play(scenario)


def test_a_failure_is_seen_and_forgotten_when_the_model_loads() -> None:
    async def scenario(house: House) -> None:
        house.registry.script.prepare_errors["A"] = ModelLoadFailed("broke")
        assert (await house.ask("A")).error is not None
        assert (await house.service.models())[0].error == "broke"
        del house.registry.script.prepare_errors["A"]
        await house.service.load("A", {}, "request")
        assert (await house.service.models())[0].error is None

    play(scenario)


def test_a_model_that_comes_to_the_catalogue_is_seen() -> None:
    async def scenario(house: House) -> None:
        before = await house.service.models()
        house.catalog._specs["D"] = spec("D")
        after = await house.service.models()
        assert after[:-1] == before
        assert after[-1].id == "D"

    play(scenario)


def test_a_parked_model_is_seen() -> None:
    class Parking(ScriptedRegistry):
        held: tuple[ParkedModel, ...] = ()

        def parked(self) -> tuple[ParkedModel, ...]:
            return self.held

    async def scenario(house: House) -> None:
        registry = Parking(Script())
        controller = SwapController(registry, house.catalog.fetch, ON_DEMAND)
        service = SwapService(controller, registry, house.catalog, ON_DEMAND)
        assert statuses(await service.models())["A"] == "unloaded"
        registry.held = (ParkedModel(model="A", bytes=1),)
        assert statuses(await service.models())["A"] == "sleeping"

    play(scenario)


def test_without_loading_on_demand_only_what_answers_is_listed() -> None:
    async def scenario(house: House) -> None:
        await house.service.load("B", {}, "request")
        assert set(statuses(await house.service.models())) == {"A", "B"}

    play(scenario, rules=SwapRules(on_demand=False), startup="A")
