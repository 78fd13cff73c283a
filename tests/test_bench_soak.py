"""The soak sees what goes wrong, and finds nothing in a short life of the real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.e2e]

ROOT = Path(__file__).parent.parent
HEAD = b"HTTP/1.1 200 \r\ncontent-type: text/event-stream; charset=utf-8\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(**fields: Any) -> bytes:
    delta = fields.pop("delta", {})
    choice = {"index": 0, "delta": delta, "finish_reason": fields.pop("reason", None)}
    document = {"id": "chatcmpl-1", "model": "m", "choices": [choice], **fields}
    return f"data: {json.dumps(document)}\n\n".encode()


ROLE = event(delta={"role": "assistant", "content": ""})
TWO = event(delta={"content": "2"})
END = event(reason="stop")
USAGE = event(choices=[], usage={"completion_tokens": 1})
DONE = b"data: [DONE]\n\n"
LATE = b'data: {"error":{"message":"x"}}\n\n'


def stream(*events: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"".join(map(chunk, events)) + end


def whole(status: int, document: Any, *headers: bytes, cut: int = 0) -> bytes:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    return head % (status, len(body)) + b"".join(headers) + b"\r\n" + body[: len(body) - cut]


def answer(text: str = "2", model: str = "m") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "model": model, "choices": [choice], "usage": {"completion_tokens": 1}}


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        (stream(ROLE, TWO, END, USAGE, DONE), None),
        (stream(b": loading\n\n", ROLE, TWO, END, USAGE, DONE), None),
        (stream(LATE, DONE), None),
        (whole(200, answer()), None),
        (whole(503, {}, b"retry-after: 5\r\n"), None),
        (whole(429, {}, b"retry-after: 60\r\n"), None),
        (b"", "requests lost"),
        (b"HTTP/1.1 ", "requests lost"),
        (whole(500, {}), "requests lost"),
        (whole(404, {}), "requests lost"),
        (whole(503, {}), "refusals without Retry-After"),
        (whole(503, {}, b"retry-after: soon\r\n"), "refusals without Retry-After"),
        (whole(503, {}, b"retry-after: 300\r\n"), "refusals without Retry-After"),
        (whole(200, answer(), cut=1), "answers truncated"),
        (stream(ROLE, TWO, END, USAGE, DONE, end=b""), "answers truncated"),
        (stream(ROLE, TWO, END, USAGE), "answers truncated"),
        (stream(ROLE, TWO, DONE), "answers truncated"),
        (stream(LATE), "answers truncated"),
        (stream(ROLE, TWO, END, END, USAGE, DONE), "answers duplicated"),
        (stream(ROLE, ROLE, TWO, END, USAGE, DONE), "answers duplicated"),
        (stream(ROLE, TWO, END, USAGE, DONE, DONE), "answers duplicated"),
        (stream(ROLE, TWO, event(id="other"), END, USAGE, DONE), "answers duplicated"),
        (stream(ROLE, TWO, TWO, END, USAGE, DONE), "answers that changed"),
        (stream(ROLE, END, USAGE, DONE), "answers that changed"),
        (whole(200, answer("3")), "answers that changed"),
        (whole(200, answer(model="other")), "answers from the wrong model"),
        (stream(ROLE, event(model="other"), TWO, END, USAGE, DONE), "answers from the wrong model"),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(received: bytes, fault: str | None) -> None:
    from bench.answers import Known, judge_answer

    verdict = judge_answer(received, "m", Known("2", 1, "stop"))
    assert [*verdict.faults] == ([] if fault is None else [fault])


def test_a_first_answer_is_what_the_others_are_held_to() -> None:
    from bench.answers import Known, judge_answer

    verdict = judge_answer(whole(200, answer()), "m", None)
    assert verdict.known == Known("2", 1, "stop")


def test_whatever_is_wrong_fails_a_check() -> None:
    from bench.answers import Fault
    from bench.figures import judge
    from bench.soak import Outcome, checks, figures

    for fault in Fault:
        outcome = Outcome()
        assert all(goal.met for goal in judge(checks(), figures(outcome)))
        outcome.faults[fault] += 1
        [missed] = [goal for goal in judge(checks(), figures(outcome)) if not goal.met]
        assert missed.name == fault


def test_a_short_life_of_the_server_is_without_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    words = ("--minutes", "0.1", "--clients", "8", "--rounds", "1", "--json", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {
        figure["name"]: figure["median"] for figure in json.loads(file.read_text())["figures"]
    }
    assert figures["answers"] > 20
    assert figures["swaps"] > 2
    assert figures["orders"] >= 1
    assert any("stalled readers" in name for name in figures)
    assert "99 % of probes answered within" in figures
