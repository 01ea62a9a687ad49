# SPDX-License-Identifier: Apache-2.0
"""Measuring a tiny bundle, the floor's arithmetic, and the verb."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from nanoquant_edge.bench import BenchOptions, MachineRates, floor_of, measure_bundle, profile_step
from nanoquant_edge.bench.chain import chain_model
from nanoquant_edge.bench.floor import count_work, machine_rates
from nanoquant_edge.cli.bench import command, merged
from nanoquant_edge.errors import NqEdgeError
from nanoquant_edge.formats.bundle import Bundle
from nanoquant_edge.formats.onnx_file import initializers
from nanoquant_edge.system.processors import usable_processors

QUICK = BenchOptions(lengths=(3, 7), new_tokens=4, repetitions=2, threads=1)


def test_a_measurement_says_what_was_measured(bundle: Path) -> None:
    report = measure_bundle(bundle, QUICK)
    assert [timing["prompt"] for timing in report["timings"]] == [3, 7]
    for timing in report["timings"]:
        for key in ("prefill_tps", "ttft_ms", "decode_tps"):
            middle, low, high = timing[key]
            assert 0 < low <= middle <= high
        slowest = timing["prefill_tps"][1] * timing["ttft_ms"][2]
        assert slowest == pytest.approx(timing["prompt"] * 1e3)
    memory = report["memory_mb"]
    assert 0 < memory["loaded"] <= memory["peak"] and memory["steady"] <= memory["peak"]
    assert report["kernel"] == "nanoquant" and report["load_s"] > 0
    assert report["file_mb"] == pytest.approx(sum(path.stat().st_size for path in bundle.glob("[!.]*")) / 1e6, rel=0.1)
    assert "energy" not in report
    json.dumps(report)


@pytest.mark.parametrize("changes", [{"lengths": ()}, {"lengths": (0,)}, {"new_tokens": 0}, {"repetitions": 0}])
def test_empty_measurements_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(NqEdgeError, match="above 0"):
        BenchOptions(**changes)


def test_a_prompt_beyond_the_context_is_refused(bundle: Path) -> None:
    with pytest.raises(NqEdgeError, match="do not fit the bundle's context") as caught:
        measure_bundle(bundle, BenchOptions(lengths=(10**6,)))
    assert caught.value.code == "NQ-OPTION"


def test_work_is_counted_in_the_file(bundle: Path) -> None:
    read, signs = count_work(Bundle.open(bundle))
    model = onnx.load(bundle / "model.onnx")
    sizes = {t.name: len(onnx.numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer}
    assert {name: size for name, (_, size) in initializers((bundle / "model.onnx").read_bytes()).items()} == sizes
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    packed = [shape for name, shape in shapes.items() if name.endswith("_packed")]
    assert len(packed) == 2 * Bundle.open(bundle).compressed_linears
    assert signs == sum(rows * words * 32 for rows, words in packed)
    assert read == sum(size for name, size in sizes.items() if not name.startswith("rotary."))


def test_the_floor_is_the_larger_term_and_the_nodes(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    read, signs = count_work(opened)
    slow_memory = floor_of(opened, MachineRates(1, 1e-3, 1e9, 2.0), nodes=10, context=5)
    slow_core = floor_of(opened, MachineRates(1, 1e9, 1e-3, 2.0), nodes=10, context=5)
    cache = 2 * opened.kv.layers * opened.kv.heads * opened.kv.head_dim * 5 * 4
    assert slow_memory.total_ms == pytest.approx((read + cache) / 1e3 + 0.02)
    assert slow_core.total_ms == pytest.approx(signs / 1e3 + 0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_rates_follow_from_the_clock_and_the_kernels(threads: int) -> None:
    ticks, signs = itertools.count(), iter([3e9, 7e9, 5e9, 1e9, 2e9])
    rates = machine_rates(threads, clock=lambda: next(ticks) / 1e3, sign_rate=lambda: next(signs))
    # Every copy and every run takes one tick, a millisecond; the copy reads and writes 48 MiB.
    assert rates.copy_gbs == pytest.approx(threads * 2 * 48 * 2**20 / 1e-3 / 1e9)
    assert (rates.threads, rates.sign_gops, rates.node_us) == (threads, pytest.approx(7 * threads), 0)


def test_a_longer_chain_takes_longer() -> None:
    rates = machine_rates(1)
    assert 0.01 < rates.node_us < 1000
    assert rates.copy_gbs > 0 < rates.sign_gops


@pytest.mark.parametrize("count", [1, 2, 200])
def test_the_chain_is_a_valid_model(count: int) -> None:
    model = onnx.load_from_string(chain_model(count))
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Neg"] * count
    onnxruntime.InferenceSession(chain_model(count), providers=["CPUExecutionProvider"])


def test_a_profile_names_every_node_that_runs(bundle: Path) -> None:
    profile = profile_step(bundle, QUICK, context=8)
    layers = Bundle.open(bundle).kv.layers
    assert profile.operators["NanoQuantLinearGroup"][0] == 2 * layers
    assert profile.operators["NanoQuantLinear"][0] == 2 * layers
    assert profile.operators["NanoQuantAttention"][0] == layers
    assert profile.nodes == sum(count for count, _ in profile.operators.values())


def test_the_verb_prints_and_writes_json(bundle: Path) -> None:
    arguments = [str(bundle), "--lengths", "3,7", "-n", "4", "-r", "2", "-t", "1"]
    shown = CliRunner().invoke(command, [*arguments, "--profile"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "floor" in shown.output and "NanoQuantAttention" in shown.output and "nanoquant (" in shown.output
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert found["isa"] and found["floor"]["share"] > 0 and found["profile"]["nodes"] > 10
    assert found["floor"]["context"] == 9


def test_threads_are_those_that_ran(bundle: Path) -> None:
    arguments = [str(bundle), "--lengths", "3", "-n", "2", "-r", "1", "-t", "999", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    usable = usable_processors()
    assert json.loads(done.stdout)["threads"] == json.loads(done.stdout)["floor"]["rates"]["threads"] == usable
    assert f"so {usable} threads run" in done.stderr


def test_power_says_what_it_read(bundle: Path) -> None:
    arguments = [str(bundle), "--lengths", "3", "-n", "2", "-r", "1", "-t", "1", "--power"]
    found = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    energy = found["energy"]
    assert energy["seconds"] > 0 and (energy["joules"] is not None or energy["absent"])
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "energy" in shown.output


def test_two_bundles_are_compared(bundle: Path) -> None:
    arguments = [str(bundle), "--against", str(bundle), "--lengths", "3", "-n", "2", "-r", "1", "-t", "1", "--json"]
    found = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout)
    assert len(found["bundles"]) == 2 and found["ratios"][0]["prompt"] == 3
    assert found["ratios"][0]["decode_tps"] > 0


def test_rounds_are_merged() -> None:
    def report(scale: float) -> dict[str, object]:
        figures = {key: [2 * scale, scale, 3 * scale] for key in ("prefill_tps", "ttft_ms", "decode_tps")}
        return {"bundle": "b", "timings": [{"prompt": 5, **figures}]}

    (timing,) = merged([report(1.0), report(3.0)])["timings"]
    assert timing["decode_tps"] == [4.0, 1.0, 9.0]


@pytest.mark.parametrize("lengths", ["", "a", "3,,4"])
def test_bad_lengths_are_refused(lengths: str, bundle: Path) -> None:
    with pytest.raises(NqEdgeError, match="no list of whole numbers"):
        CliRunner().invoke(command, [str(bundle), "--lengths", lengths], catch_exceptions=False)
