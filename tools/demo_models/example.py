"""What a demo model learns from: a user message and the answer to it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One turn of a chat."""

    prompt: str
    answer: str
