"""What the model ``told`` answers; see `told`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.e2e.openwebui.told import ANYTHING, RESULT

STORIES: Mapping[str, Sequence[str]] = {
    RESULT: ("The clock has", " been read."),
    "### Task": ('{"title": "As told",', ' "follow_ups": ["And then?"],', ' "tags": ["Stories"]}'),
    "What time is it?": (
        "<tool_call>\n",
        '{"name": "get_current_',
        'timestamp", "arg',
        'uments": {}}',
        "\n</tool_call>",
    ),
    "Think first": (
        "<think>",
        "\nThey want me to think,",
        " so I do.\n",
        "</think>",
        "\n\nI have thought",
        " about it.",
    ),
    "Call what is no call": ("<tool_call>{na", "me: get_current, oh", " dear</tool_call> I tried."),
    "Call somebody else": (
        '<tool_call>{"name": ',
        '"make_coffee", "arguments": ',
        '{"cups": 2}}</tool_call>',
    ),
    "Call and break off": (
        '<tool_call> {"name": "get_',
        'current_timestamp", "arguments": {"zone":',
        " and so on",
    ),
    ANYTHING: tuple(f"Line {number} of what there is to say.\n\n" for number in range(1, 41)),
}
