# SPDX-License-Identifier: Apache-2.0
"""Readers of strangers' files under random and coverage-guided attack.

`seeds` makes honest files, `edits` turns bytes into damaged ones, `targets` are the readers, `entry` runs one of them
under atheris, `test_short` a few dozen cases of each by default, `python -m benchmarks.fuzz` the campaign.
"""
