"""The page of the papers' points: tables for people, and which claims hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from measured import key_of
from points import (
    DEVICES,
    PRECISION,
    RUNTIME,
    Point,
    counted_exits,
    predicted_ms,
    predicted_twin_ms,
    runs_there,
    solved_rate,
)

from dyndeploy.targets import load_device

NOT_HERE, NO_PLUGIN = "not here yet", "no plugin yet"
HOLDS = 0.9
"""Part of a published speed-up that has to be left for a claim to hold: what models and machines differ by anyway."""

Measured = Mapping[str, Mapping[str, Any]]

INTRODUCTION = """# The papers' points

*Made by `python benchmarks/papers/run.py`; edit that, not this page.*

Each paper says: at this accuracy, the network computes so little, and a device becomes so much faster. This page puts
beside each published point what this project finds for it, so that you can see which claims hold.

- **Published.** Accuracy (ImageNet top-1), GMACs (billions of multiply-accumulates per image) and milliseconds per
  image are copied. The milliseconds come from the *paper's own simulator*, not from a device. Nobody has trained these
  networks again here: no accuracy on this page is ours.
- **Rate.** The share of patches, channels or blocks that is computed. The publications do not say it. It is solved: the
  one rate, the same in every block, at which this project counts the published GMACs. Networks that were trained choose
  other rates in other blocks, at the same total.
- **Predicted.** This project's model of the same device, in {precision} ({batches}).
  Dynamic network and static twin are both predicted in {runtime}, so that they can be compared. (The static twin is the
  same network without decisions: it computes everything.) No figure of this page was taken on a board or a GPU.
- **Measured.** On the CPU named below, with masks forced to that rate at random places, or with the exit forced. The
  network runs in turn with its static twin in one process, on one thread, one image at a time. Weights are random, as
  time does not depend on them. *Ideal* is the speed-up that the multiply-accumulates promise, for the masks that ran.

A speed-up is always over the static twin of the same column. A cell is empty where nothing was published or can be
said; *{not_here}* marks networks that this release does not have, and *{no_plugin}* those whose operators it cannot
run in {runtime}. They are filled in as soon as it does.

