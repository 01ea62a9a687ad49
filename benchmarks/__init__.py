# SPDX-License-Identifier: Apache-2.0
"""Measurements, each a command that prints one table and appends to docs/figures/NAME.json. Not installed."""
