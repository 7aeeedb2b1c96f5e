"""``dyndeploy plan``: which stages to make dynamic, and how, on a calibrated device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import per_stage_numbers, print_json, print_table, size
from dyndeploy.cli._options import InputSize, complete_device, complete_network, option
from dyndeploy.cli._progress import progress_bar
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.planning import Plan


def plan(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK", help="Registered network; see 'dyndeploy models'.", autocompletion=complete_network
        ),
    ],
    device: Annotated[str, option("--device", autocompletion=complete_device)] = "cpu",
    budget_ms: Annotated[
        float | None, option("--budget-ms", metavar="X", detail="Computes as much as fits. (default: fastest)")
    ] = None,
    rate: Annotated[float, option("--rate", detail="One for all.")] = 0.5,
    modes: Annotated[
        str, typer.Option(help="Modes to choose from, separated by commas: spatial, channel, layer, both, static.")
    ] = "spatial,channel,layer,both,static",
    granularities: Annotated[str, typer.Option(help="Patch sides to choose from, e.g. 1-2-4.")] = "1-2-4-7-8",
    channel_granularities: Annotated[str, typer.Option(help="Channels per group to choose from.")] = "1-2-4",
    uniform_mode: Annotated[bool, typer.Option("--uniform-mode", help="One mode for all dynamic stages.")] = False,
    input_size: InputSize = None,
    threads: Annotated[
        int | None, option("--threads", min=1, detail="(default: the fastest of those calibrated)")
    ] = None,
    calibration: Annotated[
        list[Path] | None, option("--calibration", detail="May be repeated. (default: those of the device)")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time the plan here against uniform ones, and choose by that; a minute or two."),
    ] = False,
    output: Annotated[Path | None, option("--output", "-o", metavar="FILE", detail="'export --plan' reads it.")] = None,
    as_json: Annotated[bool, option("--json", detail="The plan and the front.")] = False,
) -> None:
    """Choose per stage mode and granularity, per block dynamic or dense, and threads, for the lowest latency."""
    from dyndeploy.files import atomic_file, write_json
    from dyndeploy.planning import PlanSettings, choose_measured, measure_plans, plan_network, uniform_plans
    from dyndeploy.planning.sources import calibrated_prices, recipe_accuracy

    settings = PlanSettings(
        rate=rate,
        modes=tuple(modes.split(",")),
        granularities=per_stage_numbers("--granularities", granularities),
        channel_granularities=per_stage_numbers("--channel-granularities", channel_granularities),
        uniform_mode=uniform_mode,
    )
    image = None if input_size is None else size("--input-size", input_size)
    prices, warnings = calibrated_prices(device, threads, calibration or ())
    if threads is not None and threads not in prices:
        raise UsageError(
            f"'{device}' is not calibrated with {threads} threads, but with {', '.join(map(str, prices))}."
        )
    for warning in warnings:
        note(warning)
    chosen, front = plan_network(
        network, prices, settings, input_size=image, device=device, budget_ms=budget_ms, accuracies=recipe_accuracy
    )
    measured: list[Plan] = []
    if measure:
        # Of the modes that the plan has: others compute something else at the same rate.
        own = replace(settings, modes=tuple(dict.fromkeys(mode for mode in chosen.mode if mode in settings.modes)))
        uniform = uniform_plans(
            network, prices[chosen.threads], own, input_size=image, device=device, threads=chosen.threads
        )
        # The output path is claimed first, so that an impossible one costs no measurement.
        with nullcontext() if output is None else atomic_file(output) as claimed:
            with progress_bar() as progress:
                measured = measure_plans([chosen, *uniform], progress=progress)
            chosen = choose_measured(measured, budget_ms)
            if claimed is not None:
                write_json(claimed, chosen.to_json())
    elif output is not None:
        write_json(output, chosen.to_json())
    if as_json:
        lists = {"front": front, "measured": measured}
        found = {name: [item.to_json() for item in items] for name, items in lists.items()}
        print_json({"chosen": chosen.to_json(), **found})
        return
    _print(chosen, front)
    if measured:
        _print_measured(chosen, measured)
    if output is not None:
        typer.echo(f"Written to {output}; 'dyndeploy export {network} --plan {output} -o BUNDLE' follows it.")


def _print(chosen: Plan, front: tuple[Plan, ...]) -> None:
    shown = [p for p in front if _same(p, chosen) or p in front[:: max(1, len(front) // 12)] or p is front[-1]]
    print_table(
        ("", "ms", "90 %", "MACs kept", "accuracy", "mode", "granularity", "dense blocks", "threads"),
        [_row(item, chosen=_same(item, chosen)) for item in shown],
        title=f"{chosen.network} on {chosen.device} at rate {chosen.rate:g}: {len(shown)} of {len(front)} plans of the "
        "front (none is both faster and computes more), predicted",
    )  # fmt: skip
    typer.echo(f"Static: {chosen.static_ms:.2f} ms. Chosen: {chosen.latency_ms:.2f} ms, because")
    for reason in chosen.reasons:
        typer.echo(f"  {reason}")


def _same(one: Plan, other: Plan) -> bool:
    return (one.options(), one.dense, one.threads) == (other.options(), other.dense, other.threads)


def _print_measured(chosen: Plan, measured: list[Plan]) -> None:
    print_table(
        ("", "measured ms", "predicted ms", "mode", "granularity", "channels per group", "dense blocks"),
        [
            (
                "->" if item is chosen else "",
                f"{item.measured_ms:.2f}",
                f"{item.latency_ms:.2f}",
                "-".join(item.mode),
                "-".join(map(str, item.granularity)),
                "-".join(map(str, item.channel_granularity)),
                ", ".join(item.dense) or "none",
            )
            for item in measured
        ],
        title="Measured here with random weights, masks forced: the plan, uniform choices and the static network",
    )


def _row(item: Plan, *, chosen: bool) -> list[str]:
    low, high = item.interval_ms
    return [
        "->" if chosen else "",
        f"{item.latency_ms:.2f}",
        f"{low:.2f}..{high:.2f}",
        f"{item.macs / item.static_macs:.0%}",
        "unknown" if item.accuracy is None else f"{item.accuracy:.1%}",
        "-".join(item.mode),
        "-".join(map(str, item.granularity)),
        ", ".join(item.dense) or "none",
        str(item.threads),
    ]
