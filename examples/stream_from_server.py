# SPDX-License-Identifier: Apache-2.0
"""Stream an answer from `nq-edge serve` with the package `openai`.

nq-edge serve bundle &
python examples/stream_from_server.py "What is the capital of France?"
"""

import os
import sys

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
name = client.models.list().data[0].id
messages = [{"role": "user", "content": sys.argv[1]}]
for event in client.chat.completions.create(model=name, messages=messages, max_completion_tokens=32, stream=True):
    if event.choices and event.choices[0].delta.content:
        print(event.choices[0].delta.content, end="", flush=True)
print()
