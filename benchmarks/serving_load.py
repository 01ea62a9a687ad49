# SPDX-License-Identifier: Apache-2.0
"""Many clients of which a third vanish, and a soak: what the server's process holds must stay what it was.

    python -m benchmarks.serving_load BUNDLE --clients 200 --seconds 120 --append

A burst of clients comes at once, each of which reads its answer, leaves in the middle, or leaves at once. Then requests
of all kinds follow each other for the given time, wrong ones and vanishing ones among them, while memory, threads and
descriptors are noted.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option
from benchmarks.serving import Server, free_port, resident_mb, running

_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
_CHAT = [{"role": "user", "content": "Say something."}]


async def visit(port: int, path: str, body: Any, patience: float) -> str:
    """Send a request; read its answer to the end, or go away after `patience` pieces (0: at once).

    Returns:
        The status, or "gone".
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    try:
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + data)
        await writer.drain()
        if patience == 0:
            return "gone"
        status = (await reader.readline()).split()[1].decode()
        pieces = 0
        async for line in reader:
            pieces += line.startswith(b"data: ")
            if pieces >= patience:
                return "gone"
        return status
    finally:
        writer.close()


async def crowd(port: int, clients: int, tokens: int) -> Counter[str]:
    """All clients at once; every third one vanishes."""

    async def one(number: int) -> str:
        body = {"prompt": f"Story {number}", "max_tokens": tokens, "stream": True, "seed": number}
        return await visit(port, "/v1/completions", body, float("inf") if number % 3 else number % 2 * 3)

    return Counter(await asyncio.gather(*(one(number) for number in range(clients))))


async def wander(port: int, seconds: float, workers: int) -> Counter[str]:
    """Requests of all kinds from a few workers for so long."""
    end, found = time.monotonic() + seconds, Counter[str]()
    kinds: list[tuple[str, Any]] = [
        ("/v1/completions", {"prompt": "Once", "max_tokens": 8}),
        ("/v1/completions", {"prompt": ["Once", "Twice"], "n": 2, "max_tokens": 4, "stream": True, "logprobs": 2}),
        ("/v1/chat/completions", {"messages": _CHAT, "max_tokens": 8, "stream": True}),
        ("/v1/chat/completions", {"messages": _CHAT, "max_tokens": 24, "response_format": {"type": "json_schema",
                                  "json_schema": {"name": "n", "schema": _SCHEMA}}}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 8, "stream": True}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/nothing", {}),
    ]  # fmt: skip

    async def work(number: int) -> None:
        source = random.Random(number)
        while time.monotonic() < end:
            path, body = source.choice(kinds)
            patience = source.choice([0, 2, *[float("inf")] * 4])
            found[await visit(port, path, {**body, "seed": source.randrange(1000)}, patience)] += 1

    await asyncio.gather(*(work(number) for number in range(workers)))
    return found


def held(server: Server) -> dict[str, float]:
    """Memory, threads and descriptors of the server's process."""
    folder = Path(f"/proc/{server.process.pid}")
    return {
        "resident_mb": round(resident_mb(server.process), 1),
        "threads": sum(1 for _ in (folder / "task").iterdir()),
        "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
    }


def idle(port: int, seconds: float = 120) -> float:
    """Seconds until no text is being written."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            state = json.load(answer)
        if not state["active"] and not state["waiting"]:
            return time.monotonic() - begin
        time.sleep(0.05)
    raise click.ClickException("texts are still being written")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--clients", type=int, default=200, show_default=True)
@click.option("--tokens", type=int, default=16, show_default=True, help="Of each client of the crowd.")
@click.option("--seconds", type=float, default=120, show_default=True, help="Of the soak.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--append", is_flag=True, help="Add the row to docs/figures/serving_load.json.")
@figures_option
def main(bundle: Path, clients: int, append: bool, folder: Path, **given: Any) -> None:
    """Measure."""
    port = free_port()
    command = [sys.executable, "-m", "nanoquant_edge", "serve", str(bundle), "--device", "cpu", "--port", str(port)]
    command += ["-t", str(given["threads"]), "--slots", "4", "--queue", str(clients), "--max-context", "512"]
    with running("nq-edge serve", command, port, 2) as server:
        asyncio.run(wander(port, 5, 4))  # what is made once is made
        idle(port)
        start = held(server)
        begin = time.monotonic()
        statuses = asyncio.run(crowd(port, clients, given["tokens"]))
        crowd_s, rest_s = time.monotonic() - begin, idle(port)
        after_crowd = held(server)
        rounds, parts = Counter[str](), []
        for _ in range(4):
            rounds += asyncio.run(wander(port, given["seconds"] / 4, 8))
            idle(port)
            parts.append(held(server))
    row = {
        "clients": clients,
        "crowd_statuses": dict(statuses),
        "crowd_s": round(crowd_s, 1),
        "idle_after_s": round(rest_s, 2),
        "start": start,
        "after_crowd": after_crowd,
        "soak_s": given["seconds"],
        "soak_requests": sum(rounds.values()),
        "soak_statuses": dict(rounds),
        "soak": parts,
    }
    click.echo(json.dumps(row, indent=2))
    if append:
        append_rows("serving_load", [row], 1, folder)


if __name__ == "__main__":
    main()
