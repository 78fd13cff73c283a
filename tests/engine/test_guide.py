"""Guided output: whatever a model would rather say, its answer is what was asked for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import jsonschema
import pytest

from hotswap.contracts.requests import ChatPrompt, Guide, SamplingParams
from hotswap.errors import HotswapError, InvalidRequest
from tests.engine.serving import GREEDY, Answer, Served, ignore, request, serving, spec_of

pytestmark = [pytest.mark.torch, pytest.mark.anyio]

Checkpoint = Callable[..., Path]
Kind = Literal["json_schema", "regex", "choice", "grammar"]
DEMO = Path(__file__).parents[2] / "src" / "hotswap" / "demo" / "models" / "hotswap"
PROMPT = [5, 6, 7, 8, 9, 10]

NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "home": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "home"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "nested": NESTED,
    "bounds": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "enum": {"enum": ["red", "grün", 3, None, {"a": [1, 2]}]},
    "pattern": {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "range": {"type": "integer", "minimum": -5, "maximum": 130},
    "number": {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    "any": {"anyOf": [{"type": "boolean"}, {"type": "array", "maxItems": 1, "items": NESTED}]},
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "unicode": {
        "type": "object",
        "properties": {"straße": {"const": "日本 😀"}, "é": {"type": "string", "maxLength": 3}},
        "required": ["straße", "é"],
        "additionalProperties": False,
    },
    "tree": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "left": {"$ref": "#/$defs/tree"},
                },
                "required": ["leaf"],
                "additionalProperties": False,
            }
        },
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"const": "x"}],
        "items": False,
        "minItems": 2,
    },
    "object": {"type": "object"},
}
REGEXES = [
    r"[A-Z][a-z]{1,6}( [a-z]{1,5}){0,3}\.",
    r"\d{4}-\d{2}-\d{2}",
    r"^(yes|no|maybe)$",
    r"(a|aa)+b?",
    r"[^\n]{3,9}/\"é?",
    r"(?i)hello|wörld",
]
CHOICES = ["yes", "yes, please", 'a "quoted"\n/text\\', "日本\x00\x7f"]
LARK = r"""
start: sum
sum: term (("+" | "-") term)*
term: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,2}/
"""
TERM = re.compile(r"\d{1,2}|\(S\)")


def guide(kind: Kind, source: str) -> Guide:
    return Guide(kind, source, "response_format")


def schema(name: str) -> Guide:
    return guide("json_schema", json.dumps(SCHEMAS[name]))


def hot(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=seed)


async def many(served: Served, wanted: Guide, seeds: int = 8, **fields: Any) -> list[Answer]:
    """Answers at temperature 1, all at the same time."""
    got: list[Answer] = []

    async def ask(seed: int) -> None:
        options = {"max_tokens": 120, "sampling": hot(seed)} | fields
        got.extend(await served.ask_all(PROMPT, guide=wanted, **options))

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            for seed in range(seeds):
                group.start_soon(ask, seed)
    return got


def ended(answers: list[Answer]) -> list[str]:
    """The texts of those that were not cut short."""
    return [a.text for a in answers if a.finished is not None and a.finished.reason == "stop"]


def is_sum(text: str) -> bool:
    """Whether `LARK` has it."""
    before = ""
    while text != before:
        before, text = text, re.sub(r"\(S\)|(?<!\d)\d{1,2}(?!\d)", "S", text)
        text = re.sub(r"S([+-]S)+", "S", text)
    return text == "S"


@pytest.mark.parametrize("model", ["random", "sums", "tales"])
async def test_what_ends_is_what_was_asked_for(checkpoint: Checkpoint, model: str) -> None:
    path = checkpoint() if model == "random" else DEMO / model
    total = 0
    async with serving(path, max_model_len=200) as served:
        for name, wanted in SCHEMAS.items():
            texts = ended(await many(served, schema(name)))
            for text in texts:
                jsonschema.validate(
                    json.loads(text), wanted, format_checker=jsonschema.FormatChecker()
                )
            total += len(texts)
        for pattern in REGEXES:
            texts = ended(await many(served, guide("regex", pattern)))
            assert all(re.fullmatch(pattern, text) for text in texts)
            total += len(texts)
        texts = ended(await many(served, guide("choice", json.dumps(CHOICES))))
        assert len(texts) == 8
        assert set(texts) <= set(CHOICES)
        texts = ended(await many(served, guide("grammar", LARK)))
        assert all(map(is_sum, texts))
    assert total > 80


async def test_what_is_cut_short_could_have_gone_on(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        front = served.prepared.front
        answers = await many(served, schema("nested"), max_tokens=9)
        assert {a.finished.reason for a in answers if a.finished} == {"length"}
        for answer in answers:
            matcher = front.guides.compile(schema("nested")).matcher()
            for byte in answer.text.encode():
                token = next(i for i in range(300) if front.vocabulary.raw(i) == bytes([byte]))
                assert matcher.allowed(frozenset(), may_end=True)[token >> 3] >> (token & 7) & 1
                matcher.advance(token)


async def test_an_answer_ends_with_its_last_token_and_needs_no_end_token(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint()) as served:
        for options in ({}, {"ignore_eos": True}, {"min_tokens": 60}):
            answer = await served.ask(
                PROMPT, guide=guide("regex", "[ab]{4}"), max_tokens=64, **options
            )
            assert answer.finished is not None
            assert answer.finished.reason == "stop"
            assert re.fullmatch("[ab]{4}", answer.text)
            assert answer.finished.completion_tokens <= 4


async def test_an_answer_that_may_end_goes_on_until_it_is_long_enough(
    checkpoint: Checkpoint,
) -> None:
    async with serving(checkpoint()) as served:
        bias = dict.fromkeys(served.prepared.front.eos_ids, 100.0)
        biased = SamplingParams(temperature=1.0, seed=1, logit_bias=bias)
        options: dict[str, Any] = {"guide": guide("regex", "a+"), "sampling": biased}
        short = await served.ask(PROMPT, max_tokens=30, **options)
        longer = await served.ask(PROMPT, max_tokens=30, min_tokens=12, **options)
        endless = await served.ask(PROMPT, max_tokens=30, ignore_eos=True, **options)
    assert short.text == "a"
    assert longer.text == "a" * 12
    assert endless.text == "a" * 30
    assert endless.finished is not None
    assert endless.finished.reason == "length"


async def test_unguided_answers_beside_guided_ones_stay_as_they_are(checkpoint: Checkpoint) -> None:
    path = checkpoint()
    plain: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
    for ahead in (False, True):
        async with serving(path) as served:
            served.engine._ahead = ahead
            wanted = [await served.ask(PROMPT, sampling=s, **plain) for s in (GREEDY, hot(3))]
            alone = await many(served, schema("nested"), seeds=3)
            got: dict[int, Answer] = {}
            mixed: list[Answer] = []

            async def ask(number: int, sampling: SamplingParams) -> None:
                got[number] = await served.ask(PROMPT, sampling=sampling, **plain)  # noqa: B023

            async def guided() -> None:
                mixed.extend(await many(served, schema("nested"), seeds=3))  # noqa: B023

            async with anyio.create_task_group() as group:
                group.start_soon(guided)
                group.start_soon(ask, 0, GREEDY)
                group.start_soon(ask, 1, hot(3))
        assert [got[0].text, got[1].text] == [answer.text for answer in wanted]
        assert sorted(a.text for a in mixed) == sorted(a.text for a in alone)


async def test_each_choice_has_its_own_way_through_the_grammar(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        answers = await many(served, schema("bounds"), seeds=1, n=6, max_tokens=200)
    texts = ended(answers)
    assert len(answers) == 6
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS["bounds"])


@pytest.mark.parametrize("architecture", ["qwen3", "falcon"])
async def test_preemption_keeps_the_place_in_the_grammar(
    checkpoint: Checkpoint, architecture: str
) -> None:
    path = checkpoint(architecture)
    pattern = guide("regex", "[a-z]{60}")
    async with serving(path) as served:
        wanted = [(await many(served, pattern, seeds=1, max_tokens=80))[0].text]
        block = served.engine._scheduler.budget.block_bytes
    async with serving(path, kv_cache_memory=7 * block, max_model_len=90) as served:
        preempted = served.note_preempted()
        answers = await many(served, pattern, seeds=4, max_tokens=80)
    assert wanted[0] in [answer.text for answer in answers]
    assert all(re.fullmatch("[a-z]{60}", answer.text) for answer in answers)
    assert preempted


async def test_a_swap_away_and_back_forgets_nothing(checkpoint: Checkpoint) -> None:
    from hotswap.engine.registry import TorchEngineRegistry

    first, second = spec_of(checkpoint()), spec_of(checkpoint("llama"))
    wanted = request(PROMPT, guide=schema("enum"), max_tokens=60, sampling=hot(4))
    texts: list[str] = []
    async with TorchEngineRegistry() as registry:
        for spec in (first, second, first):
            prepared = await registry.prepare(spec, ignore)
            async with registry.start(prepared, ignore, ignore) as engine:
                answer = await Served(registry, prepared, engine).ask(
                    PROMPT, guide=wanted.guide, max_tokens=60, sampling=hot(4)
                )
                texts.append(answer.text)
    assert texts[0] == texts[2]
    assert all(json.loads(text) in SCHEMAS["enum"]["enum"] for text in texts)


async def test_log_probabilities_are_the_models_own(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        answer = await served.ask(PROMPT, guide=guide("regex", "x[0-9]"), logprobs=2)
        free = await served.ask(PROMPT, max_tokens=1, logprobs=2)
    assert "".join(entry.text for entry in answer.logprobs) == answer.text
    assert answer.logprobs[0].top == free.logprobs[0].top


async def test_a_stop_string_cuts_a_guided_answer_short(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        answer = await served.ask(PROMPT, guide=schema("nested"), stop=('"home"',))
    assert answer.finished is not None
    assert answer.finished.stop_sequence == '"home"'
    assert answer.text.startswith('{"name":')


async def test_a_guided_answer_waits_for_its_last_token(checkpoint: Checkpoint) -> None:
    async with serving(checkpoint()) as served:
        served.engine._ahead = True
        runner, launches = served.engine._runner, list[bool]()
        launch = runner.launch

        def noting(plan: Any, after: Any = None) -> Any:
            launches.append(after is not None)
            return launch(plan, after)

        runner.launch = noting  # type: ignore[method-assign]
        answer = await served.ask(PROMPT, guide=guide("regex", "[0-9]{9}"), max_tokens=20)
    assert re.fullmatch("[0-9]{9}", answer.text)
    assert not any(launches)


async def test_text_before_the_marker_is_free_and_the_rest_is_guided(
    checkpoint: Checkpoint,
) -> None:
    from hotswap.engine.grammar import Preamble

    async with serving(checkpoint()) as served:
        front = served.prepared.front
        for preamble in (Preamble("</t>"), Preamble("</t>", "<t>"), Preamble("<|im_start|>")):
            grammar = front.guides.compile(guide("choice", '["one"]'), preamble)
            text = ("<t>" if preamble.open else "") + "two one {"
            matcher = grammar.matcher()
            tokens = front.tokenizer.encode(text + preamble.close + "\n\none")
            for token in tokens:
                assert not matcher.complete
                allowed = matcher.allowed(front.eos_ids, may_end=True)
                assert allowed[token >> 3] >> (token & 7) & 1
                assert not matcher.accepting
                matcher.advance(token)
            assert matcher.complete


@pytest.mark.parametrize("template", ["{{ messages }}[THINK]", "{{ messages }}"])
async def test_reasoning_between_special_tokens_that_have_no_angle_brackets_comes_before_it(
    checkpoint: Checkpoint, tmp_path: Path, template: str
) -> None:
    """Mistral's marks, which are tokens that no text spells."""
    path = with_tokens(checkpoint(), tmp_path, "[THINK]", "[/THINK]")
    (path / "chat_template.jinja").write_text(template + "{# [THINK] #}")
    prompt = ChatPrompt(messages=({"role": "user", "content": "hi"},))
    async with serving(path) as served:
        ids = served.prepared.front.vocabulary.added
        likely = {ids["[THINK]"]: 50.0, ids["[/THINK]"]: 100.0}
        answer = await served.ask(
            prompt,
            guide=guide("choice", '["yes"]'),
            max_tokens=20,
            sampling=SamplingParams(temperature=0, logit_bias=likely),
        )
    assert answer.finished is not None
    assert (answer.reasoning, answer.text, answer.finished.reason) == ("", "yes", "stop")
    assert answer.finished.completion_tokens <= 5


