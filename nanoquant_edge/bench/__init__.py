# SPDX-License-Identifier: Apache-2.0
"""What a bundle does on this machine, and what it could do at most.

Figures come from the real backend: prefill and decode at several lengths, loading, memory. The floor comes from the
bundle's own bytes and operations and from rates that are measured beside it.
"""

from __future__ import annotations

from .floor import Floor, MachineRates, floor_of, machine_rates
from .measure import BenchOptions, Timing, measure_bundle
from .profile import Profile, profile_step

__all__ = [
    "BenchOptions",
    "Floor",
    "MachineRates",
    "Profile",
    "Timing",
    "floor_of",
    "machine_rates",
    "measure_bundle",
    "profile_step",
]
