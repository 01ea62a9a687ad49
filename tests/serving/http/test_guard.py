# SPDX-License-Identifier: Apache-2.0
"""Who is let in, with how much, and what happens when there is no room or the end has come."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from nanoquant_edge.errors import NqEdgeError
from tests.serving.running import running

pytest.importorskip("uvicorn")
KEY = "0123456789abcdef"


def raw(address: str, data: bytes) -> bytes:
    """What the server answers to these bytes."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def request(address: str, *headers: str, path: str = "/v1/models", body: bytes = b"") -> int:
    """Status of a request with these headers."""
    verb = "POST" if body else "GET"
    lines = [f"{verb} {path} HTTP/1.1", *headers, "Connection: close", "", ""]
    return int(raw(address, "\r\n".join(lines).encode() + body).split()[1])


def test_only_names_of_this_machine_are_answered_to(address: str) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:80", "localhost:1"):
        assert request(address, f"Host: {host}") == 200
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "a]:1"):
        assert request(address, f"Host: {host}") == 403


def test_other_machines_need_a_key(tiny_bundle: Path) -> None:
    from nanoquant_edge.serving.http import ServeOptions

    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(NqEdgeError, match="no API key"):
            ServeOptions(host=host)
    with pytest.raises(NqEdgeError, match="at least 16"):
        ServeOptions(api_key="short")
    assert KEY not in repr(ServeOptions(api_key=KEY))
    with running(tiny_bundle, api_key=KEY, origins=("https://a.example",)) as address:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            for header in ("X: y", "Authorization: Bearer wrong", f"Authorization: Basic {KEY}", "Authorization: ä"):
                assert request(address, "Host: localhost", header, path=path) == 401
        assert request(address, "Host: localhost", f"Authorization: bearer {KEY}") == 200
        assert request(address, "Host: localhost", path="/") == 200
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{address}/v1/models", headers=asked).headers
        assert allowed["access-control-allow-origin"] == "https://a.example"
        refused = httpx.options(f"{address}/v1/models", headers=asked | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in refused.headers


def test_no_page_of_another_origin_may_use_it(address: str) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{address}/v1/models", headers=asked).headers
    body = json.dumps({"prompt": "x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = httpx.post(f"{address}/v1/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415


def test_bodies_are_bounded_whatever_their_headers_say(tiny_bundle: Path) -> None:
    with running(tiny_bundle, max_body=2000, body_s=0.5) as address:
        head = ("Host: localhost", "Content-Type: application/json")
        assert request(address, *head, "Content-Length: 999999999999", path="/v1/completions", body=b"{") == 413
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        assert request(address, *head, "Transfer-Encoding: chunked", path="/v1/completions", body=chunk * 3) == 413
        assert request(address, *head, "Content-Length: 10", path="/v1/completions", body=b"{") == 408
        assert request(address, *head, "Content-Length: 2", path="/v1/completions", body=b"{}") == 400


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", b'{"prompt": NaN}', b"null", b"[]", b"9" * 5000, b'"x"']
)
def test_what_is_no_json_object_is_refused(address: str, body: bytes) -> None:
    answer = httpx.post(f"{address}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_lone_surrogates_and_control_characters_are_text(address: str) -> None:
    body = '{"prompt": "a\\ud800b\\u0000\\u001b[2J", "max_tokens": 1, "echo": true}'
    answer = httpx.post(f"{address}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"].startswith("a?b\x00")


def test_paths_and_methods_that_there_are_not(address: str) -> None:
    assert httpx.get(f"{address}/v1/nothing").json()["error"]["code"] == "not_found"
    answer = httpx.get(f"{address}/v1/completions")
    assert answer.status_code == 405 and answer.json()["error"]["message"]
    assert httpx.get(f"{address}/v1/models/no%0Abody").status_code == 404
    assert httpx.get(f"{address}/v1/models/gpt").json()["id"] == "gpt"


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again(tiny_bundle: Path) -> None:
    asked = {"prompt": "The", "max_tokens": 250, "temperature": 1, "logit_bias": {"2": -100}}
    with running(tiny_bundle, slots=1, queue=1) as address:
        with ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(lambda _: httpx.post(f"{address}/v1/completions", json=asked, timeout=60), range(16))
            )
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        refused = answers[statuses.index(429)]
        assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.post(f"{address}/v1/completions", json={**asked, "n": 8}).status_code == 429
        deadline = time.monotonic() + 20
        while httpx.get(f"{address}/health").json()["active"]:  # what `n` began was ended with the rest
            assert time.monotonic() < deadline
    with running(tiny_bundle, slots=1, queue=64, max_requests=2) as address:
        with ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(lambda _: httpx.post(f"{address}/v1/completions", json=asked, timeout=60), range(16))
            )
        assert {answer.status_code for answer in answers} == {200, 503}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)


def test_many_clients_of_which_a_third_vanish(address: str) -> None:
    """A small one of the load that `python -m benchmarks.serving --load` makes."""

    def client(number: int) -> int:
        asked = {"prompt": f"The {number}", "max_tokens": 20, "stream": True, "temperature": 1, "seed": number}
        with httpx.stream("POST", f"{address}/v1/completions", json=asked, timeout=60) as answer:
            if number % 3:
                answer.read()
                assert answer.status_code == 429 or answer.text.endswith("data: [DONE]\n\n")
            else:
                next(answer.iter_bytes(), None)
            return answer.status_code

    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(client, range(48))) <= {200, 429}
    deadline = time.monotonic() + 30
    while httpx.get(f"{address}/health").json()["active"]:
        assert time.monotonic() < deadline


def test_the_metrics_are_in_prometheus_format(address: str) -> None:
    answer = httpx.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    sample = re.compile(r'nq_\w+(\{\w+="[^"\n]*"(,\w+="[^"\n]*")*\})? [0-9.e+-]+|# (HELP|TYPE) nq_\w+ .+')
    assert answer.text.endswith("\n") and all(sample.fullmatch(line) for line in answer.text.splitlines())


def test_the_document_describes_what_is_read(address: str) -> None:
    found = httpx.get(f"{address}/openapi.json").json()
    assert found["openapi"].startswith("3.1") and "components" not in found
    body = found["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["messages"] and "min_p" in body["properties"]
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(body)
    validator(body).validate({"messages": [{"role": "user", "content": "x"}], "seed": None})


def test_sigterm_finishes_what_is_being_written(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "nanoquant_edge", "serve", str(tiny_bundle), "--port", "0", "-t", "1", "--no-spin"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        asked = {"prompt": "The", "max_tokens": 250, "temperature": 1, "logit_bias": {"2": -100}, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=asked, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]" and '"finish_reason":"length"' in rest[-4]
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def test_a_port_in_use_is_one_message(tiny_bundle: Path, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.command import run

    port = urlsplit(address).port
    assert run("serve", tiny_bundle, "--port", port, "-t", "1") == 2
    assert "[NQ-SERVE] cannot listen at 127.0.0.1" in capfd.readouterr().err
    assert run("serve", tiny_bundle, "--host", "0.0.0.0") == 2
    assert "NQ-SERVE" in capfd.readouterr().err
    assert run("serve", tiny_bundle, "--api-key-file", tiny_bundle) == 2
    assert "NQ-SERVE" in capfd.readouterr().err
