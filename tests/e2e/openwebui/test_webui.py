"""Journeys of a person with Open WebUI in front of hotswap."""

from __future__ import annotations

import time

from tests.e2e.openwebui.webui import WebUI

MANY_TOKENS = 4_000
"""That the tools of a first turn take at least."""
LIST_LIMIT_S = 10.0
"""Open WebUI waits no longer for a list of models, and shows none then."""
SOON_S = 2.0
"""On a busy machine; the browser is part of it."""


# -- the first turn --------------------------------------------------------------------------


def test_the_first_turn_is_four_requests_and_the_chat_gets_its_title(ui: WebUI) -> None:
    ui.choose("hotswap/sums")
    ui.ask("What is 45 + 27?")
    assert "45 + 27 = 72" in ui.until_answered("72")
    ui.until(lambda: len(ui.asked()) == 4 and all(one.ended_at for one in ui.asked()))
    assert [one.status for one in ui.asked()] == [200] * 4
    assert {bool(one.body.get("tools")) for one in ui.chats()} == {True}
    assert len(ui.tasks()) == 3
    assert ui.asked().index(ui.chats()[0]) < 2  # it waits for no more than the title
    ui.page.get_by_text("Sums").first.wait_for()


def test_the_menu_shows_what_is_listed_and_nothing_else(ui: WebUI) -> None:
    with ui.server.http() as http:
        listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
    ui.open_menu()
    shown = ui.options()
    assert {name for name in shown if not name.startswith("ollama.")} == listed
    assert {name.removeprefix("ollama.") for name in shown if name.startswith("ollama.")} == listed


def test_no_default_cuts_an_answer_short(ui: WebUI) -> None:
    """Neither what Open WebUI leaves out, nor `max_new_tokens` of the model's generation config,
    which is 2."""
    ui.choose("told")
    ui.ask("Say all that there is to say")
    assert ui.until_answered(r"Line 40 of").startswith("Line 1 of")
    (chat,) = ui.chats()
    assert not {"max_tokens", "max_completion_tokens"} & chat.body.keys()
    assert chat.finish_reason == "stop"
    ui.page.get_by_text("As told").first.wait_for()


# -- tools -----------------------------------------------------------------------------------


def test_a_model_that_knows_tools_is_told_of_them_and_calls_one(ui: WebUI) -> None:
    ui.choose("told")
    ui.ask("What time is it?")
    assert "The clock has been read." in ui.until_answered("been read")
    first, second = ui.chats()
    assert ui.prompt_tokens(first) > MANY_TOKENS
    assert first.finish_reason == "tool_calls"
    assert second.body["messages"][-1]["role"] == "tool"
    assert second.finish_reason == "stop"
    ui.page.get_by_text("View Result from get_current_timestamp").wait_for()


def test_an_answer_to_thousands_of_tokens_of_tools_goes_on_to_the_end_of_the_context(
    ui: WebUI,
) -> None:
    ui.choose("tiny-b")
    ui.ask("Go on and on")
    ui.until(lambda: len(ui.chats()) == 1 and ui.chats()[0].ended_at is not None)
    (chat,) = ui.chats()
    assert ui.prompt_tokens(chat) > MANY_TOKENS
    assert chat.finish_reason == "length"
    ui.until(lambda: ui.answer().endswith(chat.text[-20:].strip()))
    ui.unload()


def test_what_is_no_call_is_shown_as_it_was_written(ui: WebUI) -> None:
    ui.choose("told")
    ui.ask("Call what is no call")
    assert ui.until_answered("I tried").startswith("<tool_call>{name: get_current, oh dear")


def test_a_call_of_a_tool_that_there_is_not_is_shown_as_it_was_written(ui: WebUI) -> None:
    ui.choose("told")
    ui.ask("Call somebody else")
    assert '"make_coffee", "arguments": {"cups": 2}}' in ui.until_answered("cups")


def test_a_call_that_breaks_off_does_not_end_the_chat(ui: WebUI) -> None:
    ui.choose("told")
    ui.ask("Call and break off")
    ui.until_answered("and so on")
    assert ui.chats()[0].finish_reason == "tool_calls"


# -- reasoning -------------------------------------------------------------------------------


def test_a_thought_is_folded_away(ui: WebUI) -> None:
    ui.choose("told")
    ui.ask("Think first")
    assert "I have thought about it." in ui.until_answered("about it")
    ui.page.get_by_text("Thought for").first.wait_for()
    assert ui.page.get_by_text("They want me to think").count() == 0
    ui.page.get_by_text("Thought for").first.click()
    ui.page.get_by_text("They want me to think, so I do.").wait_for()
    ui.ask("Say all that there is to say")
    ui.until_answered("Line 40 of")


# -- Stop and Continue -----------------------------------------------------------------------


def test_stop_ends_the_answer_and_continue_goes_on_with_it(ui: WebUI) -> None:
    ui.choose("tiny-a")
    ui.ask("Go on and on")
    ui.until(lambda: len(ui.answer()) > 200)
    pressed_at = time.monotonic()
    ui.stop()
    ui.until(lambda: ui.running() == 0)
    (chat,) = ui.chats()
    assert chat.left_at is not None
    assert chat.left_at - pressed_at < SOON_S
    ui.page.get_by_role("button", name="Continue Response").wait_for()
    stopped = ui.answer()
    ui.press("Continue Response")
    ui.until(lambda: len(ui.answer()) > len(stopped) + 100)
    ui.stop()
    ui.until(lambda: ui.running() == 0)
    assert ui.answer().startswith(stopped[:100])
    again = ui.chats()[-1].body
    assert again["messages"][-1]["role"] == "assistant"
    assert again["continue_final_message"] is True
    assert again["add_generation_prompt"] is False


