# SPDX-License-Identifier: Apache-2.0
"""Many texts at once on one model: a scheduler over `runtimes.slots`, with one thread that computes.

    slots = open_slots(bundle, OpenOptions(threads=2), count=4)
    with Scheduler(slots, tokenizer, eos_ids=eos_ids, options=SchedulerOptions(queue=64)) as scheduler:
        with scheduler.submit(Request(ids=ids, max_new_tokens=64, stop=["\\n\\n"])) as answer:
            for piece in answer:            # a Piece: text to show, and the tokens of this step
                print(piece.text, end="")
        answer.outcome                      # an Outcome: text, ids, finish_reason, counts and times

`submit` takes a request from any thread and returns at once; it raises `BusyError` (NQ-BUSY, with `retry_after_s`) when
the queue is full, and NQ-PROMPT when the prompt cannot fit. An `Answer` may be read from any thread; `close` (or
leaving its `with` block) ends it within a token. An event loop passes `notify` and takes what came with `poll`:

    event = asyncio.Event()
    answer = scheduler.submit(request, notify=lambda: loop.call_soon_threadsafe(event.set))
    while not answer.finished: await event.wait(); event.clear(); pieces = answer.poll()
    answer.poll()                           # and once more, for what came with the end

`scheduler.statistics()` is for /metrics; `scheduler.close(drain=True)` finishes what was taken and takes no more.
Constrained output is a `TokenMask` in the request.
"""

from __future__ import annotations

from .answer import Answer
from .options import SchedulerOptions
from .requests import MAX_LOGPROBS, BusyError, Outcome, Piece, Request, TokenChoice, TokenMask
from .scheduler import Scheduler
from .statistics import Counters, Statistics

__all__ = [
    "MAX_LOGPROBS",
    "Answer",
    "BusyError",
    "Counters",
    "Outcome",
    "Piece",
    "Request",
    "Scheduler",
    "SchedulerOptions",
    "Statistics",
    "TokenChoice",
    "TokenMask",
]
