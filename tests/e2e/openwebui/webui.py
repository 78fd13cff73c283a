"""What a person does with Open WebUI, as verbs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.e2e.served import Server


@dataclass
class WebUI:
    page: Any
    """Playwright's."""
    server: Server

    @classmethod
    def opened(cls, page: Any, address: str, server: Server) -> WebUI:
        page.goto(address)
        page.locator("#chat-input").wait_for()
        news = page.get_by_text("Okay, Let's Go!")
        if news.count():
            news.click()
        return cls(page, server)

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

    def posts(self) -> list[str]:
        """The log's lines of requests that generate."""
        return [line for line in self.server.lines if "POST '/v1/chat/completions'" in line]
