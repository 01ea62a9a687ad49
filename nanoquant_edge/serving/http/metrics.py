# SPDX-License-Identifier: Apache-2.0
"""/metrics: what the server and its scheduler have done, in Prometheus' text format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from ...system.memory import resident_memory_mb
from ..requests import Outcome
from ..statistics import Statistics

__all__ = ["CONTENT_TYPE", "HttpCounters"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Upper bounds of the times' histograms, seconds.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: Paths that are told apart; a stranger's are counted together, or each would be kept forever.
_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/models", "/health", "/metrics", "/")
#: Field of `Statistics` or `Counters` -> (name, type, help).
_FIELDS = {
    "requests": ("texts_total", "counter", "Texts that were taken."),
    "finished": ("texts_finished_total", "counter", "Texts that were finished."),
    "cancelled": ("texts_cancelled_total", "counter", "Texts whose client went away."),
    "failed": ("texts_failed_total", "counter", "Texts that failed."),
    "refused": ("texts_refused_total", "counter", "Texts that were refused because the queue was full."),
    "waiting": ("texts_waiting", "gauge", "Texts in the queue."),
    "active": ("texts_active", "gauge", "Texts in a slot."),
    "slots": ("slots", "gauge", "Slots."),
    "prompt_tokens": ("prompt_tokens_total", "counter", "Tokens of all prompts."),
    "reused_tokens": ("prompt_tokens_reused_total", "counter", "Of these, not computed again."),
    "new_tokens": ("new_tokens_total", "counter", "Tokens that were written."),
    "drafted": ("draft_tokens_total", "counter", "Tokens that were guessed ahead."),
    "accepted": ("draft_tokens_accepted_total", "counter", "Of these, the ones that held."),
    "steps": ("steps_total", "counter", "Calls of the model."),
    "step_s": ("step_seconds_total", "counter", "Seconds in them."),
    "cache_tokens": ("cache_tokens", "gauge", "Tokens whose keys and values are held."),
    "cache_limit": ("cache_tokens_limit", "gauge", "Most of them."),
    "cache_bytes": ("cache_bytes", "gauge", "Memory allocated for them."),
    "evicted_tokens": ("cache_tokens_evicted_total", "counter", "Kept tokens that were given up."),
}


class Histogram:
    """Times, counted by size."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[next((i for i, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))] += 1
        self._sum += seconds

    def lines(self, name: str, about: str) -> Iterator[str]:
        """Lines of the exposition."""
        yield f"# HELP {name} {about}"
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class HttpCounters:
    """What the HTTP side counts; used on the event loop only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds, self._first = Histogram(), Histogram()

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request that was answered."""
        self._requests[path if path in _PATHS else "other", status] += 1
        self._seconds.add(seconds)

    def text(self, outcome: Outcome) -> None:
        """A text that was written."""
        if outcome.ids:
            self._first.add(outcome.ttft_s)

    def exposition(self, statistics: Statistics) -> str:
        """The page that Prometheus reads."""
        lines = ["# HELP nq_http_requests_total Requests by path and status.", "# TYPE nq_http_requests_total counter"]
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'nq_http_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += self._seconds.lines("nq_http_request_seconds", "Seconds until a request was answered.")
        lines += self._first.lines("nq_first_token_seconds", "Seconds until a text's first token.")
        values = {**asdict(statistics), **asdict(statistics.counters)}
        for field, (name, kind, about) in _FIELDS.items():
            lines += [f"# HELP nq_{name} {about}", f"# TYPE nq_{name} {kind}"]
            lines.append(f"nq_{name} {values[field]}")
        lines += ["# HELP nq_resident_bytes Memory of the process.", "# TYPE nq_resident_bytes gauge"]
        lines.append(f"nq_resident_bytes {round(resident_memory_mb() * 1e6)}")
        return "\n".join(lines) + "\n"
