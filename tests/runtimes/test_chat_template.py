# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.tokenizer import load_tokenizer
from nanoquant_edge.runtimes.chat_template import ChatTemplate, TemplateLimits, load_chat_template

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
    "dict": "{{ dict.fromkeys(['a'], 1) }}{{ dict.fromkeys('ab') }}{{ dict([('x', 1)], y=2) }}",
    "self": "{% set ns = namespace(self=1, other=2) %}{{ ns.self }}{{ namespace({'a': 3}).a }}",
    "tokens": "{{ image_token }}|{{ video_token }}|{{ pad_token }}|{{ number_token }}|{{ not_a_tokens }}",
}


#: What a model may name beside the usual tokens, in tokenizer_config.json.
OWN_TOKENS = {
    "image_token": "<img>",
    "number_token": 5,
    "not_a_tokens": "x",
    "extra_special_tokens": {"video_token": "<video>", "pad_token": "</s>"},
}


def _folder(source: Path, target: Path, template: object, as_file: bool = False, **more: object) -> Path:
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **more}
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

    folder = _folder(byte_level_folder, tmp_path / "model", TEMPLATES[name], as_file, **OWN_TOKENS)
    reference, template = AutoTokenizer.from_pretrained(folder), _load(folder)
    for prompt in (True, False):
        for tools in (None, TOOLS):
            expected = reference.apply_chat_template(
                CHAT, tools=tools, tokenize=False, add_generation_prompt=prompt, flag=3
            )
            assert template.render(CHAT, prompt, tools, flag=3) == expected


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
        ("{{ dict.__class__.mro }}", "unsafe|undefined"),
        ("{{ dict.fromkeys.__globals__.os }}", "unsafe|undefined"),
        ("{{ dict.update({}, a=1) }}", "cannot be rendered"),
        ("{{ raise_exception('\x1b[2Jred\nline') }}", r"rendered:  \[2Jred line"),
    ],
)
def test_what_a_template_may_not_do_is_an_error(source: str, message: str) -> None:
    with pytest.raises(NqEdgeError, match=f"(?i){message}") as caught:
        ChatTemplate(source).render(CHAT)
    assert caught.value.code == "NQ-TEMPLATE"


QUICK = TemplateLimits(seconds=0.2)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in messages recursive %}{{ loop([a, a]) }}{% endfor %}",
        # A single step, which nothing inside of the process can interrupt, in a constant and in the template's run.
        "{{ 7**(7**9) }}",
        "{% set x = messages|length + 2 %}{{ x**(10**8) > 5 }}",
        "{{ 10|round(-10**9) }}",
        "{{ 'a' * 60000 | replace('a', 'aa') | length }}{{ (10**5)**(10**6) % 7 }}",
    ],
)
def test_a_template_that_does_not_end_is_ended(source: str) -> None:
    begin = time.monotonic()
    with ChatTemplate(source, limits=QUICK) as template:
        with pytest.raises(NqEdgeError, match=r"longer than|recursion|took more|range") as caught:
            template.render(CHAT)
        assert caught.value.code == "NQ-TEMPLATE"
        assert time.monotonic() - begin < 60
        with pytest.raises(NqEdgeError):  # with a new process
            template.render(CHAT)


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
    with ChatTemplate(source) as template, pytest.raises(NqEdgeError, match=r"MiB|characters") as caught:
        template.render(CHAT)
    assert caught.value.code == "NQ-TEMPLATE"
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


LOOP = "{% for i in range(60) %}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% endfor %}"


def test_other_threads_are_undisturbed() -> None:
    stop, failed, texts = threading.Event(), [], set()

    def render(template: ChatTemplate) -> None:
        while not stop.is_set():
            texts.add(template.render(CHAT))

    before = (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace())
    with ChatTemplate(LOOP) as shared, ChatTemplate(LOOP) as other:
        threads = [threading.Thread(target=render, args=(template,)) for template in (shared, shared, other)]
        for thread in threads:
            thread.start()
        for _ in range(100):
            time.sleep(0.002)
            try:
                mmap.mmap(-1, 1 << 30).close()
            except OSError as error:
                failed.append(error)
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == [] and len(texts) == 1
    assert (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()) == before


def _children() -> set[str]:
    """Processes that this one has started and not yet waited for."""
    return {child for task in Path("/proc/self/task").glob("*/children") for child in task.read_text().split()}


def test_the_process_stays_for_the_next_chat_and_goes_with_the_template() -> None:
    before = _children()
    template = ChatTemplate("{{ messages[0].role }}")
    assert _children() <= before  # it starts with the first chat
    assert template.render(CHAT) == "system"
    started = _children() - before
    assert len(started) == 1
    assert template.render(CHAT) == "system" and _children() - before == started
    os.kill(int(started.pop()), signal.SIGKILL)  # as the system does when memory runs out
    time.sleep(0.1)
    assert template.render(CHAT) == "system"
    template.close()
    assert _children() <= before  # those of other tests may end meanwhile
    template.start()
    begun = _children() - before
    assert len(begun) == 1 and template.render(CHAT) == "system" and _children() - before == begun
    del template
    gc.collect()
    assert _children() <= before  # those of other tests may end meanwhile


def test_a_fork_has_a_process_of_its_own() -> None:
    with ChatTemplate("{{ messages[0].role }}") as template:
        assert template.render(CHAT) == "system"
        context = multiprocessing.get_context("fork")
        texts = context.Queue()
        child = context.Process(target=lambda: texts.put([template.render(CHAT) for _ in range(20)]))
        child.start()
        assert [template.render(CHAT) for _ in range(20)] == texts.get() == ["system"] * 20
        child.join()
        assert template.render(CHAT) == "system"


def test_jinja_is_not_imported_here_and_never_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit('foreign code')")
    (tmp_path / "json.py").write_text("raise SystemExit('foreign code')")
    program = (
        "import sys; sys.path.remove('')\n"
        "from nanoquant_edge.runtimes import ChatTemplate\n"
        "sys.path.insert(0, '')\n"
        "print(ChatTemplate('{{ messages[0].role }}').render([{'role': 'user'}]), 'jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "user False\n", done.stderr


@pytest.mark.parametrize(
    "value",
    [float("nan"), 1e308, 10**5000, {1: "a", None: 2}, "\ud800", [None, True]],
    ids=lambda value: type(value).__name__,
)
def test_any_plain_value_reaches_the_template(value: object) -> None:
    with ChatTemplate("{{ v is defined }}{{ messages[0].content | length }}") as template:
        assert template.render([{"role": "user", "content": "\ud83d"}], v=value) == "True1"


def test_a_chat_nested_too_deeply_is_refused() -> None:
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    with ChatTemplate("x") as template, pytest.raises(NqEdgeError, match="nested") as caught:
        template.render([{"role": "user", "content": nested}])
    assert caught.value.code == "NQ-TEMPLATE"


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
