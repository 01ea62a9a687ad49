# SPDX-License-Identifier: Apache-2.0
"""The server against llama-cpp-python's, on the same processor and in turns: total tokens a second and first tokens.

    python -m benchmarks.serving BUNDLE --gguf MODEL.gguf --peer PYTHON --append

PYTHON is that of an environment with llama-cpp-python[server]. Clients send plain completions of prompts of their own
at temperature 0, with the end of the text forbidden, so that every answer has the same number of tokens; they stream.
What the server
adds is measured besides: the same texts, with one client and without a server, in turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import append_rows, figures_option, listed
from nanoquant_edge.runtimes import Generator, OpenOptions

#: Words of which prompts are made; each client's are in another order, so that no prefix is shared.
_TEXT = "the river runs past an old mill where nobody lives and the road climbs slowly to a village on the hill"


@dataclass
class Answer:
    """What one client saw: seconds from its request to the first and the last piece, and how many came."""

    first: float = 0.0
    last: float = 0.0
    pieces: int = 0


@dataclass
class Server:
    """A running server.

    Attributes:
        name: in the table.
        port: of 127.0.0.1.
        eos: id of the token that may not come.
        process: the program.
        rates, firsts, used: total tokens a second, seconds to first tokens, and processor seconds a token, by number of
            clients. The last counts what other programs took less.
    """

    name: str
    port: int
    eos: int
    process: subprocess.Popen[bytes]
    rates: dict[int, list[float]] = field(default_factory=dict)
    firsts: dict[int, list[float]] = field(default_factory=dict)
    used: dict[int, list[float]] = field(default_factory=dict)


def prompt(number: int, words: int) -> str:
    """A text of about one and a quarter tokens a word."""
    known = _TEXT.split()
    return f"Story {number}: " + " ".join(known[(7 * number + i * (number % 5 + 1)) % len(known)] for i in range(words))


async def ask(port: int, body: dict[str, Any]) -> Answer:
    """Send a streaming request over a connection of its own, and note when pieces come."""
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + data)
    found = Answer()
    async for line in reader:
        if line.startswith(b"data: {"):
            found.last = time.perf_counter() - begin
            found.first = found.first or found.last
            found.pieces += 1
    writer.close()
    assert found.pieces, "no answer"
    return found


async def burst(server: Server, clients: int, words: int, tokens: int, serial: int) -> list[Answer]:
    """All clients at once."""
    bodies = [
        {
            "prompt": prompt(serial + client, words),
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "logit_bias": {str(server.eos): -100},
        }
        for client in range(clients)
    ]
    return list(await asyncio.gather(*(ask(server.port, body) for body in bodies)))


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(name: str, command: list[str], port: int, eos: int) -> Iterator[Server]:
    """A server, once it answers."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models"):
                break
            if process.poll() is not None:
                raise click.ClickException(f"{name} ended with status {process.returncode}")
            time.sleep(0.1)
        yield Server(name, port, eos, process)
    finally:
        process.terminate()
        process.wait(60)


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a program, MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


