from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotswap.contracts.models import EngineConfig, ModelSpec
from hotswap.contracts.requests import ChatPrompt, SamplingParams, TextPrompt
from hotswap.errors import ContextLengthExceeded, InvalidRequest
from tests.engine.serving import request, spec_of

pytestmark = pytest.mark.torch

Checkpoint = Callable[..., Path]
HELLO = ChatPrompt(messages=({"role": "user", "content": "quick"},))


def rendered(spec: ModelSpec, *prompts: Any, **fields: Any) -> Any:
    from hotswap.engine.front import Fronts
    from hotswap.engine.text import PromptRenderer

    renderer = PromptRenderer(spec.id, Fronts().get(spec), spec.sampling)
    return renderer.render(request(*prompts, **fields))


def written(spec: ModelSpec, prompt: ChatPrompt) -> str:
    from hotswap.engine.front import Fronts

    ids = rendered(spec, prompt).prompts[0].ids
    return str(Fronts().get(spec).tokenizer.decode(ids))


def variant(path: Path, to: Path, **files: dict[str, Any] | None) -> Path:
    """A copy of a model with JSON files changed, or removed where None."""
    copy = Path(shutil.copytree(path, to / "variant"))
    for name, changes in files.items():
        file = copy / f"{name}.json"
        if changes is None:
            file.unlink()
        else:
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return copy


def test_a_conversation_is_written_with_the_models_template(checkpoint: Checkpoint) -> None:
    assert written(spec_of(checkpoint()), HELLO) == (
        "<|im_start|>user\nquick<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prompt_that_is_only_looked_at_may_end_with_its_last_message(
    checkpoint: Checkpoint,
) -> None:
    prompt = ChatPrompt(messages=HELLO.messages, answered=False)
    assert written(spec_of(checkpoint()), prompt) == "<|im_start|>user\nquick<|im_end|>\n"


def test_a_prompt_that_is_only_counted_may_be_empty_or_too_long(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    spec = spec_of(checkpoint(), max_model_len=16)
    assert rendered(spec, "", counted=True).token_ids == ((),)
    text = "The quick brown fox. " * 5000
    count = rendered(spec, text, counted=True).prompt_tokens
    assert count > 5000
    with pytest.raises(ContextLengthExceeded):
        rendered(spec, text)
    begins = variant(checkpoint(), tmp_path, tokenizer_config={"bos_token": "<|im_start|>"})
    assert rendered(spec_of(begins), "", counted=True).token_ids == ((),)


def test_what_would_take_minutes_to_count_is_not_counted(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotswap.engine.text.MAX_COUNTED_CHARS", 10_000)
    spec = spec_of(checkpoint(), max_model_len=16)
    with pytest.raises(ContextLengthExceeded, match="the first 10000 are"):
        rendered(spec, "a word " * 2_000, counted=True)


def test_a_last_message_can_be_continued(checkpoint: Checkpoint) -> None:
    messages = (*HELLO.messages, {"role": "assistant", "content": "brown f"})
    prompt = ChatPrompt(messages=messages, continue_final_message=True)
    assert written(spec_of(checkpoint()), prompt).endswith("assistant\nbrown f")


def test_a_template_of_the_settings_replaces_the_models(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint(), chat_template="{{ messages[0].content }}{{ tools[0].x }}{{ y }}")
    prompt = ChatPrompt(messages=HELLO.messages, tools=({"x": 1},), template_kwargs={"y": 2})
    assert written(spec, prompt) == "quick12"


@pytest.mark.parametrize("template", ["{{ raise_exception('no such role') }}", "{{ 1 / 0 }}"])
def test_what_a_template_cannot_write_is_refused(checkpoint: Checkpoint, template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template") as caught:
        rendered(spec_of(checkpoint(), chat_template=template), HELLO)
    assert caught.value.param == "messages"


def test_a_template_cannot_reach_into_the_server(checkpoint: Checkpoint) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidRequest):
        rendered(spec_of(checkpoint(), chat_template=template), HELLO)


def test_template_arguments_cannot_replace_ours(checkpoint: Checkpoint) -> None:
    prompt = ChatPrompt(messages=HELLO.messages, template_kwargs={"chat_template": "x"})
    with pytest.raises(InvalidRequest) as caught:
        rendered(spec_of(checkpoint()), prompt)
    assert caught.value.param == "chat_template_kwargs"


def test_a_model_without_a_template_answers_no_messages(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    copy = variant(checkpoint(), tmp_path)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        rendered(spec_of(copy), HELLO)
    assert caught.value.param == "model"
    assert rendered(spec_of(copy), "quick").prompt_tokens > 0


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (
            "{% for m in messages %}\n{{ m.content }}\n{% endfr %}",
            "line 3: Encountered unknown tag",
        ),
        ("\n{{", "line 2: unexpected 'end of template'"),
        ("{{ x | no_such_filter }}", "line 1: No filter named 'no_such_filter'"),
        ("x" * 200_000, "it has more than 131072 characters"),
        ("{% for a in b %}" * 40 + "{% endfor %}" * 40, "it is too large, or nests too deeply"),
        ("{{ " + "(" * 5000 + "x" + ")" * 5000 + " }}", "it is too large, or nests too deeply"),
    ],
    ids=["tag", "end", "filter", "length", "loops", "brackets"],
)
def test_a_model_whose_template_cannot_be_read_is_one_without(
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    template: str,
    fault: str,
) -> None:
    copy = variant(checkpoint(), tmp_path)
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidRequest, match="cannot be read") as caught:
        rendered(spec_of(copy), HELLO)
    assert caught.value.param == "model"
    assert f"({fault}" in caught.value.message
    assert str(copy) not in caught.value.message
    assert "use /v1/completions" in caught.value.message
    assert "--chat-template" in caught.value.message
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert fault in told[0]
    assert "\n" not in told[0]
    assert rendered(spec_of(copy), "quick").prompt_tokens > 0
    assert written(spec_of(copy, chat_template="{{ messages[0].content }}"), HELLO) == "quick"


