from __future__ import annotations

import time
from typing import Any

import pytest

pytestmark = pytest.mark.torch  # transformers, whose sandbox it is

MESSAGES = [{"role": "user", "content": "quick"}, {"role": "assistant", "content": "fox"}]
FOR = "{% for i in range(10**5) %}"
END = "{% endfor %}"
DOUBLED = "{% set ns = namespace(x='x') %}" + FOR + "{% set ns.x = DOUBLE %}" + END
LAUGHS = (
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}" + END
)
LONG = "{% set y = 'y' * 1000000 %}"
BOMBS = {
    "small pieces": "{% for a in range(999) %}{% for b in range(999) %}"
    + "x" * 4000
    + "{% endfor %}{% endfor %}",
    "loops": FOR + FOR + END + END,
    "loops that write": FOR + FOR + "x" + END + END,
    "filtered loop": FOR + "{% for j in range(10**5) if false %}" + END + END,
    "generators": FOR + "{{ range(10**5)|map('string')|list|length }}" + END,
    "multiplied": "{{ 'x' * 10**10 }}",
    "list": "{{ ([1] * 10**10)|length }}",
    "number": "{{ (10**9)**(10**9) }}",
    "centred": "{{ 'x'|center(10**10) }}",
    "padded": "{{ 'x'.ljust(10**10) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format with a width": "{{ '%*d' % (10**10, 1) }}",
    "format method": "{{ '{:10000000000}'.format(1) }}",
    "format method with a width": "{{ '{:{}}'.format(1, 10**10) }}",
    "format filter": "{{ '%10000000000d'|format(1) }}",
    "many fields": LONG + "{{ ('{0}' * 100000).format(y) }}",
    "concatenated": DOUBLED.replace("DOUBLE", "ns.x ~ ns.x"),
    "added": DOUBLED.replace("DOUBLE", "ns.x + ns.x"),
    "passed on": "{% macro m(x) %}{{ m(x + x) }}{% endmacro %}{{ m('x' * 100) }}",
    "block": "{% set x %}" + FOR + "{{ 'y' * 10**5 }}" + END + "{% endset %}{{ x }}",
    "join": "{{ range(100000)|map('string')|join('x' * 1000000) }}",
    "join method": LONG + "{{ y.join(range(100000)|map('string')) }}",
    "joined copies": LONG + "{{ ([y] * 100000)|join }}",
    "copies in a list": LONG + "{{ [y] * 100000 }}",
    "copies in lists": LONG + "{{ [[y] * 100, [y] * 100] }}{{ {1: [y] * 100000}|tojson }}",
    "replace": LONG + "{{ y.replace('y', y) }}",
    "replace filter": LONG + "{{ y|replace('y', y) }}",
    "indent": "{{ ('\n' * 1000000)|indent(9999) }}",
    "laughs as JSON": LAUGHS + "{{ ns.x|tojson }}",
    "laughs": LAUGHS + "{{ ns.x }}",
    "laughs as text": LAUGHS + "{{ ns.x|string }}{{ ns.x ~ '' }}",
    "namespaces": "{{ namespace(a=1) }}",
    "words": "{{ lipsum(1000000) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "recursion": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "output": LONG + "{% for i in range(10**5) %}{{ y }}{% endfor %}",
}
HONEST = [
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] ~ '\\n' }}{% endfor %}",
    "{{ messages|tojson(indent=2) }}{{ tools }}{{ x is defined }}{{ [1, messages[0]]|tojson }}",
    "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% if loop.first %}"
    "{% set ns.n = ns.n + 1 %}{% else %}{% break %}{% endif %}{% endfor %}{{ ns.n }}",
    "{% macro say(m, end='.') %}{{ m.content|trim }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ say(m, end='!') }}{% endfor %}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|join('+', attribute='content') }}",
    "{{ 'a-b'.split('-')|last }}{{ 'x'.join(['1', '2']) }}{{ 'abc'|replace('b', 'd') }}",
    "{{ 'a %s' % 'b' }}{{ '{} {}'.format(1, 'x') }}{{ '%s' | format('y') }}{{ 2 ** 10 }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content|upper }}{% endfor %}",
    "{% generation %}{{ messages[1].content }}{% endgeneration %}{{ {'a': [1, 2]}.a }}",
    "{% for k, v in messages[0]|dictsort %}{{ k }}={{ v|indent }}{% endfor %}{{ none }}{{ 1.5 }}",
    "{% set text %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ text|length }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}{{ (1, 'a') }}{{ true }}{{ y }}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is not number else x }}{% endfor %}",
]


def written(source: str, **values: Any) -> str:
    from hotswap.engine.template import ChatTemplate

    return ChatTemplate(source).render({"messages": MESSAGES, "tools": None, **values})


@pytest.mark.parametrize("source", HONEST)
def test_honest_templates_write_what_transformers_writes(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs = render_jinja_template([MESSAGES], chat_template=source)[0][0]
    assert written(source) == theirs


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_no_template_takes_the_server_with_it(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(Exception, match=r".") as caught:
        written(source)
    assert not isinstance(caught.value, MemoryError)
    assert time.thread_time() - start < 10


def test_the_limits_count_steps_and_texts_and_not_the_time_of_day() -> None:
    from hotswap.engine.template import ChatTemplate
    from hotswap.engine.template_meter import TemplateLimits, TemplateTooCostly

    limits = TemplateLimits(steps=1000, chars=10_000)
    loop = "{% for i in range(n) %}{% endfor %}"
    assert ChatTemplate(loop, limits).render({"n": 990}) == ""
    with pytest.raises(TemplateTooCostly, match="steps"):
        ChatTemplate(loop, limits).render({"n": 1060})
    assert len(ChatTemplate("{{ 'x' * n }}", limits).render({"n": 4000})) == 4000
    with pytest.raises(TemplateTooCostly, match="text"):
        ChatTemplate("{{ 'x' * n }}", limits).render({"n": 10_001})


def test_time_is_looked_at_too() -> None:
    from hotswap.engine.template import ChatTemplate
    from hotswap.engine.template_meter import TemplateLimits, TemplateTooCostly

    limits = TemplateLimits(cpu_s=0.0)
    with pytest.raises(TemplateTooCostly, match="long"):
        ChatTemplate("{% for i in range(64) %}{% endfor %}", limits).render({})


def test_renderings_beside_each_other_are_counted_apart() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from hotswap.engine.template import ChatTemplate
    from hotswap.engine.template_meter import TemplateLimits

    template = ChatTemplate(
        "{% for i in range(900) %}{{ i }}{% endfor %}", TemplateLimits(steps=1000)
    )
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(template.render, [{}] * 40))) == 1


def test_a_template_says_what_it_wants_to_be_given() -> None:
    from hotswap.engine.template import ChatTemplate

    template = ChatTemplate("{% set a = 1 %}{{ tools }}{{ a }}{{ messages[0]['tools'] }}{{ m.x }}")
    assert template.variables == {"tools", "messages", "m"}
    assert {"tools", "x"} <= template.attributes


def test_a_template_cannot_reach_into_the_server() -> None:
    for source in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(Exception, match=r"unsafe|not safely"):
            written(source + "{{ messages.__class__.x }}")
