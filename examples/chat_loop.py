# SPDX-License-Identifier: Apache-2.0
"""Talk to a bundle in ten lines: `python examples/chat_loop.py bundle`. An empty line ends it."""

import sys

from nanoquant_edge import Generator, SamplingConfig

messages = []
with Generator.from_bundle(sys.argv[1], chat=True) as generator:
    while words := input("you: ").strip():
        messages.append({"role": "user", "content": words})
        answer = generator.stream(messages, max_new_tokens=200, sampling=SamplingConfig(temperature=0.7, top_p=0.9))
        for piece in answer:
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer.result.text})
