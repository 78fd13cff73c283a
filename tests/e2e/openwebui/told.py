"""A checkpoint that answers what it was told to, word for word, by way of the real engine.

Each token has a direction of its own and one successor: attention and MLP add nothing, so after a
token its successor has the highest logit. Where an answer begins is up to the chat template, which
ends a prompt with a cue according to the last message. The template is Qwen 3's otherwise: it
writes tools out and knows of reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULT = ""
"""Stands for a last message that is the result of a tool."""
ANYTHING = "anything"
"""Stands for a last message in which no other key is."""
_WIDTH = 128
_TOKENS_BY_DEFAULT = 2
TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n" }}
    {{- "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- "\\n</tools>\\n\\nFor each function call, return a json object with function name and " }}
    {{- "arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n" }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if loop.first and m.role == 'system' %}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
"""Without cues."""


def write_told(path: Path, spoken_like: Path, answers: Mapping[str, Sequence[str]]) -> Path:
    """
    Args:
        spoken_like: a checkpoint whose tokenizer it takes, beside tokens for what it answers.
        answers: by what is in the last message (the first key that is there), the pieces of the
            answer, each a token. No piece may be in two answers, nor twice in one.
    """
    from transformers import AddedToken, PreTrainedTokenizerFast

    pieces = [piece for answer in answers.values() for piece in answer]
    assert len(set(pieces)) == len(pieces), "a piece has two successors"
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(spoken_like)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in pieces])
    cues = [f"<|cue-{number}|>" for number in range(len(answers))]
    tokenizer.add_tokens(cues, special_tokens=True)
    tokenizer.chat_template = TEMPLATE + "".join(_cues(answers, cues))
    chains = [
        [*tokenizer.convert_tokens_to_ids([cue, *answer]), tokenizer.eos_token_id]
        for cue, answer in zip(cues, answers.values(), strict=True)
    ]
    tokenizer.save_pretrained(path)
    _write_model(path, len(tokenizer), chains, tokenizer.eos_token_id)
    return path


def _cues(answers: Mapping[str, Sequence[str]], cues: Sequence[str]) -> Iterator[str]:
    yield "{%- if not add_generation_prompt %}"
    for key, cue in zip(answers, cues, strict=True):
        text = json.dumps(key)
        is_it = (
            "messages[-1].role == 'tool'" if key == RESULT else f"{text} in messages[-1].content"
        )
        test = f"elif {is_it}" if key != ANYTHING else "else"
        yield f"{{%- {test} %}}{{{{- {cue!r} }}}}"
    yield "{%- endif %}"


def _write_model(path: Path, vocabulary: int, chains: Sequence[Sequence[int]], end: int) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=256,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
    )
    with torch.device("meta"):
        skeleton = Qwen3ForCausalLM(config).state_dict()
    weights = {
        name: (torch.ones if name.endswith("norm.weight") else torch.zeros)(tensor.shape)
        for name, tensor in skeleton.items()
    }
    directions, successors = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    directions[:, 0] = 1  # after what belongs to no answer, it ends
    successors[end, 0] = 2
    steps = [step for chain in chains for step in pairwise(chain)]
    assert len(steps) < _WIDTH, "more tokens than directions"
    for direction, (token, successor) in enumerate(steps, start=1):
        directions[token] = 0
        directions[token, direction] = 1
        successors[successor, direction] = 2  # times the root of the width, by the last norm
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(path)
    generation = {"eos_token_id": end, "do_sample": False, "max_new_tokens": _TOKENS_BY_DEFAULT}
    (path / "generation_config.json").write_text(json.dumps(generation))