# -- several models --------------------------------------------------------------------------


def test_another_model_in_the_menu_is_swapped_in_and_gets_the_dot(ui: WebUI) -> None:
    ui.choose("hotswap/tales")
    ui.ask("Tell me a story about a small dragon.")
    assert "dragon" in ui.until_answered(r"\.\s*$")
    ui.until(lambda: ui.server.resident() == "hotswap/tales")
    ui.page.reload()
    ui.open_menu()
    ui.dot("hotswap/tales").wait_for()
    ui.dot("ollama.hotswap/tales").wait_for()
    assert ui.dot("broken").count() == 0  # never loaded
    assert ui.dot("ollama.hotswap/sums").count() == 0  # it sleeps
    with ui.server.http() as http:
        listed = http.get("/v1/models").json()["data"]
    for model in listed:  # what sleeps has one as well: Open WebUI takes it for loaded
        there = model["status"]["value"] in ("loaded", "sleeping")
        assert ui.dot(model["id"]).count() == there, model


def test_two_models_side_by_side_both_answer(ui: WebUI) -> None:
    ui.choose("hotswap/sums", "hotswap/tales")
    ui.ask("What is 11 + 12?")
    ui.until(lambda: len(ui.answers()) == 2 and all(len(text) > 5 for text in ui.answers()))
    assert any("23" in text for text in ui.answers())
    ui.until(lambda: len(ui.asked()) >= 4 and all(one.ended_at for one in ui.asked()))
    assert {one.status for one in ui.asked()} == {200}
    assert {one.body["model"] for one in ui.chats()} == {"hotswap/sums", "hotswap/tales"}
    one, other = ui.chats()
    assert other.asked_at - one.asked_at < SOON_S
    assert {task.body["model"] for task in ui.tasks()} <= {"hotswap/sums", "hotswap/tales"}


def test_who_asks_another_model_is_held_until_the_running_answer_ends(ui: WebUI) -> None:
    with ui.server.openai() as client:
        running = client.chat.completions.create(
            model="tiny-a", messages=[{"role": "user", "content": "Go on"}], stream=True
        )
        next(iter(running))
        ui.choose("hotswap/sums")
        ui.ask("What is 20 + 22?")
        ui.until(lambda: sum(ui.server.status()["waiting"].values()) > 0)
        assert ui.answer() == ""
        running.close()
    assert "42" in ui.until_answered("42")


def test_the_menu_is_there_while_a_model_is_waited_for(ui: WebUI) -> None:
    with ui.server.openai() as client:
        running = client.chat.completions.create(
            model="tiny-a", messages=[{"role": "user", "content": "Go on"}], stream=True
        )
        next(iter(running))
        ui.choose("hotswap/sums")
        ui.ask("What is 21 + 22?")
        ui.until(lambda: sum(ui.server.status()["waiting"].values()) > 0)
        reloaded_at = time.monotonic()
        ui.page.reload()
        ui.open_menu()
        assert "hotswap/sums" in ui.options()
        running.close()
    lists = [one for one in ui.heard.exchanges("/models", "GET") if one.asked_at > reloaded_at]
    assert lists
    assert max(one.took_s for one in lists) < LIST_LIMIT_S
    ui.until_answered("43")


# -- what ends otherwise ---------------------------------------------------------------------


def test_an_answer_that_is_cut_shows_why_under_what_there_is(ui: WebUI) -> None:
    ui.choose("tiny-a")
    ui.ask("Go on and on")
    ui.until(lambda: len(ui.answer()) > 200)
    ui.unload()
    ui.page.get_by_text("unloaded").first.wait_for()
    assert len(ui.answer()) > 200
    *_, error, done = ui.chats()[-1].events
    assert error.keys() == {"error"}
    assert "unloaded" in error["error"]["message"]
    assert done == "[DONE]"


def test_a_model_that_cannot_be_loaded_says_why_and_is_not_asked_again(ui: WebUI) -> None:
    ui.choose("broken")
    ui.ask("Are you there?")
    ui.page.get_by_text("model.safetensors").first.wait_for()
    (chat,) = ui.chats()
    assert "model.safetensors" in chat.answer
    assert chat.status in {422, 503}  # 503, where the title was tried and failed before it


# -- letting go ------------------------------------------------------------------------------


def test_eject_unloads_the_model(ui: WebUI) -> None:
    ui.choose("hotswap/sums")
    ui.ask("What is 1 + 1?")
    ui.until_answered("2")
    ui.until(lambda: ui.running() == 0)
    ui.page.reload()
    ui.eject("hotswap/sums")
    ui.until(lambda: ui.server.resident() is None)
    assert [one.body for one in ui.asked("/models/unload")] == [{"model": "hotswap/sums"}]


def test_the_ollama_connection_answers_and_lets_go(ui: WebUI) -> None:
    ui.choose("ollama.hotswap/sums")
    ui.ask("What is 30 + 14?")
    assert "44" in ui.until_answered("44")
    ui.until(lambda: ui.server.resident() == "hotswap/sums" and ui.running() == 0)
    ui.page.reload()
    ui.eject("ollama.hotswap/sums")
    ui.until(lambda: ui.server.resident() is None)
    assert ui.heard.exchanges("/api/ps", "GET")
    assert [one.body["keep_alive"] for one in ui.asked("/api/generate")] == [0]
