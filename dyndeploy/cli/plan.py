"""``dyndeploy plan``: which stages to make dynamic, and how, or which early exits to keep, on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dyndeploy.cli._arguments import exit_mix as read_mix
from dyndeploy.cli._arguments import per_stage_numbers, print_json, print_table, size
from dyndeploy.cli._boards import device_model
from dyndeploy.cli._options import InputSize, complete_device, complete_network, option
from dyndeploy.cli._progress import progress_bar
from dyndeploy.cli._verbosity import note
from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    from dyndeploy.planning import DevicePrices, ExitPlan, Plan, PlanSettings
    from dyndeploy.prediction import StagedNodes


def plan(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK|BUNDLE",
            help="Registered network (see 'dyndeploy models'), or the bundle of a network that exits early.",
            autocompletion=complete_network,
        ),
    ],
    device: Annotated[str, option("--device", autocompletion=complete_device)] = "cpu",
    exit_mix: Annotated[str | None, option("--exit-mix", metavar="SHARES", detail="(default: the bundle's)")] = None,
    budget_ms: Annotated[
        float | None, option("--budget-ms", metavar="X", detail="Computes as much as fits. (default: fastest)")
    ] = None,
    rate: Annotated[float | None, option("--rate", detail="One for all. (default: 0.5)")] = None,
    modes: Annotated[
        str | None,
        typer.Option(
            help="Modes to choose from, separated by commas: spatial, channel, layer, both, static. (default: all)"
        ),
    ] = None,
    granularities: Annotated[
        str | None, typer.Option(help="Patch sides to choose from, e.g. 1-2-4. (default: 1-2-4-7-8)")
    ] = None,
    channel_granularities: Annotated[
        str | None, typer.Option(help="Channels per group to choose from. (default: 1-2-4)")
    ] = None,
    uniform_mode: Annotated[bool, typer.Option("--uniform-mode", help="One mode for all dynamic stages.")] = False,
    precision: Annotated[str, option("--precision")] = "fp32",
    input_size: InputSize = None,
    threads: Annotated[
        int | None, option("--threads", min=1, detail="Of a CPU. (default: the fastest of those calibrated)")
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
    """Choose what runs dynamically, stage by stage, or which early exits pay: predicted for a device."""
    from dyndeploy.planning import PlanSettings, device_prices
    from dyndeploy.planning.measured import require_measurable
    from dyndeploy.planning.sources import staged_network

    device = device_model(device)
    image = None if input_size is None else size("--input-size", input_size)
    if measure:
        require_measurable(device, precision)
    staged = staged_network(network, device, precision=precision, input_size=image)
    if staged is not None:
        of_modes = {
            "--budget-ms": budget_ms,
            "--modes": modes,
            "--granularities": granularities,
            "--channel-granularities": channel_granularities,
            "--uniform-mode": uniform_mode or None,
            "--measure": measure or None,
        }
        _refuse(of_modes, f"{staged.name} exits early: what is planned is which exits to keep")
        _plan_exits(network, staged, device, exit_mix, rate, precision, threads, calibration or (), output, as_json)
        return
    _refuse({"--exit-mix": exit_mix}, f"{network} has no exits")
    given = {
        "rate": rate,
        "modes": None if modes is None else tuple(modes.split(",")),
        "granularities": None if granularities is None else per_stage_numbers("--granularities", granularities),
        "channel_granularities": None
        if channel_granularities is None
        else per_stage_numbers("--channel-granularities", channel_granularities),
    }
    settings = PlanSettings(
        **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
        uniform_mode=uniform_mode,
    )
    prices = device_prices(device, threads=threads, calibrations=calibration or (), precision=precision)
    _plan_modes(network, device, settings, prices, image, budget_ms, measure, output, as_json)


def _refuse(options: Mapping[str, object], reason: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{reason}. Leave {', '.join(given)} out.")


def _plan_exits(
    network: str,
    staged: StagedNodes,
    device: str,
    exit_mix: str | None,
    rate: float | None,
    precision: str,
    threads: int | None,
    calibrations: Sequence[Path],
    output: Path | None,
    as_json: bool,
) -> None:
    from dyndeploy.files import write_json
    from dyndeploy.planning import device_prices, plan_exits
    from dyndeploy.prediction import Configuration

    mix = None if exit_mix is None else read_mix(exit_mix)
    prices = device_prices(device, threads=threads, calibrations=calibrations, precision=precision)
    for warning in prices.warnings:
        note(warning)
    chosen = plan_exits(staged, device, prices, mix, configuration=Configuration(rate=rate))
    if output is not None:
        write_json(output, chosen.to_json())
    if as_json:
        print_json(chosen.to_json())
        return
    _print_exits(network, chosen, output)


def _print_exits(network: str, plan: ExitPlan, output: Path | None) -> None:
    rows = [
        (
            "->" if choice is plan.choices[0] else "",
            ", ".join(map(str, choice.exits)),
            "/".join(f"{100 * share:.3g}" for share in choice.shares),
            f"{choice.latency_ms:.3f}",
            f"{choice.interval_ms[0]:.3f}..{choice.interval_ms[1]:.3f}",
            f"{choice.worst_ms:.3f}",
        )
        for choice in plan.choices
    ]
    mix = "/".join(f"{100 * share:.3g}" for share in plan.mix)
    print_table(
        ("", "exits kept", "leave there, %", "mean ms", "90 %", "last exit ms"),
        rows,
        title=f"{plan.network} on {plan.device}, {plan.precision}, at the mix {mix}: predicted, ms per image",
    )
    for verdict in plan.verdicts:
        saved = f"keeping it saves {verdict.saved_ms:.3f} ms" if verdict.saved_ms > 0 else (
            f"keeping it costs {-verdict.saved_ms:.3f} ms"
        )  # fmt: skip
        typer.echo(f"Exit {verdict.exit} {'pays' if verdict.saved_ms > 0 else 'does not pay'}: {saved} per image.")
    typer.echo(f"Prices: {plan.basis}; fusions of {plan.runtime}. Accuracy is not part of this.")
    if Path(network).is_dir():
        typer.echo(f"Export the network again with {plan.export_option} to follow this.")
        return
    target = "" if plan.device == "cpu" else f" --target {plan.device}"
    option = plan.export_option if output is None else f"--plan {output}"
    typer.echo(f"'dyndeploy export {network} {option}{target} -o BUNDLE' follows it.")


def _plan_modes(
    network: str,
    device: str,
    settings: PlanSettings,
    prices: DevicePrices,
    image: tuple[int, int] | None,
    budget_ms: float | None,
    measure: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    from dyndeploy.files import atomic_file, write_json
    from dyndeploy.planning import choose_measured, measure_plans, plan_network, uniform_plans
    from dyndeploy.planning.sources import recipe_accuracy

    for warning in prices.warnings:
        note(warning)
    chosen, front = plan_network(
        network,
        prices.by_threads,
        settings,
        input_size=image,
        device=device,
        budget_ms=budget_ms,
        accuracies=recipe_accuracy,
        runtime=prices.runtime,
        precision=prices.precision,
        basis=prices.basis,
    )
    measured: list[Plan] = []
    if measure:
        # Of the modes that the plan has: others compute something else at the same rate.
        own = replace(settings, modes=tuple(dict.fromkeys(mode for mode in chosen.mode if mode in settings.modes)))
        price = prices.by_threads[chosen.threads]
        uniform = uniform_plans(network, price, own, input_size=image, device=device, threads=chosen.threads)
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
        target = "" if device == "cpu" else f" --target {device}"
        typer.echo(f"Written to {output}; 'dyndeploy export {network} --plan {output}{target} -o BUNDLE' follows it.")


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
    typer.echo(f"All predicted. Prices: {chosen.basis}; {chosen.precision}, fusions of {chosen.runtime}.")


def _same(one: Plan, other: Plan) -> bool:
    return (one.options(), one.dense, one.threads) == (other.options(), other.dense, other.threads)


def _print_measured(chosen: Plan, measured: list[Plan]) -> None:
    from dyndeploy.runtimes.native import BODIES_NOTE, FALLBACK_BODIES

    code = sorted({item.measured_with for item in measured if item.measured_with is not None})
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
        title="Measured here with random weights, masks forced: the plan, uniform choices and the static network; "
        f"operators: {', '.join(code) or 'none'}",
    )
    if FALLBACK_BODIES in code:
        typer.echo(f"Note: {BODIES_NOTE}")


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
        "-" if item.threads is None else str(item.threads),
    ]