def with_tokens(path: Path, to: Path, *texts: str) -> Path:
    """A copy of a model with more special tokens."""
    from transformers import AutoTokenizer

    copy = Path(shutil.copytree(path, to / "marked"))
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": list(texts)}, replace_extra_special_tokens=False
    )
    tokenizer.save_pretrained(copy)
    return copy


async def test_a_grammar_may_name_special_tokens_and_hold_schemas(checkpoint: Checkpoint) -> None:
    lark = 'start: <|im_start|> "call " %json {"type": "object", "properties": {"a": {"const": 1}},'
    lark += ' "required": ["a"], "additionalProperties": false} <|im_start|>'
    async with serving(checkpoint()) as served:
        answer = await served.ask(PROMPT, guide=guide("grammar", lark), max_tokens=40)
    assert answer.finished is not None
    assert answer.finished.reason == "stop"
    assert re.fullmatch(r'call \{"a": ?1\}', answer.text)


WORDS = [f"word{i}" for i in range(5000)]
CHAIN: dict[str, Any] = {
    f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(500)
}
CHAIN["d500"] = {"type": "integer"}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(a|aa)+" * 20 + "b"),
        ("regex", "(a|b)*a(a|b){40}"),
        ("json_schema", json.dumps(SCHEMAS["tree"])),
        ("json_schema", json.dumps({"$ref": "#/$defs/d0", "$defs": CHAIN})),
        (
            "json_schema",
            '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": '
            '{"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}}',
        ),
        ("json_schema", json.dumps({"enum": WORDS})),
        ("choice", json.dumps(WORDS)),
        ("grammar", 'start: start "a" | "b"'),
        ("grammar", 'start: (("a" | "b"){100}){100}'),
        ("json_schema", '{"type": "string", "minLength": 250000}'),
        ("json_schema", '{"type": "array", "minItems": 250000, "items": {"maxLength": 250000}}'),
    ],
)
async def test_what_takes_others_for_ever_works(
    checkpoint: Checkpoint, kind: Kind, source: str
) -> None:
    async with serving(checkpoint()) as served:
        with anyio.fail_after(20):
            answer = await served.ask(
                PROMPT, guide=guide(kind, source), max_tokens=20, sampling=hot(1)
            )
    assert answer.text


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("regex", "(" * 8000 + "a" + ")" * 8000, "regular expression"),
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "(a", "unclosed group"),
        ("regex", "", "only an empty one"),
        ("regex", "[^\\s\\S]", "no answer|regular expression"),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "deep|recursion"),
        ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', "answer"),
        ("json_schema", '{"$ref": "http://127.0.0.1:9/schema.json"}', "not present"),
        ("json_schema", '{"$ref": "file:///etc/passwd"}', "not present"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable"),
        ("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
        ("json_schema", '{"type": "string", "format": "colour"}', "format"),
        ("choice", '[""]', "only an empty one"),
        ("grammar", "start: start", "no answer"),
        ("grammar", "start: foo", "unknown name"),
        ("grammar", "start: <nosuch>", "unknown special token"),
        ("grammar", 'A: "a" A\nstart: A', "circular"),
        ("grammar", "start: " + "(" * 30000 + '"a"' + ")" * 30000, "nested"),
        ("grammar", 'r: "a"', "no start rule"),
        ("grammar", '{"grammars": []}', "expecting rule"),
    ],
)
async def test_what_cannot_be_enforced_is_refused_by_name(
    checkpoint: Checkpoint, kind: Kind, source: str, reason: str
) -> None:
    async with serving(checkpoint()) as served:
        with anyio.fail_after(20), pytest.raises(InvalidRequest, match=reason) as caught:
            await served.ask(PROMPT, guide=guide(kind, source))
        assert caught.value.param == "response_format"
        assert len(caught.value.message) < 400
        answer = await served.ask(PROMPT, max_tokens=3, ignore_eos=True)
    assert answer.finished is not None, "the engine goes on"


