"""Chat templates: a model's own program that writes its prompts, run where it can do no harm.

It is Jinja in the sandbox of transformers, which lets it reach nothing but what it is given. That
bounds neither its time nor its memory, and a thread cannot be stopped from outside; so the program
stops itself: what it is compiled to tells a meter of every turn of a loop, of every call and of the
text that it makes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from types import BuiltinMethodType, GeneratorType
from typing import Any

from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from hotswap.engine.template_meter import (
    METHOD_COSTS,
    SIZED_FILTERS,
    SMALL_CHARS,
    Meter,
    TemplateLimits,
    afford_filter,
    afford_format,
    afford_power,
    afford_product,
    cost_of_replace,
)

_BARRED_METHODS = frozenset({"encode", "translate", "maketrans", "expandtabs", "to_bytes"})
_BARRED_FILTERS = ("pprint", "urlize", "wordwrap", "xmlattr")
"""Templates of chat models have no use for them, and they can make much of little."""


class ChatTemplate:
    """A compiled template. Safe to use from several threads."""

    def __init__(self, source: str, limits: TemplateLimits | None = None) -> None:
        """Raises: TemplateError and whatever else a compiler meets in wrong source."""
        self._limits = limits or TemplateLimits()
        self._environment = _Environment()
        tree = self._environment.parse(source)
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        """What it wants to be given."""
        self.attributes = frozenset(_attributes(tree))
        """What it looks for in messages and other things."""
        self._template = self._environment.from_string(source)

    def render(self, values: Mapping[str, Any]) -> str:
        """``values`` are plain: dicts, lists, texts, numbers. A template may raise anything.

        Raises:
            TemplateTooCostly: it went over a limit.
        """
        meter = Meter(self._limits, values)
        with self._environment.metered(meter):
            parts: list[str] = []
            unpaid = 0
            context = self._template.new_context(dict(values))
            for part in self._template.root_render_func(context):
                unpaid += len(part)
                if unpaid > SMALL_CHARS:
                    meter.pay(unpaid)
                    unpaid = 0
                parts.append(part)
        return "".join(parts)


def _attributes(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if isinstance(node, nodes.Getattr):
            yield node.attr
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            yield str(node.arg.value)


class _Compiler(CodeGenerator):
    """Jinja's, with a step at each turn of a loop, and texts put together where it is counted."""

    _bodies: frozenset[int] = frozenset()

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        before, self._bodies = self._bodies, self._bodies | {id(node.body)}
        super().visit_For(node, frame)
        self._bodies = before

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        if id(nodes) in self._bodies:
            self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        # Small texts are not counted one by one: the steps to make many are.
        result = self.temporary_identifier()
        self.write(f"({result} if ({result} := ")
        self.visit(node.left, frame)
        self.write(" + ")
        self.visit(node.right, frame)
        self.write(f").__class__ is str and len({result}) < {SMALL_CHARS} ")
        self.write(f"else environment.made({result}))")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self._shown = self.temporary_identifier()
        self.write(f"({self._shown} if ({self._shown} := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(f").__class__ is str else environment.shown({self._shown}))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._made(node, node.items, super().visit_List, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self._made(node, node.items if node.ctx == "load" else [], super().visit_Tuple, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._made(node, [pair.value for pair in node.items], super().visit_Dict, frame)

    def _made(
        self, node: Any, items: list[Any], visit: Callable[[Any, Frame], None], frame: Frame
    ) -> None:
        """A list or the like that holds more than constants is looked at once it is there."""
        looked_at = not all(isinstance(item, nodes.Const) for item in items)
        self.write("environment.made(" if looked_at else "")
        visit(node, frame)
        self.write(")" if looked_at else "")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Compiler
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        theirs = chat_template_utils._compile_jinja_template("").environment
        super().__init__(
            trim_blocks=theirs.trim_blocks,
            lstrip_blocks=theirs.lstrip_blocks,
            extensions=[type(extension) for extension in theirs.extensions.values()],
            optimized=False,  # or what it computes is computed before anything counts
        )
        self._running = threading.local()
        self.globals.update(theirs.globals)
        self.globals.pop("lipsum", None)
        self.filters.update(theirs.filters)
        self.filters |= {"join": self._join, "replace": self._replace, "format": self._format}
        for name in _BARRED_FILTERS:
            self.filters.pop(name, None)
        self.filters = {name: self._counted(name, f) for name, f in self.filters.items()}

    def metered(self, meter: Meter) -> _Running:
        return _Running(self._running, meter)

    # -- called by what a template is compiled to ----------------------------------------------

    def step(self) -> None:
        self._running.meter.step()

    def made(self, value: Any) -> Any:
        self._running.meter.pay_for(value)
        return value

    def joined(self, parts: Iterable[Any]) -> str:
        parts = [part if type(part) is str else self._text(part) for part in parts]
        size = sum(map(len, parts))
        if size > SMALL_CHARS:
            self._running.meter.pay(size)
        return "".join(parts)

    def concat(self, parts: Iterable[str]) -> str:
        """Of what a block or a macro has put out."""
        return self.joined(parts)

    def shown(self, value: Any) -> str:
        """A value that is put out and may be no text yet."""
        return value if isinstance(value, str) else self._text(value)

    def _text(self, value: Any) -> str:
        self._running.meter.size(value)
        return str(value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = self._running.meter
        meter.step()
        if type(obj) is BuiltinMethodType:
            method = METHOD_COSTS.get(obj.__name__)
            if method is not None and isinstance(obj.__self__, str):
                args = method(meter, obj.__self__, *args)
        for given in args:
            if isinstance(given, str | list | tuple) and len(given) > SMALL_CHARS:
                meter.pay_for(given)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str | list | tuple | dict):
            meter.pay_for(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter: Meter = self._running.meter
        if operator == "*":
            afford_product(meter, left, right)
        elif operator == "**":
            afford_power(left, right)
        elif operator == "%" and isinstance(left, str):
            afford_format(meter, left, right)
        result = super().call_binop(context, operator, left, right)
        meter.pay_for(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _BARRED_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        template = str(value.__self__)

        def formatted(*args: Any, **kwargs: Any) -> str:
            afford_format(self._running.meter, template, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return formatted

    # -- filters -------------------------------------------------------------------------------

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            # While a template is compiled none runs: this fails, and Jinja leaves it for later.
            meter: Meter = self._running.meter
            meter.step()
            if name in SIZED_FILTERS and (len(args) > 1 or kwargs or meter.nested):
                afford_filter(meter, name, *args, **kwargs)
            result = function(*args, **kwargs)
            if type(result) is GeneratorType:
                return self._stepping(result)
            meter.pay_for(result)
            return result

        return counted

    def _stepping(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item

    def _join(self, value: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
        items = value if attribute is None else map(make_attrgetter(self, attribute), value)
        parts = [item if type(item) is str else self._text(item) for item in items]
        separator = str(d)
        self._running.meter.afford(sum(map(len, parts)) + len(separator) * len(parts))
        return separator.join(parts)

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = self._text(s), str(old), str(new)
        cost_of_replace(self._running.meter, text, old, new)
        return str(text.replace(old, new, -1 if count is None else count))

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        given: Any = kwargs or args
        afford_format(self._running.meter, str(value), given)
        return str(str(value) % given)


class _Running:
    """While it is entered, what this thread renders is counted by a meter."""

    def __init__(self, running: threading.local, meter: Meter) -> None:
        self._running = running
        self._meter = meter

    def __enter__(self) -> None:
        self._running.meter = self._meter

    def __exit__(self, *_: object) -> None:
        del self._running.meter
