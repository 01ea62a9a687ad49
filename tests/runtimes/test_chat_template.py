# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.runtimes import chat_template
from nanoquant_edge.runtimes.chat_template import ChatTemplate, load_chat_template

CHAT = [
    {"role": "system", "content": "Be brief.  "},
    {"role": "user", "content": "Größe <b>&amp; 東京</b>\n"},
    {"role": "assistant", "content": "Yes.", "reasoning": "because", "tool_calls": None},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": ["ä", "<"]}}}]
TEMPLATES = {
    "blocks": "{{ bos_token }}\n{% for m in messages %}\n    {% if loop.first %}\n  [{{ m.role }}]\n    {% endif %}\n"
    "{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}\n{% if add_generation_prompt %}>{% endif %}\n",
    "tools": "{% if tools %}{{ tools | tojson(indent=2) }}{{ tools[0] | tojson }}{% endif %}{{ messages | tojson }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}"
    "{% if ns.n > 20 %}{% break %}{% endif %}{{ ns.n }},{% endfor %}{{ dict(a=1).a }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ 'tool_calls' in m }};"
    "{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "macro": "{% macro turn(m, last=false) -%} <{{ m.role }}> {%- if not last %},{% endif %}{%- endmacro %}"
    "{% for m in messages %}{{ turn(m, loop.last) }}{% endfor %}{{ messages[::-1][0].content.split(' ') | join('-') }}",
    "undefined": "{{ missing }}{{ messages[0].nothing }}{{ documents is none }}{{ unk_token }}{{ flag }}",
    "date": "{{ strftime_now('%Y') }}",
}


def _folder(source: Path, target: Path, template: object, as_file: bool = False) -> Path:
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    if as_file:
        (target / "chat_template.jinja").write_text(str(template))
    else:
        settings["chat_template"] = template
    path.write_text(json.dumps(settings))
    return target


def _load(folder: Path) -> ChatTemplate:
    template = load_chat_template(folder, load_tokenizer(folder))
    assert template is not None
    return template


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_equal_those_of_transformers(name: str, as_file: bool, byte_level_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = _folder(byte_level_folder, tmp_path / "model", TEMPLATES[name], as_file)
    theirs, ours = AutoTokenizer.from_pretrained(folder), _load(folder)
    for prompt in (True, False):
        for tools in (None, TOOLS):
            expected = theirs.apply_chat_template(
                CHAT, tools=tools, tokenize=False, add_generation_prompt=prompt, flag=3
            )
            assert ours.render(CHAT, prompt, tools, flag=3) == expected


def test_the_rendered_chat_gives_the_ids_of_transformers(byte_level_folder: Path) -> None:
    from transformers import AutoTokenizer

    text = _load(byte_level_folder).render(CHAT)
    expected = AutoTokenizer.from_pretrained(byte_level_folder).apply_chat_template(CHAT, add_generation_prompt=True)
    assert load_tokenizer(byte_level_folder).encode(text, add_special_tokens=False) == list(expected["input_ids"])


def test_of_several_templates_the_default_is_taken(byte_level_folder: Path, tmp_path: Path) -> None:
    entry = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "{{ messages[0].role }}"}]
    assert _load(_folder(byte_level_folder, tmp_path / "model", entry)).render(CHAT) == "system"


def test_a_folder_without_template_has_none(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = _folder(byte_level_folder, tmp_path / "model", None)
    assert load_chat_template(folder, load_tokenizer(folder)) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "cannot be rendered"),
        ("{{ messages[0].content.x.y }}", "cannot be rendered"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ messages.append(1) }}", "unsafe|not safe"),
        ("{{ ''.format.__globals__.os }}", "unsafe|undefined"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe|undefined"),
        ("{{ namespace(__class__=1) }}", "may not set"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "may not set"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe|undefined"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe|undefined"),
        ("{% include '/etc/hostname' %}", "cannot be rendered"),
    ],
)
def test_what_a_template_may_not_do_is_an_error(source: str, message: str) -> None:
    with pytest.raises(NqEdgeError, match=f"(?i){message}") as caught:
        ChatTemplate(source).render(CHAT)
    assert caught.value.code == "NQ-TEMPLATE"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in messages recursive %}{{ loop([a, a]) }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.3)
    template = ChatTemplate(source)
    begin, tracer = time.monotonic(), sys.gettrace()
    with pytest.raises(NqEdgeError, match=r"longer than|recursion") as caught:
        template.render(CHAT)
    assert time.monotonic() - begin < 3
    assert caught.value.code == "NQ-TEMPLATE"
    assert sys.gettrace() is tracer


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10000000000 }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ '%9999999999d' % 1 }}",
        "{{ 'x'|center(9999999999) }}",
        "{% set x = 'x' * 1000000 %}{{ x|replace('x', x) }}",
        "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_much_memory_is_ended(source: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(NqEdgeError, match=r"MiB|characters") as caught:
        ChatTemplate(source).render(CHAT)
    assert caught.value.code == "NQ-TEMPLATE"
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_template_too_large_and_an_empty_chat_are_refused(byte_level_folder: Path) -> None:
    with pytest.raises(NqEdgeError, match="1048577 characters"):
        ChatTemplate("x" * ((1 << 20) + 1))
    with pytest.raises(NqEdgeError, match="no messages"):
        _load(byte_level_folder).render([])


def test_a_template_that_is_no_text_is_refused(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = _folder(byte_level_folder, tmp_path / "model", "")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NqEdgeError, match="cannot read") as caught:
        _load(folder)
    assert caught.value.code == "NQ-TEMPLATE"


def test_objects_reach_the_template_as_plain_data() -> None:
    class Content(str):
        def secret(self) -> str:
            return "leaked"

    template = ChatTemplate("{{ messages[0].content }}{{ messages[0].content.secret is defined }}{{ messages[0].o }}")
    assert template.render([{"role": "user", "content": Content("hi"), "o": object()}]) == "hiFalse<object>"