def test_what_each_token_stands_for_can_be_asked_for(checkpoint: Checkpoint) -> None:
    text = rendered(spec_of(checkpoint()), TextPrompt("the quick brown fox"))
    [texts] = text.token_texts
    assert len(texts) == text.prompt_tokens > 1
    assert "".join(texts) == "the quick brown fox"


def test_special_tokens_may_be_left_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of a model whose tokenizer puts a token before each text."""
    pieces = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}]
    pieces += [{"Sequence": {"id": "A", "type_id": 0}}]
    start = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    processor = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": start},
    }
    spec = spec_of(variant(checkpoint(), tmp_path, tokenizer={"post_processor": processor}))
    [with_them] = rendered(spec, TextPrompt("fox")).token_ids
    [without] = rendered(spec, TextPrompt("fox", special=False)).token_ids
    assert with_them == (1, *without)


def test_token_ids_are_bounded_by_the_vocabulary(checkpoint: Checkpoint) -> None:
    for ids in ([384], [-1]):
        with pytest.raises(InvalidRequest) as caught:
            rendered(spec_of(checkpoint()), ids)
        assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest) as caught:
        rendered(spec_of(checkpoint()), [1], sampling=SamplingParams(logit_bias={384: 1.0}))
    assert caught.value.param == "logit_bias"
    with pytest.raises(InvalidRequest) as caught:
        rendered(spec_of(checkpoint()), [1], stop_token_ids=(384,))
    assert caught.value.param == "stop_token_ids"


def test_an_empty_prompt_needs_a_token_to_begin_with(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="no tokens: it is empty"):
        rendered(spec_of(checkpoint()), "")
    spec = spec_of(checkpoint(), chat_template="{# nothing #}")
    with pytest.raises(InvalidRequest, match="no tokens: the chat template") as caught:
        rendered(spec, ChatPrompt(messages=({"role": "user", "content": "hi"},)))
    assert caught.value.param == "messages"
    copy = variant(checkpoint(), tmp_path, tokenizer_config={"bos_token": "<|im_start|>"})
    assert len(rendered(spec_of(copy), "").prompts[0].ids) == 1


def test_a_hopelessly_long_prompt_is_refused_from_its_beginning(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(checkpoint())
    lengths: list[int] = []
    from transformers import PreTrainedTokenizerFast

    encode = PreTrainedTokenizerFast.encode

    def counted(self: Any, text: str, **options: Any) -> list[int]:
        lengths.append(len(text))
        ids: list[int] = encode(self, text, **options)
        return ids

    monkeypatch.setattr(PreTrainedTokenizerFast, "encode", counted)
    told = r"of the 4200000 characters of your prompt the first \d+ are \d+ tokens already\."
    with pytest.raises(ContextLengthExceeded, match=told) as caught:
        rendered(spec, "word 1 " * 600_000)
    assert caught.value.param == "prompt"
    assert lengths
    assert sum(lengths) < 100_000


def test_too_long_requests_say_by_how_much(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint(), max_model_len=16)
    with pytest.raises(ContextLengthExceeded) as caught:
        rendered(spec, [1] * 10, max_tokens=7)
    assert caught.value.message == (
        "This model's maximum context length is 16 tokens. However, you requested 17 tokens "
        "(10 in the prompt, 7 in the completion). max_tokens can be 6 at most."
    )
    assert caught.value.param == "max_tokens"
    assert rendered(spec, [1] * 10, max_tokens=6).prompt_tokens == 10
    assert rendered(spec, [1] * 15).prompt_tokens == 15
    with pytest.raises(ContextLengthExceeded) as caught:
        rendered(spec, [1] * 10, max_tokens=7, max_tokens_param="max_output_tokens")
    assert caught.value.param == "max_output_tokens"
    for options in ({}, {"max_tokens": 1}, {"max_tokens": 1, "cut_to_context": True}):
        match = "in the prompt, 1 in the completion"
        with pytest.raises(ContextLengthExceeded, match=match) as caught:
            rendered(spec, [1] * 16, **options)
        assert caught.value.param == "prompt"


def test_a_request_overrides_the_settings_and_they_override_the_model(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    defaults = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    copy = variant(checkpoint(), tmp_path, generation_config=defaults)
    spec = ModelSpec(
        id="m", path=copy, engine=EngineConfig(), sampling=SamplingParams(top_k=5, min_p=0.1)
    )
    draw = rendered(spec, [1], sampling=SamplingParams(min_p=0.2, presence_penalty=1.0)).draw
    assert (draw.temperature, draw.top_k, draw.top_p, draw.min_p) == (0.6, 5, 0.95, 0.2)
    assert (draw.presence_penalty, draw.repetition_penalty) == (1.0, 1.0)


def test_a_seed_is_the_requests_then_that_of_the_settings(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint(), sampling=SamplingParams(seed=7))
    assert rendered(spec, [1]).seed == 7
    assert rendered(spec, [1], sampling=SamplingParams(seed=0)).seed == 0
    assert rendered(spec_of(checkpoint()), [1]).seed is None


def test_a_model_that_wants_to_be_greedy_is_unless_asked_otherwise(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint())
    assert rendered(spec, [1], sampling=SamplingParams()).draw.temperature == 0.0
    assert rendered(spec, [1], sampling=SamplingParams(temperature=0.7)).draw.temperature == 0.7
    assert rendered(spec, [1], sampling=SamplingParams(top_p=0.7)).draw.temperature == 1.0


def test_top_k_below_zero_is_off(checkpoint: Checkpoint) -> None:
    assert rendered(spec_of(checkpoint()), [1], sampling=SamplingParams(top_k=-1)).draw.top_k == 0


def test_every_end_token_the_model_knows_ends_an_answer(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    copy = variant(
        checkpoint(),
        tmp_path,
        generation_config={"eos_token_id": [7, 8]},
        config={"eos_token_id": 9},
    )
    spec = spec_of(copy)
    ends = rendered(spec, [1], stop_token_ids=(3,)).end_ids
    assert {3, 7, 8, 9} < ends
    assert len(ends) == 5
    assert rendered(spec, [1], stop_token_ids=(3,), ignore_eos=True).end_ids == {3}


def test_an_echo_with_logprobs_is_told_in_tokens_and_not_as_a_text(checkpoint: Checkpoint) -> None:
    spec = spec_of(checkpoint())
    assert rendered(spec, "quick", echo=True).prompts[0].echo == "quick"
    assert rendered(spec, "quick", echo=True, logprobs=1).prompts[0].echo == ""
