# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint with transformers: `python examples/use_in_transformers.py checkpoint "Once upon a time"`."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import nanoquant_edge.hf  # teaches transformers the format; without it, loading is refused on purpose  # noqa: F401

folder, prompt = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=16, do_sample=False)[0], skip_special_tokens=True))
