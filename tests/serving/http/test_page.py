# SPDX-License-Identifier: Apache-2.0
"""The page: what it may load, and a conversation on it in headless Chromium (Debian's package `chromium`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serving.browser import PROGRAM, Browser

#: A folder that screenshots are written to, to be looked at.
SHOTS = os.environ.get("NQ_EDGE_SCREENSHOTS")


def test_the_page_needs_nothing_from_elsewhere(address: str) -> None:
    answer = httpx.get(f"{address}/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert len(re.findall(r"'sha256-[^']+'", policy)) == 2
    outside = set(re.findall(r"https?://[^'\"\s)]+", answer.text))
    assert outside <= {"http://www.w3.org/2000/svg"}  # a name, not an address that is asked
    assert "innerHTML" not in answer.text  # what a model writes is text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium")
    pytest.importorskip("websockets")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("width", "height", "dark"), [(1280, 800, False), (1280, 800, True), (390, 844, False), (390, 844, True)]
)
def test_a_conversation(browser: Browser, address: str, width: int, height: int, dark: bool) -> None:
    name = f"{'desktop' if width > 600 else 'phone'}-{'dark' if dark else 'light'}"
    browser.requests.clear()
    browser.look(width, height, dark=dark)
    browser.open(address)
    browser.wait("document.getElementById('state').textContent.includes('MB')")
    assert browser.run("document.title") == "tiny"
    browser.run("document.getElementById('open-settings').click()")
    browser.run("for (const [k, v] of [['system', 'Be short.'], ['max_tokens', '60'], ['temperature', '1']]) "
                "document.querySelector(`[name=${k}]`).value = v")  # fmt: skip
    _shoot(browser, f"{name}-settings")
    browser.run("document.querySelector('#settings .main').click()")
    browser.wait("localStorage.getItem('nq-settings')?.includes('Be short.')")
    for number, message in enumerate(("The quick brown fox <b>jumps</b>", "And a longer question, over several lines")):
        browser.run("document.getElementById('text').focus()")
        browser.type(message)
        browser.press("Enter")
        browser.wait(f"document.querySelectorAll('.figures').length === {number + 1}")
    assert browser.run("document.querySelector('.user').textContent").startswith("The quick brown fox <b>jumps</b>")
    assert re.search(r"\d+ tokens in, \d+ kept · \d+ out · first after \d+ ms · [\d.]+ tokens/s", _figures(browser))
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    _shoot(browser, name)
    browser.run("document.getElementById('anew').click()")
    assert browser.run("document.querySelectorAll('.message').length") == 0
    _shoot(browser, f"{name}-empty")
    assert browser.messages == []
    assert {urlsplit(url).netloc for url in browser.requests} == {urlsplit(address).netloc}


def test_an_answer_is_stopped_and_a_mistake_is_told(browser: Browser, address: str) -> None:
    browser.look(1000, 700)
    browser.open(address)
    # The tiny model takes a moment for the whole context; the answer ends as soon as its first piece is there.
    browser.run("""
        localStorage.setItem('nq-settings', '{"temperature": "1"}');
        const fetched = window.fetch;
        window.fetch = (...given) => { window.asked = given; return fetched(...given); };
        document.getElementById('text').value = 'The';
        document.getElementById('say').requestSubmit();
        document.getElementById('stop').click();
    """)
    browser.wait("document.querySelector('.figures')?.textContent === 'stopped'")
    assert browser.run("document.getElementById('stop').hidden")
    browser.run(f"document.getElementById('text').value = '{'x' * 9000}'")
    browser.run("document.getElementById('say').requestSubmit()")
    browser.wait("document.querySelector('.wrong')")
    assert "context holds" in browser.run("document.querySelector('.wrong').textContent")
    browser.messages.clear()  # Chromium notes the status 400


def test_the_oldest_turns_leave_when_the_context_is_full(browser: Browser, address: str) -> None:
    browser.look(1000, 700)
    browser.open(address)
    browser.run("settings.max_tokens = '400'; settings.system = 'Short.'")
    for number in range(6):
        browser.run(f"document.getElementById('text').value = 'Question {number} ' + 'word '.repeat(60)")
        browser.run("document.getElementById('say').requestSubmit()")
        browser.wait(f"document.querySelectorAll('.message .figures').length === {number + 1}")
    assert browser.run("document.querySelectorAll('.wrong').length") == 0
    assert browser.run("document.querySelectorAll('#forgotten').length") == 1
    assert browser.run("messages[0].role === 'user' && messages.length < 12")
    browser.messages.clear()


def _figures(browser: Browser) -> str:
    return str(browser.run("[...document.querySelectorAll('.figures')].at(-1).textContent"))


def _shoot(browser: Browser, name: str) -> None:
    if SHOTS:
        browser.screenshot(Path(SHOTS) / f"{name}.png")
