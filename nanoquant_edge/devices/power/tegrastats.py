# SPDX-License-Identifier: Apache-2.0
"""Jetson's `tegrastats`: one line an interval, with the power of each rail now and on average.

Shape of the entries (Jetson Linux Developer Guide, "tegrastats Utility"): `VDD_IN 4555mW/4531mW` from release 34 on,
`VDD_IN 7358/7453` or `POM_5V_IN 2410/2410` in milliwatts before.
"""

from __future__ import annotations

import re

__all__ = ["parse_line", "total_watts"]

_RAIL = re.compile(r"(?<!\S)((?:VDD|VIN|POM)[A-Z0-9_]*) (\d{1,7})(?:mW)?/(\d{1,7})(?:mW)?(?!\S)")
#: Rails that carry everything else: modules' input, as named on Orin and Xavier NX, on Thor, and on older boards.
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN")


def parse_line(line: str) -> dict[str, float]:
    """Rail -> watts now; empty for a line without power entries."""
    return {name: int(now) / 1e3 for name, now, _average in _RAIL.findall(line)}


def total_watts(rails: dict[str, float]) -> float | None:
    """The module's input where it is a rail, the sum of rails otherwise (AGX boards); None without rails."""
    if not rails:
        return None
    return next((rails[name] for name in _WHOLE if name in rails), sum(rails.values()))
