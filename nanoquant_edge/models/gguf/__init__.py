# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file says: its configuration, tensors and tokenizer, every key and tensor used or the file refused.

The rules are those that llama.cpp reads the files by: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""
