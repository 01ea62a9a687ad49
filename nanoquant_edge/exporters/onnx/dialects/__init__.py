# SPDX-License-Identifier: Apache-2.0
"""How a target says attention, rotary embedding, norm and cache: one dialect a target."""
