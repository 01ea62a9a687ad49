# SPDX-License-Identifier: Apache-2.0
"""Power readers on recorded lines and file trees of the documented shapes; sensors that are absent say so."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from nanoquant_edge.devices.power import find_sources, measure_power
from nanoquant_edge.devices.power.sources import InaSource, NvmlSource, RaplSource, TegrastatsSource
from nanoquant_edge.devices.power.tegrastats import parse_line, total_watts

ORIN_NANO = (
    "12-18-2024 10:21:33 RAM 2461/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [3%@729,0%@729,off,off,1%@729,"
    "0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] cpu@46.7C soc2@45.9C tj@47.2C VDD_IN 4555mW/4531mW "
    "VDD_CPU_GPU_CV 521mW/520mW VDD_SOC 1443mW/1440mW"
)
AGX_ORIN = (
    "RAM 3211/30536MB (lfb 5918x4MB) SWAP 0/15268MB (cached 0MB) CPU [1%@1190,0%@1190] GR3D_FREQ 0% "
    "GPU@38.2C VDD_GPU_SOC 2804mW/2804mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3228mW/3228mW NC 0mW/0mW"
)
TX2 = (
    "RAM 977/7846MB (lfb 1509x4MB) CPU [85%@2035,67%@2033] EMC_FREQ 2%@1866 GR3D_FREQ 0%@1300 APE 150 BCPU@38.5C "
    "thermal@37.3C VDD_IN 7358/7453 VDD_CPU 3353/3429 VDD_GPU 228/228 VDD_SOC 990/990 VDD_WIFI 0/0 VDD_DDR 1318/1308"
)


def test_tegrastats_lines() -> None:
    assert parse_line(ORIN_NANO) == {"VDD_IN": 4.555, "VDD_CPU_GPU_CV": 0.521, "VDD_SOC": 1.443}
    assert total_watts(parse_line(ORIN_NANO)) == 4.555
    assert total_watts(parse_line(AGX_ORIN)) == pytest.approx(2.804 + 0.4 + 3.228)
    assert parse_line(TX2)["VDD_DDR"] == 1.318 and total_watts(parse_line(TX2)) == 7.358
    for line in ("", "RAM 977/7846MB (lfb 1509x4MB) SWAP 0/1978MB", "VDD_IN mW/mW", "VDD_IN 99999999999mW/1mW"):
        assert parse_line(line) == {} and total_watts({}) is None


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def ina(root: Path) -> Path:
    chip = "sys/class/hwmon/hwmon3"
    rails = {1: ("VDD_IN", 5000, 900), 2: ("VDD_CPU_GPU_CV", 5000, 120), 3: ("NC", 0, 0)}
    files = {f"{chip}/name": "ina3221", "sys/class/hwmon/hwmon0/name": "cpu_thermal"}
    for index, (label, volts, amperes) in rails.items():
        files[f"{chip}/in{index}_label"] = label
        files[f"{chip}/in{index}_input"], files[f"{chip}/curr{index}_input"] = str(volts), str(amperes)
    return put(root, files)


def test_ina_monitors(tmp_path: Path) -> None:
    source = InaSource(ina(tmp_path))
    assert source.read() == {"VDD_IN": pytest.approx(4.5), "VDD_CPU_GPU_CV": pytest.approx(0.6)}
    (tmp_path / "sys/class/hwmon/hwmon3/curr1_input").write_text("garbage")
    assert list(source.read()) == ["VDD_CPU_GPU_CV"]


def test_sampled_power_is_integrated(tmp_path: Path) -> None:
    ticks = iter([0.0, 0.0, 2.0, 2.0, *[2.0] * 10])
    with measure_power([InaSource(ina(tmp_path))], clock=lambda: next(ticks)) as run:
        pass
    energy = run.energy
    assert energy is not None and energy.joules == pytest.approx(9.0) and energy.watts == pytest.approx(4.5)
    assert energy.sources == ("INA3221",) and energy.per_token(90) == pytest.approx(0.1) and energy.samples == 2
    assert energy.to_dict(90)["joules_per_token"] == pytest.approx(0.1)


def test_rapl_counters_and_their_wrap(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    put(
        tmp_path,
        {f"{zone}/name": "package-0", f"{zone}/energy_uj": "9000000", f"{zone}/max_energy_range_uj": "10000000"},
    )
    put(
        tmp_path, {"sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:0:0/energy_uj": "1"}
    )
    with measure_power([RaplSource(tmp_path)]) as run:
        (tmp_path / zone / "energy_uj").write_text("2000000")
    assert run.energy is not None and run.energy.joules == pytest.approx(3.0) and run.energy.sources == ("RAPL",)
    assert run.energy.rails == {"package-0": pytest.approx(3.0)}


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self, joules: list[float]) -> None:
        self.joules, self.open = joules, False

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: int) -> int:
        if not self.joules:
            raise self.NVMLError("Not Supported")
        return int(1000 * (self.joules.pop(0) if len(self.joules) > 1 else self.joules[0]))


def test_gpu_counters() -> None:
    nvml = FakeNvml([5.0, 5.0, 8.5])
    with measure_power([NvmlSource(nvml)]) as run:
        assert nvml.open
    assert run.energy is not None and run.energy.rails == {"GPU 0": pytest.approx(3.5)} and not nvml.open
    nvml = FakeNvml([])
    with pytest.raises(LookupError, match="no GPU counts its energy"):
        NvmlSource(nvml)
    assert not nvml.open


def test_the_program_is_followed_and_ended(tmp_path: Path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\nwhile :; do echo '{ORIN_NANO}'; sleep 0.05; done\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    source = TegrastatsSource(str(program))
    for _ in range(100):
        if source.read():
            break
        time.sleep(0.05)
    assert source.read()["VDD_IN"] == 4.555
    source.close()
    assert source._process.returncode is not None


def test_absent_sensors_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found, absent = find_sources(tmp_path)
    for source in found:
        source.close()  # a GPU of the machine that runs the tests
    assert absent["INA3221"] == "no ina3221 monitor in /sys/class/hwmon"
    assert absent["tegrastats"] == "tegrastats is not installed"
    assert absent["RAPL"] == "no RAPL counters in /sys/class/powercap"
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    (zone / "energy_uj").mkdir(parents=True)  # exists, and cannot be read
    with pytest.raises(LookupError, match="readable by root only"):
        RaplSource(tmp_path)
    with measure_power([]) as run:
        pass
    assert run.energy is not None and run.energy.joules is None and run.energy.watts is None
    assert run.energy.per_token(3) is None and run.energy.sources == ()
