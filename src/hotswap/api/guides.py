"""What an answer must be: JSON to `Guide`, for all dialects, and the fields of OpenAI, vLLM and
llama.cpp.

An answer that silently ignores ``response_format`` is worse than none, so whatever asks for a
form in a way that we do not know is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hotswap.api.body import parse_object
from hotswap.api.dialect import Lasting
from hotswap.api.rules import asks_for_something
from hotswap.contracts.requests import Guide
from hotswap.errors import InvalidJson, InvalidRequest
from hotswap.options import nearest

MAX_SOURCE_CHARS = 256 << 10

JsonObject = dict[str, Any]
_UNSET = (None, "")
"""An empty schema is none of these: any JSON is of it."""
ANY_OBJECT: JsonObject = {"type": "object"}
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=1024)]
SchemaName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)]


class JsonSchema(Struct):
    name: SchemaName
    schema: JsonObject
    strict: bool | None = None
    """Answers are held to the schema in either case."""


class TextFormat(Struct, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, tag_field="type", tag="json_object"):
    schema: JsonObject | None = None
    """llama.cpp's."""


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(Struct):
    """vLLM's; one of them is given. Beside these it has `_OPTIONS`."""

    json: JsonObject | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    structural_tag: Any = None


class GuideFields(Lasting, kw_only=True):
    """The fields of a request that hold its answer to a form. Empty is unset.

    `Lasting` is a base here because a struct can have no second one.
    """

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonObject | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: JsonObject | str | None = None
    """llama.cpp's, as is ``grammar``."""
    grammar: str | None = None

    def guide(self) -> Guide | None:
        """Raises: InvalidRequest: there are two, or one that we cannot read."""
        found = [*self._found()]
        if len(found) > 1:
            first, second = found[0].param, found[1].param
            raise InvalidRequest(f"{second}: not together with {first}", param=second)
        return found[0] if found else None

    def _found(self) -> Iterator[Guide]:
        if self.response_format is not None:
            yield from _of_response_format(self.response_format)
        if self.structured_outputs is not None:
            yield from _of_structured_outputs(self.structured_outputs)
        if self.guided_json not in _UNSET:
            yield schema_guide(self.guided_json, "guided_json")
        if self.guided_regex:
            yield _guide("regex", self.guided_regex, "guided_regex")
        if self.guided_choice:
            yield _guide("choice", _text(self.guided_choice), "guided_choice")
        if self.guided_grammar:
            yield _grammar_guide(self.guided_grammar, "guided_grammar")
        if self.json_schema not in _UNSET:
            yield schema_guide(self.json_schema, "json_schema")
        if self.grammar:
            yield _grammar_guide(self.grammar, "grammar")


_OPTIONS = frozenset(
    {"disable_fallback", "disable_any_whitespace", "_backend", "_backend_was_auto"}
)
"""Of vLLM's ``structured_outputs``: which engine enforces it, and that JSON is without more spaces
than it needs to have, which it is here anyway."""
_GUIDED_OPTIONS = frozenset({"guided_decoding_backend"})


def refuse_other_forms(fields: Mapping[str, Any]) -> None:
    """Of a request as it came, refuse what asks for a form under a name that nothing here has: a
    slip, mostly, and else it would be answered with any text.

    Raises:
        InvalidRequest: names it.
    """
    guided = {name: value for name, value in fields.items() if name.startswith("guided_")}
    _refuse_strangers(guided, "", (*GuideFields.__struct_fields__, *_GUIDED_OPTIONS))
    wanted = fields.get("structured_outputs")
    if isinstance(wanted, dict):
        known = (*StructuredOutputs.__struct_fields__, *_OPTIONS)
        _refuse_strangers(wanted, "structured_outputs.", known)


def _refuse_strangers(fields: Mapping[str, Any], prefix: str, known: Sequence[str]) -> None:
    for name, value in fields.items():
        if name not in known and asks_for_something(value):
            shown = name[:200]
            param = f"{prefix}{shown}"
            hint = nearest(shown, known)
            raise InvalidRequest(f"{param}: not supported.{hint}", param=param)


def schema_guide(schema: JsonObject | str, param: str) -> Guide:
    """An answer of that schema, which came in the field ``param``.

    Raises:
        InvalidRequest: it is longer than a guide may be, or no object as JSON text.
    """
    return _guide("json_schema", _text(_object(schema, param)), param)


def _of_response_format(wanted: ResponseFormat) -> Iterator[Guide]:
    if isinstance(wanted, JsonObjectFormat):
        yield schema_guide(wanted.schema or ANY_OBJECT, "response_format")
    elif isinstance(wanted, JsonSchemaFormat):
        yield schema_guide(wanted.json_schema.schema, "response_format")


def _of_structured_outputs(wanted: StructuredOutputs) -> Iterator[Guide]:
    if wanted.structural_tag is not None:
        param = "structured_outputs.structural_tag"
        raise InvalidRequest(f"{param}: not supported", param=param)
    if wanted.json not in _UNSET:
        yield schema_guide(wanted.json, "structured_outputs.json")
    if wanted.json_object:
        yield schema_guide(ANY_OBJECT, "structured_outputs.json_object")
    if wanted.regex:
        yield _guide("regex", wanted.regex, "structured_outputs.regex")
    if wanted.choice:
        yield _guide("choice", _text(wanted.choice), "structured_outputs.choice")
    if wanted.grammar:
        yield _grammar_guide(wanted.grammar, "structured_outputs.grammar")


def _object(schema: JsonObject | str, param: str) -> JsonObject:
    if isinstance(schema, dict):
        return schema
    if len(schema) > MAX_SOURCE_CHARS:
        raise _too_long(param)
    try:
        return parse_object(schema.encode())
    except InvalidJson as error:
        raise InvalidRequest(f"{param}: as JSON text: {error.message}", param=param) from None


def _grammar_guide(source: str, param: str) -> Guide:
    if "::=" in source:
        raise InvalidRequest(
            f"{param}: this is GBNF or EBNF; only grammars in Lark's notation are supported",
            param=param,
        )
    return _guide("grammar", source, param)


def _guide(
    kind: Literal["json_schema", "regex", "choice", "grammar"], source: str, param: str
) -> Guide:
    if len(source) > MAX_SOURCE_CHARS:
        raise _too_long(param)
    return Guide(kind, source, param)


def _too_long(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: longer than {MAX_SOURCE_CHARS} characters", param=param)


def _text(value: Any) -> str:
    """JSON text; the order of an object's keys is kept, because answers are written in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