def processor_s(process: subprocess.Popen[bytes]) -> float:
    """Processor time of a program so far, seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Alone:
    """The same prompts in this process, without a server.

    Args:
        bundle: the model.
        threads: that compute; they wait as the server's do.
    """

    def __init__(self, bundle: Path, threads: int) -> None:
        self._generator = Generator.open(bundle, OpenOptions(device="cpu", threads=threads, spin=False))
        self._generator.eos_ids = frozenset()

    def write(self, text: str, tokens: int) -> tuple[float, float]:
        """Seconds, and processor seconds, of a text."""
        begin, worked = time.perf_counter(), time.process_time()
        self._generator.generate(text, max_new_tokens=tokens)
        return time.perf_counter() - begin, time.process_time() - worked


def overhead(server: Server, alone: Alone, *, words: int, tokens: int, rounds: int) -> dict[str, Any]:
    """What the server adds to a text, in turns with the same text without it."""
    walls, costs = [], []
    for number in range(rounds + 1):
        begin, worked = time.perf_counter(), processor_s(server.process)
        asyncio.run(burst(server, 1, words, tokens, 5000 + number))
        took, cost = time.perf_counter() - begin, processor_s(server.process) - worked
        wall, used = alone.write(prompt(5000 + number, words), tokens)
        if number:
            walls.append(took / wall)
            costs.append(cost / used)
    return {
        "server": "nq-edge serve over the same texts without it, one client",
        "new_tokens": tokens,
        "time_ratio": round(statistics.median(walls), 3),
        "processor_ratio": round(statistics.median(costs), 3),
        "processor_spread": [round(min(costs), 3), round(max(costs), 3)],
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--gguf", type=click.Path(path_type=Path, exists=True), help="The peer's model.")
@click.option("--peer", help="Python of an environment with llama-cpp-python[server].")
@click.option("--clients", default="1,4,16", show_default=True, callback=listed(int), help="At once.")
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--words", type=int, default=64, show_default=True, help="Words of a prompt.")
@click.option("--tokens", type=int, default=64, show_default=True, help="New tokens of an answer.")
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--eos", type=int, default=2, show_default=True, help="Token that ends a text.")
@click.option("--overhead/--no-overhead", default=True, help="Measure what the server adds to a text, too.")
@click.option("--append", is_flag=True, help="Add the rows to docs/figures/serving.json.")
@figures_option
def main(bundle: Path, gguf: Path | None, peer: str | None, append: bool, folder: Path, **given: Any) -> None:
    """Measure."""
    clients, rounds, words, tokens = given["clients"], given["rounds"], given["words"], given["tokens"]
    threads, eos = given["threads"], given["eos"]
    ports = free_port(), free_port()
    ours = [sys.executable, "-m", "nanoquant_edge", "serve", str(bundle), "--device", "cpu", "-t", str(threads)]
    ours += ["--port", str(ports[0]), "--slots", str(max(clients)), "--draft", "none", "--max-context", "2048"]
    theirs = [str(peer), "-m", "llama_cpp.server", "--model", str(gguf), "--n_threads", str(threads)]
    theirs += ["--n_threads_batch", str(threads), "--n_ctx", "2048", "--port", str(ports[1])]
    theirs += ["--interrupt_requests", "False", "--verbose", "False"]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running("nq-edge serve", ours, ports[0], eos))]
        if gguf and peer:
            servers.append(stack.enter_context(running("llama-cpp-python", theirs, ports[1], eos)))
        for server in servers:
            asyncio.run(burst(server, 1, words, 4, 10_000))
        serial = 0
        for _ in range(rounds):
            for number in clients:
                for server in servers:
                    serial += number
                    begin, worked = time.perf_counter(), processor_s(server.process)
                    answers = asyncio.run(burst(server, number, words, tokens, serial))
                    took = time.perf_counter() - begin
                    worked = processor_s(server.process) - worked
                    server.used.setdefault(number, []).append(worked / (number * tokens))
                    server.rates.setdefault(number, []).append(number * tokens / took)
                    server.firsts.setdefault(number, []).extend(answer.first for answer in answers)
        added = None
        if given["overhead"]:
            added = overhead(servers[0], Alone(bundle, threads), words=words, tokens=4 * tokens, rounds=2 * rounds)
        rows = [
            {
                "server": server.name,
                "model": (bundle if server is servers[0] else gguf).name,  # type: ignore[union-attr]
                "clients": number,
                "threads": threads,
                "prompt_words": words,
                "new_tokens": tokens,
                "total_tps": round(statistics.median(server.rates[number]), 1),
                "spread_tps": [round(min(server.rates[number]), 1), round(max(server.rates[number]), 1)],
                "ttft_ms": round(1000 * statistics.median(server.firsts[number]), 1),
                "ttft_worst_ms": round(1000 * max(server.firsts[number]), 1),
                "processor_ms_a_token": round(1000 * statistics.median(server.used[number]), 2),
                "resident_mb": round(resident_mb(server.process), 1),
            }
            for server in servers
            for number in clients
        ]
    for row in rows:
        times = f"first token after {row['ttft_ms']:>7} ms (worst {row['ttft_worst_ms']})"
        costs = f"{row['processor_ms_a_token']} ms of processor a token, {row['resident_mb']} MB"
        click.echo(f"{row['server']:<18}{row['clients']:>3} clients: {row['total_tps']:>6} tokens/s, {times}, {costs}")
    if added is not None:
        rows.append(added)
        click.echo(
            f"beside the same texts without a server: {added['time_ratio']} times the time, "
            f"{added['processor_ratio']} times the processor time {added['processor_spread']}"
        )
    if append:
        append_rows("serving", rows, rounds, folder)


if __name__ == "__main__":
    main()
