# SPDX-License-Identifier: Apache-2.0
"""`nq-edge devices`: the profiles, one of them, and whether a model fits a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .paths import check_kind
from .streams import echo_json
from .suggestions import SuggestingGroup

if TYPE_CHECKING:
    from ..devices import Target

__all__ = ["command", "named"]


@click.group(name="devices", cls=SuggestingGroup, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the boards and GPUs that are known; `show` one of them, or ask whether a model will `fit` it."""
    if context.invoked_subcommand is not None:
        return
    from ..devices import TARGETS, describe_machine, recognise

    found = recognise(describe_machine())
    if as_json:
        rows = {name: target.to_dict() for name, target in TARGETS.items()}
        echo_json({"this": found.name if found else None, "devices": rows})
        return
    from rich.table import Table

    from ..system.terminal import terminal

    table = Table(title="devices", title_justify="left")
    for column in ("name", "GB", "GB/s", "capability", "runs a bundle by", "JetPack"):
        table.add_column(column, justify="right" if column.startswith("GB") else "left", no_wrap=column == "name")
    for name, target in TARGETS.items():
        if target.memory_gb is None:
            continue
        sizes = [f"{target.memory_gb:g}", "" if target.bandwidth_gbs is None else f"{target.bandwidth_gbs:g}"]
        mark = " (this machine)" if found is not None and found.name == name else ""
        table.add_row(name + mark, *sizes, target.compute_capability, target.backend, target.jetpack)
    console = terminal()
    console.print(table)
    generic = [name for name, target in TARGETS.items() if target.memory_gb is None]
    console.print(f"Engines are built for any GPU of a kind too: {', '.join(generic)}.")


@command.command(name="show", short_help="Show all that is known of a device.")
@click.argument("device")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def show(device: str, as_json: bool) -> None:
    """Show all that is known of DEVICE (`this` for the machine at hand), and where each number is from."""
    from .devices_report import print_device

    target = named(device)
    if as_json:
        echo_json(target.to_dict())
    else:
        print_device(target)


@command.command(name="fit", short_help="Say whether a model fits a device, and how fast it will be.")
@click.argument("model")
@click.option("--device", "-d", required=True, help="The device: a name of `nq-edge devices`, or `this`.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Tokens of prompt and text together [default: 2048, or what the model has].",
)
@click.option("--bpw", type=float, help="Bits per weight of the compressed layers [default: what is stored, or 1.0].")
@click.option(
    "--table",
    type=click.Choice(["float16", "int8", "int4"]),
    help="Storage of the embedding and the head [default: what is stored, or float16].",
)
@click.option(
    "--batch", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of sequences that run at once."
)
@click.option(
    "--power-mode", help="Power mode of the device, as `nq-edge devices show` lists them [default: the highest]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def fit(model: str, device: str, *, context: int | None, as_json: bool, **options: Any) -> None:
    """Say whether MODEL fits a device, with how much context, and how fast it will probably be.

    MODEL is a bundle, a checkpoint, a folder with a Hugging Face config.json, or a hub id, of which config.json alone
    is fetched. Exit status 1 when it does not fit.
    """
    from ..devices import assess, open_model

    target = named(device)
    check_kind(model, "bundle", "engine", "checkpoint", "model", code="NQ-MODEL")
    facts = open_model(model, options["bpw"], options["table"])
    wanted = min(2048, facts.config.max_positions) if context is None else context
    found = assess(facts, target, context=wanted, batch=options["batch"], power_mode=options["power_mode"])
    if as_json:
        echo_json(found.to_dict())
    else:
        from .devices_report import print_assessment

        print_assessment(found)
    if not found.fit.fits:
        raise SystemExit(1)


def named(device: str) -> Target:
    """The profile of a name, or of this machine."""
    from ..devices import target_named, this_target

    return this_target() if device.lower() in ("this", "here") else target_named(device)
