# SPDX-License-Identifier: Apache-2.0
"""How much energy did that take? Jetson's rails, NVIDIA's and Intel's counters, whichever the machine has.

    with measure_power() as run:
        ...
    run.energy.joules

Absent sensors are named with the reason; nothing is estimated in their place.
"""

from __future__ import annotations

from .measure import Energy, PowerRun, measure_power
from .sources import PowerSource, find_sources

__all__ = ["Energy", "PowerRun", "PowerSource", "find_sources", "measure_power"]
