"""What a person does with Open WebUI, as verbs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.e2e.openwebui.overheard import Exchange, Overheard
from tests.e2e.served import Server


@dataclass
class WebUI:
    page: Any
    """Playwright's."""
    server: Server
    heard: Overheard
    since: float
    """The monotonic time at which the page was opened."""

    @classmethod
    def opened(cls, page: Any, address: str, server: Server, heard: Overheard) -> WebUI:
        since = time.monotonic()
        page.goto(address)
        page.locator("#chat-input").wait_for()
        news = page.get_by_text("Okay, Let's Go!")
        if news.count():
            news.click()
        return cls(page, server, heard, since)

    def choose(self, *models: str) -> None:
        """Models in the menu; several are asked side by side."""
        self.open_menu()
        if len(models) > 1:
            self.page.get_by_role("button", name="Compare").click()
        for model in models:
            option = self.option(model)
            if len(models) == 1 or option.get_attribute("aria-selected") != "true":
                option.click()
        self.close_menu()

    def open_menu(self) -> None:
        if not self.page.get_by_role("listbox").is_visible():
            self.page.locator("#model-selector-model-button").click()
        self.page.get_by_role("listbox").wait_for()

    def close_menu(self) -> None:
        if self.page.get_by_role("listbox").is_visible():
            self.page.keyboard.press("Escape")
        self.page.get_by_role("listbox").wait_for(state="hidden")

    def option(self, model: str) -> Any:
        return self.page.get_by_role("option", name=f"Select {model} model", exact=True)

    def dot(self, model: str) -> Any:
        """That of a loaded model, in the menu, which is open."""
        return self.option(model).locator(".bg-green-500")

    def options(self) -> set[str]:
        """Names of all models in the menu, which is open."""
        labels = [one.get_attribute("aria-label") for one in self.page.get_by_role("option").all()]
        return {label.removeprefix("Select ").removesuffix(" model") for label in labels}

    def eject(self, model: str) -> None:
        """By the button that the menu shows beside a loaded model."""
        self.open_menu()
        self.option(model).hover()
        self.option(model).get_by_role("button", name="Eject").click()

    def ask(self, text: str) -> None:
        self.page.locator("#chat-input").click()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def stop(self) -> None:
        self.page.get_by_role("button", name="Stop").first.click()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button).last.click()

    def answers(self) -> list[str]:
        """What the models have answered so far."""
        return [
            text.strip()
            for text in self.page.locator("#response-content-container").all_text_contents()
        ]

    def answer(self) -> str:
        found = self.answers()
        return found[-1] if found else ""

    def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for something that the page or the server shows."""
        left_ms = int(timeout_s * 1000)
        while not condition():
            assert left_ms > 0, (self.answers(), self.server.status()["phase"])
            self.page.wait_for_timeout(50)  # the page lives only while we wait in it
            left_ms -= 50

    def until_answered(self, pattern: str) -> str:
        self.until(lambda: re.search(pattern, self.answer()) is not None)
        return self.answer()

    def running(self) -> int:
        """Answers that the server's engine works on."""
        engine = self.server.status()["engine"]
        return 0 if engine is None else int(engine["running"])

    def unload(self) -> None:
        """Not by the page: all that the server generates ends with it."""
        with self.server.http() as http:
            http.post("/v1/unload_model", json={"mode": "abort"}).raise_for_status()

    def prompt_tokens(self, chat: Exchange) -> int:
        """As the chat's model reads it."""
        asked = {key: chat.body[key] for key in ("model", "messages", "tools")}
        with self.server.http() as http:
            return int(http.post("/tokenize", json=asked).json()["count"])

    def asked(self, path: str = "/v1/chat/completions") -> list[Exchange]:
        """What Open WebUI has posted there since the page was opened."""
        return [one for one in self.heard.exchanges(path) if one.asked_at > self.since]

    def chats(self) -> list[Exchange]:
        """Those that are a person's, and no task."""
        return [one for one in self.asked() if one.body.get("stream")]

    def tasks(self) -> list[Exchange]:
        return [one for one in self.asked() if not one.body.get("stream")]
