# SPDX-License-Identifier: Apache-2.0
"""`nq-edge bench`: speed, memory and floor of a bundle on this machine, and against a second bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NqEdgeError, printable
from ..system.children import run_python
from .arguments import InputPath
from .opening import opening_options
from .paths import check_kind
from .streams import echo_json, note

if TYPE_CHECKING:
    from ..bench import BenchOptions
    from ..runtimes import Target

__all__ = ["command", "merged"]

#: Rounds of two bundles that take turns.
_ROUNDS = 2


def _numbers(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f"{option.opts[0]} {text!r} is no list of whole numbers such as 32,256."
        raise NqEdgeError("NQ-OPTION", message) from None


@click.command("bench")
@click.argument("model", type=InputPath())
@click.option("--against", type=InputPath(), help="Measure a second one in turn with the first.")
@click.option("--lengths", default="32,256", show_default=True, callback=_numbers, help="Prompt lengths, tokens.")
@click.option("-n", "--new-tokens", type=int, default=64, show_default=True, help="Tokens decoded after a prompt.")
@click.option("--batch", "batches", callback=_numbers, help="Also decode so many texts at once, such as 1,4,16.")
@click.option("-r", "--repetitions", type=int, default=5, show_default=True, help="Of every length.")
@opening_options
@click.option("--power", is_flag=True, help="Read the machine's energy counters, if it has any.")
@click.option("--profile", is_flag=True, help="Show where a decoded token's time goes.")
@click.option("--record", is_flag=True, help="Store the figures in BUNDLE's manifest, for `validate --report`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: Path, against: Path | None, *, profile: bool, record: bool, as_json: bool, **options: Any) -> None:
    """Measure MODEL, a checkpoint or a bundle: prefill, decode, first token, loading, memory, and this machine's floor.

    Prompts are random tokens, decoding is greedy; figures are medians with the least and the most. The floor is
    max(bytes / bandwidth, operations / rate) and the cost of ONNX Runtime's nodes, from rates measured beside it.
    """
    from ..bench import BenchOptions
    from ..runtimes import Target

    chosen = BenchOptions(**options)
    for path in (model, *([] if against is None else [against])):
        check_kind(path, "bundle", "engine", "checkpoint", code="NQ-BUNDLE")
    target = Target.of(model, chosen, verify=False, tell=note)
    for remark in target.remarks(chosen):
        note(remark)
    # Lines instead of a bar, which would take processor time from what is measured.
    say = (lambda _text: None) if as_json else (lambda text: click.echo(f"bench: {text}", err=True))
    if record and against is not None:
        raise NqEdgeError("NQ-OPTION", "--record stores the figures of one bundle.", "Leave out --against.")
    if against is None:
        report = _measure(model, chosen, say, target)
        if record:
            _record(target, report)
        if as_json:
            echo_json(report, indent=2)
        else:
            _print(report, profile)
        return
    reports = _in_turn([model, against], chosen, say)
    ratios = [
        {
            "prompt": one["prompt"],
            **{key: one[key][0] / other[key][0] for key in ("prefill_tps", "decode_tps")},
        }
        for one, other in zip(*(report["timings"] for report in reports), strict=True)
    ]
    if as_json:
        echo_json({"bundles": reports, "ratios": ratios}, indent=2)
        return
    for report in reports:
        _print(report, profile)
    for ratio in ratios:
        click.echo(
            f"prompt {ratio['prompt']}: the first prefills {ratio['prefill_tps']:.2f} and decodes "
            f"{ratio['decode_tps']:.2f} times as fast as the second"
        )


def _measure(folder: Path, options: BenchOptions, say: Callable[[str], None], target: Target) -> dict[str, Any]:
    """Times first: what the floor's own measurements hold must not count as the bundle's memory."""
    from ..bench import floor_of, machine_rates, measure_bundle, profile_step
    from ..formats.backends import ONNXRUNTIME

    say(f"prefill and decode, {options.repetitions} runs of {len(options.lengths)} prompt lengths")
    report = measure_bundle(folder, options, target)
    bundle = target.bundle
    on_processor = bundle is not None and not target.on_gpu and options.provider == "cpu"
    if not on_processor or bundle is None or bundle.backend != ONNXRUNTIME or report["kernel"] != "nanoquant":
        return report
    from ..system.native import ort_library_info
    from ..system.processors import default_threads

    say("rates of this machine, and where a token's time goes")
    report["isa"] = ort_library_info()["isa"]
    rates = machine_rates(options.running_threads or default_threads())
    context = max(options.lengths) + options.new_tokens // 2
    steps = profile_step(bundle.folder, options, context=context)
    floor = floor_of(bundle, rates, nodes=steps.nodes, context=context)
    decoded = 1e3 / report["timings"][options.lengths.index(max(options.lengths))]["decode_tps"][0]
    report["floor"] = {**floor.to_dict(), "context": context, "share": floor.total_ms / decoded, "rates": vars(rates)}
    report["profile"] = steps.to_dict()
    return report


def _record(target: Target, report: dict[str, Any]) -> None:
    """Put the figures into the manifest, with the day and the device's name in `nq-edge devices`."""
    from dataclasses import replace
    from datetime import date

    from ..devices import describe_machine, recognise

    found, bundle = recognise(describe_machine()), target.bundle
    if bundle is None:
        raise NqEdgeError("NQ-OPTION", "--record stores figures in a bundle, and this is a checkpoint.", "Drop it.")
    entry = {**report, "date": date.today().isoformat(), "device": found.name if found else ""}
    replace(bundle, measured={**bundle.measured, "bench": entry}).write()