The rates of RegNetYs in spatial mode are solved by the paper's count. It leaves skipped patches out of all three
convolutions of a block. But the squeeze-and-excitation averages over the whole map, so that the first two have to be
computed everywhere as soon as one patch is active: what is measured, and its ideal, have them everywhere.
"""


def page(points: Sequence[Point], measured: Measured) -> str:
    """The whole page as Markdown."""
    networks = [list(group) for _, group in groupby((p for p in points if not p.is_static), lambda p: p.network)]
    batches = ", ".join(f"{batch} on {_title(name)}" for name, batch in DEVICES.items())
    introduction = INTRODUCTION.format(
        precision=PRECISION.upper(), runtime={"tensorrt": "TensorRT"}[RUNTIME], not_here=NOT_HERE,
        no_plugin=NO_PLUGIN, batches=f"images per run: {batches}",
    )  # fmt: skip
    dynamic = [group for group in networks if group[0].exit is None]
    exits = [group for group in networks if group[0].exit is not None]
    twins = {point.network: point for point in points if point.is_static}
    parts = [introduction, _machine(measured), "## Which claims hold\n", _verdicts(dynamic, twins, measured)]
    parts.append(_price_of_skipping(dynamic))
    parts += ["## Static networks\n", _static_table(list(twins.values()))]
    parts += [_network(group, twins, measured) for group in dynamic]
    parts += [_exit_network(group, measured) for group in exits]
    parts += ["## Sources\n", "\n".join(f"- {source}" for source in dict.fromkeys(p.source for p in points)), ""]
    return "\n".join(parts)


# ---------------------------------------------------------------- cells


def _title(device: str) -> str:
    return load_device(device).title.removeprefix("NVIDIA ").split(" (")[0]


def _ms(value: float | None, twin: float | None) -> str:
    """Milliseconds, and the speed-up over the twin."""
    if value is None:
        return ""
    text = f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    return text if twin is None else f"{text}, {twin / value:.2f}x"


def _missing(point: Point) -> str:
    """Why there is no prediction, in two words; empty where neither is the reason."""
    return NOT_HERE if not point.known else "" if runs_there(point) else NO_PLUGIN


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _speedup(row: Mapping[str, Any]) -> float:
    """The measured speed-up: of CPU time where that is known, which other processes do not change."""
    return float(row["speedup_cpu_time"] or row["speedup"])


def _measured_row(point: Point, measured: Measured) -> Mapping[str, Any] | None:
    """What was measured for a point, if it was measured at the rate that the table has now."""
    rows = measured.get(key_of(point), {}).get("rows", ())
    if point.exit is not None:
        return next((row for row in rows if row["exit"] == point.exit), None)
    rate = solved_rate(point)
    return next((row for row in rows if rate is not None and abs(row["rate"] - rate) < 0.005), None)


def _measured_cell(point: Point, measured: Measured) -> str:
    if not point.known:
        return NOT_HERE
    row = _measured_row(point, measured)
    return "" if row is None else f"{_speedup(row):.2f}x (ideal {row['ideal_speedup']:.2f}x)"


# ---------------------------------------------------------------- parts


def _machine(measured: Measured) -> str:
    if not measured:
        return "Nothing has been measured yet: `python benchmarks/papers/run.py --measure`.\n"
    facts = list(measured.values())
    cpus = ", ".join(dict.fromkeys(f"{f['machine']['cpu']} ({_isa(f['machine']['isa'])})" for f in facts))
    versions = ", ".join(dict.fromkeys(f"{f['runtime']['name']} {f['runtime']['version']}" for f in facts))
    operators = ", ".join(dict.fromkeys(f["operators"] for f in facts if f["operators"]))
    shared = [f for f in facts if f["shared_machine"]]
    date = max(f["machine"]["date"] for f in facts)[:10]
    text = f"Measured on {cpus}, {versions}, FP32, {date}. Operators: {operators}."
    if shared:
        text += (
            f" Measured on a shared machine ({len(shared)} of {len(facts)} networks): speed-ups are ratios of the CPU "
            "time of the one computing thread, which other processes change little."
        )
    return text + "\n"


def _isa(names: Sequence[str]) -> str:
    return "AVX-512" if "avx512f" in names else names[-1].upper() if names else "no vector instructions"


def _verdicts(networks: Sequence[Sequence[Point]], twins: Mapping[str, Point], measured: Measured) -> str:
    rows = []
    for group in networks:
        for (mode, _), members in groupby(group, lambda p: (p.mode, p.granularity)):
            points = list(members)
            cells = [_device_verdict(points, twins, device) for device in DEVICES]
            rows.append([f"`{points[0].network}`", mode, *cells, _cpu_verdict(points, measured)])
    note = (
        "\nFirst the range of speed-ups that was published for the device, then the range predicted here; for the CPU\n"
        "the range measured, and how much of the ideal it is. *Holds*: at every point at least "
        f"{HOLDS:.0%} of the published\nspeed-up (for the CPU: of the ideal one) is left; *in part*: at some points; "
        "*does not hold*: at none.\n"
    )
    return _table(["network", "mode", *(f"{_title(d)}" for d in DEVICES), "this CPU, measured"], rows) + note


def _device_verdict(points: Sequence[Point], twins: Mapping[str, Point], device: str) -> str:
    pairs = []
    for point in points:
        twin = twins.get(point.twin)
        if twin is None or device not in point.published_ms or device not in twin.published_ms:
            continue
        published = twin.published_ms[device] / point.published_ms[device]
        own, own_twin = predicted_ms(point, device, solved_rate(point)), predicted_twin_ms(point, device)
        pairs.append((published, None if own is None or own_twin is None else own_twin / own))
    if not pairs:
        return ""
    known = [(published, own) for published, own in pairs if own is not None]
    text = f"published {_span([published for published, _ in pairs])}"
    if len(known) < len(pairs):
        return f"{text}; {_missing(points[0]) or 'not predicted'}"
    return f"{text}, predicted {_span([own for _, own in known])}: {_verdict([own / p for p, own in known])}"


def _cpu_verdict(points: Sequence[Point], measured: Measured) -> str:
    if not points[0].known:
        return NOT_HERE
    rows = [row for point in points if (row := _measured_row(point, measured)) is not None]
    if not rows:
        return ""
    shares = [_speedup(row) / row["ideal_speedup"] for row in rows]
    span = f"{min(shares):.0%} to {max(shares):.0%} of ideal" if len(shares) > 1 else f"{shares[0]:.0%} of ideal"
    return f"{_span([_speedup(row) for row in rows])}, {span}: {_verdict(shares)}"


def _price_of_skipping(networks: Sequence[Sequence[Point]]) -> str:
    """What dynamic networks are predicted to lose where they skip nothing."""
    one_each = {(p.network, p.mode): p for group in networks for p in group if solved_rate(p) is not None}.values()
    texts = []
    for device in DEVICES:
        pairs = [(predicted_twin_ms(p, device), predicted_ms(p, device, 1.0)) for p in one_each]
        speeds = [twin / own for twin, own in pairs if twin is not None and own is not None]
        if speeds:
            texts.append(f"{_span(speeds)} on {_title(device)}")
    if not texts:
        return ""
    return (
        "Why predictions fall short of what was published: at rate 1, where nothing is skipped, the dynamic networks\n"
        f"are predicted to run at {', '.join(texts)}\nof their twins' speed. TensorRT's own kernels, which the twin "
        "gets, are better than those of the dynamic operators,\nand that is lost first. On this CPU the operator "
        "library is faster than the twin's kernels, so that more than the\nideal can be measured.\n"
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{low}x" if low == high else f"{low} to {high}x"


def _verdict(shares: Sequence[float]) -> str:
    kept = sum(share >= HOLDS for share in shares)
    return "**holds**" if kept == len(shares) else "**in part**" if kept else "**does not hold**"


def _static_table(points: Sequence[Point]) -> str:
    header = ["network", "top-1 %", "GMACs"]
    for device in DEVICES:
        header += [f"{_title(device)}: published", "predicted"]
    rows = []
    for point in points:
        cells = [f"`{point.network}`", f"{point.top1:.2f}", _number(point.gmacs, ".2f")]
        for device in DEVICES:
            published = point.published_ms.get(device)
            own = predicted_ms(point, device, None) if published is not None else None
            missing = NOT_HERE if published is not None and not point.known else ""
            cells += [_ms(published, None), _ms(own, None) or missing]
        rows.append(cells)
    return _table(header, rows)


def _network(points: Sequence[Point], twins: Mapping[str, Point], measured: Measured) -> str:
    devices = [device for device in DEVICES if any(device in point.published_ms for point in points)]
    header = ["mode", "top-1 %", "GMACs", "rate (solved)"]
    for device in devices:
        header += [f"{_title(device)}: published", "predicted"]
    rows = []
    for point in points:
        rate, twin = solved_rate(point), twins.get(point.twin)
        missing = "" if point.known else NOT_HERE
        unpredicted = _missing(point)
        mode = " ".join(part for part in (point.mode, point.granularity) if part and part != "block")
        cells = [mode, f"{point.top1:.2f}", _number(point.gmacs, ".2f"), _number(rate, ".3f") or missing]
        for device in devices:
            published = point.published_ms.get(device)
            own = predicted_ms(point, device, rate) if published is not None else None
            cells += [_ms(published, twin.published_ms.get(device) if twin else None)]
            cells += [_ms(own, predicted_twin_ms(point, device)) or (unpredicted if published is not None else "")]
        rows.append([*cells, _measured_cell(point, measured)])
    title = f"## {points[0].network}\n\nStatic twin: `{points[0].twin}`.\n\n"
    return title + _table([*header, "this CPU: measured"], rows)


def _exit_network(points: Sequence[Point], measured: Measured) -> str:
    whole = max(p.exit or 0 for p in points)
    devices = [d for d in DEVICES if points[0].known and predicted_ms(points[0], d, None) is not None]
    rows = []
    for point in points:
        assert point.exit is not None
        macs = counted_exits(point.network)[point.exit - 1] / 1e9 if point.known else None
        row = _measured_row(point, measured)
        cells = [str(point.exit), f"{point.top1:.2f}", _number(macs, ".3f") or NOT_HERE]
        cells += [_ms(predicted_ms(point, device, None), None) for device in devices]
        rows.append([*cells, "" if row is None else f"{row['ms']:.1f} ms", _measured_cell(point, measured)])
    text = (
        f"## {points[0].network}\n\nNo latency is published. The twin is the network that always goes to exit {whole}, "
        "as one graph without decisions.\nThe accuracy is that of all images at that exit; a mix of exits lies "
        "between.\n\n"
    )
    header = ["exit", "top-1 %", "GMACs (counted here)", *(f"{_title(d)}: predicted" for d in devices)]
    return text + _table([*header, "this CPU: measured", "over the twin"], rows)
