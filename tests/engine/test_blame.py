from __future__ import annotations

from typing import Any

import pytest

from hotswap.engine.blame import blamed

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "foo",
    "hidden_size": "large",
    "dtype": "int3",
    "rope_parameters": {"rope_type": "bar", "factor": 2},
    "_name_or_path": "llama",
    "id2label": {0: "foo"},
}
NOBODY = "config.json has values that make no model."


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("foo"), "config.json: hidden_act 'foo' makes no model."),
        (KeyError("bar"), "config.json: rope_parameters.rope_type 'bar' makes no model."),
        (
            ValueError("LlamaForCausalLM cannot be instantiated under `dtype=torch.int3`"),
            "config.json: dtype 'int3' makes no model.",
        ),
        (
            TypeError("Field 'hidden_size' expected int, got str (value: 'large')"),
            "config.json: hidden_size 'large' makes no model.",
        ),
        (KeyError("llama"), NOBODY),
        (KeyError("foobar"), NOBODY),
        (ZeroDivisionError("integer modulo by zero"), NOBODY),
        (FileNotFoundError("foo"), NOBODY),
        (ValueError("foo or bar"), NOBODY),
    ],
)
def test_the_value_that_an_error_is_about_is_named_by_its_key(error: Exception, told: str) -> None:
    assert blamed(CONFIG, error) == told


def test_a_path_is_not_shown() -> None:
    message = blamed({"hidden_act": "/home/me/act"}, KeyError("/home/me/act"))
    assert message == "config.json: hidden_act (as it stands there) makes no model."
