"""Journeys of a person with Open WebUI in front of hotswap."""

from __future__ import annotations

from tests.e2e.openwebui.webui import WebUI


def test_the_first_turn_is_answered_and_gets_a_title(ui: WebUI) -> None:
    before = len(ui.posts())
    ui.choose("hotswap/sums")
    ui.ask("What is 45 + 27?")
    assert "45 + 27 = 72" in ui.until_answered("72")
    ui.until(lambda: len(ui.posts()) >= before + 4)  # title, chat, follow-ups, tags
    assert all(" 200 " in line for line in ui.posts()[before:])
    ui.page.get_by_text("Sums").first.wait_for()


def test_another_model_in_the_menu_is_swapped_in_and_gets_the_dot(ui: WebUI) -> None:
    ui.choose("hotswap/tales")
    ui.ask("Tell me a story about a small dragon.")
    assert "dragon" in ui.until_answered(r"\.\s*$")
    ui.until(lambda: ui.server.resident() == "hotswap/tales")
    ui.page.reload()
    ui.open_menu()
    ui.option("hotswap/tales").locator(".bg-green-500").wait_for()


def test_stop_ends_the_answer_and_continue_goes_on_with_it(ui: WebUI) -> None:
    ui.choose("tiny-a")
    ui.ask("Go on and on")
    ui.until(lambda: len(ui.answer()) > 200)
    ui.stop()
    ui.until(lambda: ui.running() == 0)
    ui.page.get_by_role("button", name="Continue Response").wait_for()
    stopped = ui.answer()
    ui.press("Continue Response")
    ui.until(lambda: len(ui.answer()) > len(stopped) + 100)
    ui.stop()
    ui.until(lambda: ui.running() == 0)
    assert ui.answer().startswith(stopped[:100])


def test_two_models_side_by_side_both_answer(ui: WebUI) -> None:
    ui.choose("hotswap/sums", "hotswap/tales")
    ui.ask("What is 11 + 12?")
    ui.until(lambda: len(ui.answers()) == 2 and all(len(text) > 5 for text in ui.answers()))
    assert any("23" in text for text in ui.answers())


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


def test_an_answer_that_is_cut_shows_why_under_what_there_is(ui: WebUI) -> None:
    ui.choose("tiny-a")
    ui.ask("Go on and on")
    ui.until(lambda: len(ui.answer()) > 200)
    with ui.server.http() as http:
        http.post("/v1/unload_model", json={"mode": "abort"}).raise_for_status()
    ui.page.get_by_text("unloaded").first.wait_for()
    assert len(ui.answer()) > 200


def test_eject_unloads_the_model(ui: WebUI) -> None:
    ui.choose("hotswap/sums")
    ui.ask("What is 1 + 1?")
    ui.until_answered("2")
    ui.until(lambda: ui.running() == 0)
    ui.page.reload()
    ui.eject("hotswap/sums")
    ui.until(lambda: ui.server.resident() is None)


def test_the_ollama_connection_answers_and_lets_go(ui: WebUI) -> None:
    ui.choose("ollama.hotswap/sums")
    ui.ask("What is 30 + 14?")
    assert "44" in ui.until_answered("44")
    ui.until(lambda: ui.server.resident() == "hotswap/sums" and ui.running() == 0)
    ui.page.reload()
    ui.eject("ollama.hotswap/sums")
    ui.until(lambda: ui.server.resident() is None)