def _in_turn(folders: list[Path], options: BenchOptions, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Both bundles in processes of their own that take turns, so that what else the machine does falls on both."""
    arguments = ["--lengths", ",".join(map(str, options.lengths)), "--provider", options.provider, "--json"]
    arguments += ["--device", options.device, "--cache-bits", str(options.cache_bits)]
    for name in ("dtype", "table"):
        arguments += [] if getattr(options, name) is None else [f"--{name}", getattr(options, name)]
    arguments += ["-n", str(options.new_tokens), "-r", str(options.repetitions)]
    arguments += [] if options.threads is None else ["-t", str(options.threads)]
    flags = {
        "--no-spin": not options.spin,
        "--power": options.power,
        "--allow-portable": options.allow_portable,
        "--trust-bundle-code": options.trust_bundle_code,
    }
    arguments += [flag for flag, wanted in flags.items() if wanted]
    found: list[list[dict[str, Any]]] = [[] for _ in folders]
    for turn in range(_ROUNDS):
        for index, folder in enumerate(folders):
            say(f"round {turn + 1} of {_ROUNDS}: {printable(str(folder))}")
            done = run_python("nanoquant_edge", "bench", folder.absolute(), *arguments, capture_output=True)
            if done.returncode != 0:
                click.echo(done.stderr.rstrip(), err=True)
                sys.exit(done.returncode)
            found[index].append({**json.loads(done.stdout), "bundle": str(folder)})
    return [merged(reports) for reports in found]


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The last report with timings over all: mean of the medians, least and most of all."""
    timings = []
    for rounds in zip(*(report["timings"] for report in reports), strict=True):
        entry: dict[str, Any] = {"prompt": rounds[0]["prompt"]}
        for key in ("prefill_tps", "ttft_ms", "decode_tps"):
            values = [timing[key] for timing in rounds]
            middle = sum(value[0] for value in values) / len(values)
            entry[key] = [middle, min(value[1] for value in values), max(value[2] for value in values)]
        timings.append(entry)
    return {**reports[-1], "timings": timings}


def _print(report: dict[str, Any], profile: bool) -> None:
    from rich.bar import Bar
    from rich.table import Table

    from ..system.terminal import plain, terminal

    table = Table(title=plain(report["bundle"]))
    for heading in ("prompt", "prefill, tokens/s", "first token, ms", "decode, tokens/s"):
        table.add_column(heading, justify="right")
    fastest = max(timing["decode_tps"][0] for timing in report["timings"])
    drawn = terminal().is_terminal and len(report["timings"]) > 1
    if drawn:
        table.add_column("decode against context")
    for timing in report["timings"]:
        cells = (timing[key] for key in ("prefill_tps", "ttft_ms", "decode_tps"))
        row: list[Any] = [f"{middle:.1f} ({low:.1f}–{high:.1f})" for middle, low, high in cells]
        bar = [Bar(fastest, 0, timing["decode_tps"][0], width=20)] if drawn else []
        table.add_row(str(timing["prompt"]), *row, *bar)
    memory, threads = report["memory_mb"], report["threads"] or "default"
    terminal().print(table)
    click.echo(
        f"load {report['load_s']:.2f} s · memory {memory['loaded']:.0f} MB loaded, {memory['steady']:.0f} steady, "
        f"{memory['peak']:.0f} peak · files {report['file_mb']:.1f} MB · threads {threads} · kernel {report['kernel']}"
        + (f" ({report['isa']})" if "isa" in report else "")
        + (f" · GPU memory {report['gpu_mb']:.0f} MB" if "gpu_mb" in report else "")
    )
    if report.get("batches"):
        _print_batches(report["batches"])
    if floor := report.get("floor"):
        rates, count = floor["rates"], report["profile"]["nodes"]
        read = floor["weight_mb"] + floor["cache_mb"]
        click.echo(
            f"floor {floor['total_ms']:.2f} ms a token at {floor['context']} tokens of context; this run reaches "
            f"{floor['share']:.0%} of it: max({read:.1f} MB / {rates['copy_gbs']:.1f} GB/s = {floor['bytes_ms']:.2f}, "
            f"{floor['sign_adds'] / 1e6:.0f} M / {rates['sign_gops']:.0f} G/s = {floor['operations_ms']:.2f}) + "
            f"{count} nodes x {rates['node_us']:.2f} us = {floor['nodes_ms']:.2f}"
        )
    if energy := report.get("energy"):
        click.echo(
            f"energy {energy['joules_per_token']:.3f} J a token ({', '.join(energy['sources'])})"
            if energy.get("joules_per_token") is not None
            else f"energy: no sensor ({'; '.join(f'{name}: {why}' for name, why in energy['absent'].items())})"
        )
    if profile and "profile" in report:
        for name, (nodes, microseconds) in report["profile"]["operators"].items():
            click.echo(f"  {name:36} {nodes:4d} nodes {microseconds:9.1f} us")


def _print_batches(batches: list[dict[str, Any]]) -> None:
    """Tokens a second of several texts at once, all together, drawn on a terminal."""
    from rich.bar import Bar
    from rich.table import Table

    from ..system.terminal import terminal

    console, most = terminal(), max(entry["decode_tps"][0] for entry in batches)
    table = Table()
    table.add_column("texts at once", justify="right")
    table.add_column("decode, tokens/s together", justify="right")
    if console.is_terminal:
        table.add_column("")
    for entry in batches:
        middle, low, high = entry["decode_tps"]
        bar = [Bar(most, 0, middle, width=20)] if console.is_terminal else []
        table.add_row(str(entry["texts"]), f"{middle:.1f} ({low:.1f}–{high:.1f})", *bar)
    console.print(table)
