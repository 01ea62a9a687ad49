# SPDX-License-Identifier: Apache-2.0
"""Where power is read: INA3221 monitors in sysfs, tegrastats, NVML, RAPL.

A source gives rails either as watts now, which are sampled, or as joules counted since some moment, which are exact.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .tegrastats import parse_line

__all__ = ["InaSource", "NvmlSource", "PowerSource", "RaplSource", "TegrastatsSource", "find_sources"]


class PowerSource(Protocol):
    """A sensor.

    Attributes:
        name: "INA3221", "tegrastats", "NVML" or "RAPL".
        counts: `read` gives joules counted so far; otherwise watts now.
    """

    name: str
    counts: bool

    def read(self) -> dict[str, float]:
        """Rail -> joules or watts."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class InaSource:
    """INA3221 power monitors (Linux Documentation/hwmon/ina3221): millivolts times milliamperes a channel."""

    name, counts = "INA3221", False

    def __init__(self, root: Path) -> None:
        self._channels: dict[str, tuple[Path, Path]] = {}
        for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            if _read(chip / "name") != "ina3221":
                continue
            for index in (1, 2, 3):
                label, volts = _read(chip / f"in{index}_label"), chip / f"in{index}_input"
                amperes = chip / f"curr{index}_input"
                if label and label != "NC" and _number(volts) is not None and _number(amperes) is not None:
                    self._channels[label] = (volts, amperes)
        if not self._channels:
            raise LookupError("no ina3221 monitor in /sys/class/hwmon")

    def read(self) -> dict[str, float]:
        """Rail -> watts now."""
        found = {}
        for label, (volts, amperes) in self._channels.items():
            millivolts, milliamperes = _number(volts), _number(amperes)
            if millivolts is not None and milliamperes is not None:
                found[label] = millivolts * milliamperes / 1e6
        return found

    def close(self) -> None:
        """Nothing is held."""


class TegrastatsSource:
    """The board's own program, for boards whose monitors sysfs does not show."""

    name, counts = "tegrastats", False

    def __init__(self, program: str | None = None) -> None:
        found = program or shutil.which("tegrastats")
        if found is None:
            raise LookupError("tegrastats is not installed")
        self._rails: dict[str, float] = {}
        self._process = subprocess.Popen([found, "--interval", "100"], stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if rails := parse_line(line):
                self._rails = rails

    def read(self) -> dict[str, float]:
        """Rail -> watts of the last line; empty before the first one."""
        return dict(self._rails)

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        self._process.wait(timeout=5)
        self._thread.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()


class RaplSource:
    """Running energy counters of x86 processors (Linux Documentation/power/powercap): microjoules that wrap around."""

    name, counts = "RAPL", True

    def __init__(self, root: Path) -> None:
        self._zones: dict[str, tuple[Path, int]] = {}
        self._last: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        locked = False
        for zone in sorted((root / "sys/class/powercap").glob("*-rapl:[0-9]")):
            counter, span = zone / "energy_uj", _number(zone / "max_energy_range_uj")
            if _number(counter) is None:
                locked = locked or counter.exists()
            elif span is not None:
                self._zones[_read(zone / "name") or zone.name] = (counter, int(span))
        if not self._zones:
            reason = "RAPL counters are readable by root only" if locked else "no RAPL counters in /sys/class/powercap"
            raise LookupError(reason)

    def read(self) -> dict[str, float]:
        """Zone -> joules."""
        found = {}
        for name, (path, span) in self._zones.items():
            value = _number(path)
            if value is None:
                continue
            if value < self._last.get(name, 0):
                self._turns[name] = self._turns.get(name, 0) + 1
            self._last[name] = int(value)
            found[name] = (value + self._turns.get(name, 0) * span) / 1e6
        return found

    def close(self) -> None:
        """Nothing is held."""


class NvmlSource:
    """NVIDIA GPUs: millijoules since the driver was loaded (Volta and newer), for all GPUs of the machine."""

    name, counts = "NVML", True

    def __init__(self, nvml: Any = None) -> None:
        if nvml is None:
            try:
                import pynvml

                nvml = pynvml
            except ImportError:
                raise LookupError("the package nvidia-ml-py is not installed") from None
        self._nvml = nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            raise LookupError("no NVIDIA driver answers") from None
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            self._gpus = {f"GPU {index}": handle for index, handle in enumerate(handles)}
            if not self.read():
                raise LookupError("no GPU counts its energy")
        except (nvml.NVMLError, LookupError) as error:
            self.close()
            raise LookupError(str(error)) from None

    def read(self) -> dict[str, float]:
        """GPU -> joules."""
        found = {}
        for name, handle in self._gpus.items():
            with contextlib.suppress(self._nvml.NVMLError):
                found[name] = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return found

    def close(self) -> None:
        """Give the library back."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def find_sources(root: Path = Path("/")) -> tuple[list[PowerSource], dict[str, str]]:
    """Sensors of this machine, and name -> reason of those that it lacks.

    On a Jetson its monitors, or tegrastats where sysfs does not show them; elsewhere GPUs' and processors' counters.
    """
    found: list[PowerSource] = []
    absent: dict[str, str] = {}
    makers: dict[str, Callable[[], PowerSource]] = {
        "INA3221": lambda: InaSource(root),
        "tegrastats": TegrastatsSource,
        "NVML": NvmlSource,
        "RAPL": lambda: RaplSource(root),
    }
    for name, make in makers.items():
        if name == "tegrastats" and found:
            continue
        try:
            found.append(make())
        except LookupError as error:
            absent[name] = str(error)
    return found, absent


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_read(path))
    except ValueError:
        return None
