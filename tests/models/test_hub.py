# SPDX-License-Identifier: Apache-2.0
"""Hub ids against a small hub of our own on this machine: what is fetched, what is not, and what each failure says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nanoquant_edge.models.hub import looks_like_id
from tests.tiny import llama_config

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "good/tiny": {
        "config.json": json.dumps(llama_config()).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"import os",
        "q4/tiny.gguf": b"GGUF",
    },
    "good/pickled": {"config.json": json.dumps(llama_config()).encode(), "pytorch_model.bin": b"pickle"},
    "odd/mamba": {"config.json": b'{"model_type": "mamba"}', "model.safetensors": b"weights"},
    "odd/empty": {"README.md": b"nothing"},
}


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub's HTTP interface that its client asks for."""

    asked: list[str]

    def log_message(self, *_arguments: Any) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").removeprefix("api/models/")
        repo, files = "/".join(path.split("/")[:2]), FILES.get("/".join(path.split("/")[:2]))
        rest = path.split("/")[2:]
        if repo == "shut/gated":
            self.answer(403, X_Error_Code="GatedRepo")
        elif files is None:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif rest[:1] == ["resolve"] and rest[1] not in ("main", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif rest[:1] == ["resolve"]:
            name = "/".join(rest[2:])
            if name not in files:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return
            type(self).asked.append(f"{self.command} {name}")
            etag = hashlib.sha1(files[name]).hexdigest()
            self.answer(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        elif rest[:1] == ["tree"]:
            rows = [{"type": "file", "path": name, "size": len(body), "oid": "0"} for name, body in files.items()]
            self.answer(200, json.dumps(rows).encode())
        else:
            siblings = [{"rfilename": name} for name in files]
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "private": False}).encode()
            self.answer(200, body)

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(name: str, cache: Path, endpoint: str, call: str = "fetch", **env: str) -> dict[str, Any]:
    """`fetch` in a fresh process, since the client reads its environment once: {"path"} or {"code", "message"}."""
    script = (
        "import json, sys\nfrom nanoquant_edge.models import hub\nfrom nanoquant_edge.errors import NqEdgeError\n"
        f"try: print(json.dumps({{'path': str(hub.{call}(sys.argv[1]"
        f"{', allow_pickle=True' if env.pop('pickle', '') else ''}))}}))\n"
        "except NqEdgeError as e: print(json.dumps({'code': e.code, 'message': e.message, 'hint': e.hint}))\n"
        "assert 'torch' not in sys.modules"
    )
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        env={**inherited, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_what_is_needed_is_fetched_and_then_found_offline(tmp_path: Path, hub: str) -> None:
    folder = Path(fetch("good/tiny", tmp_path, hub)["path"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert Hub.asked.index("GET config.json") < Hub.asked.index("GET model.safetensors")
    Hub.asked.clear()
    again = fetch("good/tiny", tmp_path, hub, HF_HUB_OFFLINE="1")
    assert Path(again["path"]) == folder
    assert not Hub.asked
    missing = fetch("good/pickled", tmp_path, hub, HF_HUB_OFFLINE="1")
    assert missing["code"] == "NQ-HUB"
    assert "HF_HUB_OFFLINE forbids" in missing["message"]


def test_one_file_of_a_repository(tmp_path: Path, hub: str) -> None:
    path = Path(fetch("good/tiny/q4/tiny.gguf@main", tmp_path, hub)["path"])
    assert path.read_bytes() == b"GGUF"
    assert Path(fetch("good/tiny", tmp_path, hub, "fetch_config")["path"]).name
    assert not any("safetensors" in line for line in Hub.asked)


def test_pickle_only_when_asked_for(tmp_path: Path, hub: str) -> None:
    folder = Path(fetch("good/pickled", tmp_path, hub)["path"])
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (Path(fetch("good/pickled", tmp_path, hub, pickle="1")["path"]) / "pytorch_model.bin").is_file()


def test_an_unsupported_model_is_refused_before_its_weights_come(tmp_path: Path, hub: str) -> None:
    assert fetch("odd/mamba", tmp_path, hub)["code"] == "NQ-ARCH"
    assert not any("safetensors" in line for line in Hub.asked)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/where", "neither a path here nor a model on the hub"),
        ("shut/gated", "is gated"),
        ("good/tiny@v9", "no such revision"),
        ("odd/empty", "lacks a file that is needed"),
    ],
)
def test_what_the_hub_refuses(tmp_path: Path, hub: str, name: str, message: str) -> None:
    found = fetch(name, tmp_path, hub)
    assert found["code"] == "NQ-HUB"
    assert message in found["message"]


@pytest.mark.slow  # the client tries for half a minute
def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    found = fetch("good/tiny", tmp_path, "http://127.0.0.1:9")
    assert found["code"] == "NQ-HUB"
    assert "cannot be fetched" in found["message"]


@pytest.mark.parametrize("name", ["a/b", "HuggingFaceTB/SmolLM2-135M", "a/b@main", "a/b/c/d.gguf@v1.0"])
def test_ids(name: str) -> None:
    assert looks_like_id(name)


@pytest.mark.parametrize(
    "name", ["", "a", "/a/b", "a/b/c", "../a", "a/..", "a/b@../x", "a b/c", "a/b\n", "~/x", "a/b/../c.gguf"]
)
def test_what_is_no_id(name: str) -> None:
    assert not looks_like_id(name)
