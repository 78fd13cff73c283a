"""The main job, with the bundled models and the official client."""

from __future__ import annotations

import concurrent.futures
import itertools
import random
import threading

import openai
import pytest

from tests.e2e.served import Server

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

SUMS, TALES = "hotswap/sums", "hotswap/tales"


def ask(client: openai.OpenAI, model: str, question: str, **options: object) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        **options,  # type: ignore[call-overload]
    )
    assert answer.model == model
    assert answer.choices[0].finish_reason == "stop"
    return str(answer.choices[0].message.content)


def stream(client: openai.OpenAI, model: str, question: str) -> tuple[str, str | None]:
    text, reason = "", None
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stream=True,
    ):
        assert chunk.model == model
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


def statuses(client: openai.OpenAI) -> dict[str, str]:
    return {model.id: model.status["value"] for model in client.models.list()}  # type: ignore[attr-defined]


def test_a_sum_a_story_and_a_sum_again(demo: Server) -> None:
    client = demo.openai()
    assert "72" in ask(client, SUMS, "What is 45 + 27?")
    assert statuses(client) == {SUMS: "loaded", TALES: "unloaded"}
    story, reason = stream(client, TALES, "Tell me a story about a small dragon.")
    assert "dragon" in story.lower()
    assert reason == "stop"
    assert len(story.split()) > 30
    assert statuses(client) == {SUMS: "sleeping", TALES: "loaded"}
    assert "72" in ask(client, SUMS, "What is 45 + 27?")
    assert statuses(client) == {SUMS: "loaded", TALES: "sleeping"}


def test_a_running_story_is_not_cut_by_a_request_for_another_model(demo: Server) -> None:
    client = demo.openai()
    whole, _ = stream(client, TALES, "Tell me a story about a lighthouse.")
    begun = threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool:

        def tell() -> str:
            text = ""
            for chunk in client.chat.completions.create(
                model=TALES,
                messages=[{"role": "user", "content": "Tell me a story about a lighthouse."}],
                temperature=0,
                stream=True,
            ):
                text += chunk.choices[0].delta.content or ""
                begun.set()
            return text

        story = pool.submit(tell)
        assert begun.wait(30)
        assert "72" in ask(client, SUMS, "What is 45 + 27?")
        assert story.result(30) == whole


def test_sixteen_clients_and_five_hundred_requests_over_two_models(demo: Server) -> None:
    client = demo.openai()
    chance = random.Random(7)
    questions = {
        SUMS: [f"What is {chance.randrange(100)} + {chance.randrange(100)}?" for _ in range(8)],
        TALES: [f"Tell me a story about a {thing}." for thing in ("dragon", "boat", "kite", "cat")],
    }
    before = {
        (model, question): ask(client, model, question)
        for model, asked in questions.items()
        for question in asked
    }
    loads_before = demo.status()["loads"]
    asked = [chance.choice(list(before)) for _ in range(500)]
    alternations = sum(a[0] != b[0] for a, b in itertools.pairwise(asked))

    def one(request: tuple[str, str]) -> bool:
        return ask(client, *request) == before[request]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        same = list(pool.map(one, asked))
    assert all(same), f"{same.count(False)} of 500 answers differ"
    loads = demo.status()["loads"] - loads_before
    assert loads < alternations / 3, f"{loads} loads for {alternations} alternations"


def test_ten_requests_for_the_model_that_is_not_resident_share_one_load(demo: Server) -> None:
    client = demo.openai()
    ask(client, SUMS, "What is 1 + 1?")
    loads = demo.status()["loads"]
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        stories = list(pool.map(lambda _: stream(client, TALES, "A story about a cat."), range(10)))
    assert len(set(stories)) == 1
    assert demo.status()["loads"] == loads + 1


def test_a_client_that_leaves_mid_stream_is_gone_from_the_engine(demo: Server) -> None:
    client = demo.openai()
    answer = client.chat.completions.create(
        model=TALES,
        messages=[{"role": "user", "content": "Tell me a story about a boat."}],
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(answer))
    before = demo.status()["engine"]["tokens"]
    answer.close()
    demo.wait_until(lambda: demo.status()["leases"] == 0)
    drawn = demo.status()["engine"]["tokens"] - before
    assert drawn < 2000, "its story, without an end, would have taken the 4,096 of its context"


def test_the_answer_does_not_depend_on_the_company_it_is_in(demo: Server) -> None:
    client = demo.openai()

    def sample(seed: int) -> str:
        answer = client.chat.completions.create(
            model=TALES,
            messages=[{"role": "user", "content": "Tell me a story about a fox."}],
            temperature=1.0,
            seed=seed,
        )
        return str(answer.choices[0].message.content)

    alone = sample(5)
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        together = list(pool.map(sample, range(64)))
    assert together[5] == alone
    assert len(set(together)) > 1
    assert ask(client, SUMS, "What is 2 + 2?")
    assert sample(5) == alone, "after a swap away and back"


def test_the_listing_answers_while_a_model_loads(demo: Server) -> None:
    client = demo.openai()
    stop = threading.Event()
    seen: set[str] = set()
    listed = 0

    def watch() -> None:
        nonlocal listed
        while not stop.is_set():
            values = statuses(client)
            seen.add(",".join(f"{values[model]}" for model in (SUMS, TALES)))
            listed += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    swaps = 10
    for model in (SUMS, TALES) * (swaps // 2):
        ask(client, model, "What is 2 + 2?")
    listed_meanwhile = listed
    stop.set()
    watcher.join()
    assert not any(pair == "loaded,loaded" for pair in seen)
    assert listed_meanwhile >= swaps