async def test_an_answer_that_cannot_go_on_fails_alone(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine.guide import Matcher

    advance, steps = Matcher.advance, list[int]()

    def failing(self: Matcher, token: int) -> None:
        advance(self, token)
        steps.append(token)
        self.failed = len(steps) == 3

    monkeypatch.setattr(Matcher, "advance", failing)
    async with serving(checkpoint()) as served:
        errors: list[HotswapError] = []
        texts: list[str] = []

        async def guided() -> None:
            try:
                await served.ask(PROMPT, guide=guide("regex", "[0-9]{9}"))
            except HotswapError as error:
                errors.append(error)

        async def free() -> None:
            texts.append((await served.ask(PROMPT, max_tokens=20, ignore_eos=True)).text)

        async with anyio.create_task_group() as group:
            group.start_soon(guided)
            group.start_soon(free)
        alone = await served.ask(PROMPT, max_tokens=20, ignore_eos=True)
    assert texts == [alone.text]
    [error] = errors
    assert isinstance(error, InvalidRequest)
    assert error.param == "response_format"


def test_what_takes_too_long_to_compile_is_not_waited_for(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from llguidance import LLMatcher

    from hotswap.engine import guide as module
    from hotswap.engine.front import Fronts

    guides = Fronts().get(spec_of(checkpoint())).guides
    guides.compile(guide("regex", "a"))
    release, compiler = threading.Event(), LLMatcher

    def slow(*args: Any, **options: Any) -> Any:
        release.wait(30)
        return compiler(*args, **options)

    monkeypatch.setattr(module, "LLMatcher", slow)
    monkeypatch.setattr(module, "_COMPILE_TIME_S", 0.05)
    try:
        for source in ("b", "c"):
            with pytest.raises(InvalidRequest, match="takes longer"):
                guides.compile(guide("regex", source))
        with pytest.raises(HotswapError, match="Too many"):
            guides.compile(guide("regex", "d"))
        assert guides.compile(guide("regex", "a")), "what is known costs nothing"
    finally:
        release.set()


def test_a_refusal_that_is_looked_for_keeps_nothing_and_waits_for_no_turn(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import guide as module
    from hotswap.engine.front import Fronts
    from hotswap.engine.guide import Guides

    front = Fronts().get(spec_of(checkpoint()))
    guides = Guides(front.tokenizer, front.vocabulary, front.vocab_size, front.eos_ids, size=1)
    kept = guides.compile(guide("regex", "a"))
    assert guides.refusal([guide("regex", "b"), guide("regex", "c")]) is None
    assert guides.compile(guide("regex", "a")) is kept
    bad = guide("regex", "a(")
    assert isinstance(guides.refusal([guide("regex", "b"), bad]), InvalidRequest)
    monkeypatch.setattr(module, "_COMPILE_TIME_S", 0.05)
    with guides._compiling, guides._compiling:  # others have them
        assert guides.refusal([bad]) is None
    assert isinstance(guides.refusal([bad]), InvalidRequest)


def test_what_fails_while_it_compiles_is_told_with_its_reason(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotswap.engine import guide as module
    from hotswap.engine.front import Fronts

    class Panic(BaseException):
        """As pyo3 raises one."""

    def failing(*_: Any, **__: Any) -> Any:
        raise Panic("index out of bounds")

    guides = Fronts().get(spec_of(checkpoint())).guides
    with monkeypatch.context() as patch:
        patch.setattr(module, "LLMatcher", failing)
        for _ in range(3):  # more than compile at the same time
            with pytest.raises(InvalidRequest, match="cannot be compiled: index out of bounds"):
                guides.compile(guide("regex", "b"))
    assert guides.compile(guide("regex", "b"))


@pytest.mark.parametrize("fault", ["texts", "library"])
def test_that_a_tokenizer_cannot_guide_is_found_out_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from hotswap.engine import guide as module
    from hotswap.engine.decoding import Vocabulary
    from hotswap.engine.front import Fronts

    guides, tries = Fronts().get(spec_of(checkpoint())).guides, list[str]()

    def no_pieces(*_: Any) -> None:
        tries.append(fault)

    def no_tokenizer(*_: Any) -> Any:
        tries.append(fault)
        raise ValueError("two tokens of one text")

    if fault == "texts":
        monkeypatch.setattr(Vocabulary, "pieces", no_pieces)
    else:
        monkeypatch.setattr(module, "LLTokenizer", no_tokenizer)
    reason = {"texts": "texts of their own", "library": "two tokens of one text"}[fault]
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=reason) as caught:
            guides.compile(guide("regex", "b"))
        assert caught.value.param == "response_format"
    assert tries == [fault]


def test_guides_are_compiled_once_and_the_oldest_are_forgotten(checkpoint: Checkpoint) -> None:
    from hotswap.engine.front import Fronts
    from hotswap.engine.guide import Guides

    front = Fronts().get(spec_of(checkpoint()))
    guides = Guides(front.tokenizer, front.vocabulary, front.vocab_size, front.eos_ids, size=2)
    first = guides.compile(guide("regex", "a"))
    guides.compile(guide("regex", "b"))
    assert guides.compile(guide("regex", "a")) is first
    guides.compile(guide("regex", "c"))
    assert guides.compile(guide("regex", "a")) is first
    assert guides.compile(guide("choice", '["a"]')) is not first
    guides.compile(guide("regex", "c"))
    assert guides.compile(guide("regex", "a")) is not first
