"""What the CPU kernels have to reach, and whether they do: a share of the ideal, or a speed over a static network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contestants import BEST, BF16, BODIES, INT8, OPENVINO_BF16, OPENVINO_INT8, ORT_INT8

MODES = ("spatial", "channel", "layer", "both")
RESNETS = ("laud_resnet50", "laud_resnet101")
REGNETS = ("laud_regnety_400mf", "laud_regnety_1_6gf")
NARROWER = 0.03
"""By so much less may each share of the ideal be where the best instruction set is not AVX-512."""
INT8_SECOND_THREAD = 0.05
"""By so much less may figures of INT8 be with two threads."""
MODEL_SIZES = {"laud_resnet50": 0.33, "laud_resnet101": 0.31}
"""Largest size of the INT8 model over the FP32 one's: head and maskers stay FP32."""


@dataclass(frozen=True)
class Limit:
    """One figure that has to be reached.

    Attributes:
        row: What it is called.
        rate: Of the masks.
        modes: Of the networks that it holds for.
        least: By number of threads.
        contestant: Whose.
        share: Whether it is a share of the ideal; else a speed-up.
        over: A static network whose speed it is relative to; None: the twin's.
        own: Whether a share of the ideal is over the contestant's own speed at rate 1.0, not over the twin's.
        batches: That it holds for.
        networks: Likewise.
    """

    row: str
    rate: float
    modes: tuple[str, ...]
    least: Mapping[int, float]
    contestant: str = BEST
    share: bool = True
    over: str | None = None
    own: bool = False
    batches: tuple[int, ...] = (1,)
    networks: tuple[str, ...] = RESNETS

    @property
    def what(self) -> str:
        """What is limited, for a reader."""
        if self.share:
            return "share of ideal over its own rate 1.0" if self.own else "share of ideal"
        return f"speed over {self.over or 'the static twin'}"


def _int8(row: str, rate: float, modes: tuple[str, ...], least: float, over: str | None = None) -> Limit:
    """A limit of INT8: a speed over a static network, or a share of the ideal over its own rate 1.0."""
    both = {1: least, 2: least - INT8_SECOND_THREAD}
    return Limit(row, rate, modes, both, INT8, over is None, over, over is None, (1, 8))


LIMITS = (
    Limit("rate 1.0, every mode", 1.0, MODES, {1: 1.00, 2: 0.99}, share=False, batches=(1, 8)),
    Limit("spatial 0.5", 0.5, ("spatial",), {1: 1.00, 2: 0.98}),
    Limit("spatial 0.25", 0.25, ("spatial",), {1: 0.97, 2: 0.94}),
    Limit("spatial 0.1", 0.1, ("spatial",), {1: 0.90, 2: 0.85}),
    Limit("layer 0.5", 0.5, ("layer",), {1: 1.00, 2: 0.98}),
    Limit("layer 0.25", 0.25, ("layer",), {1: 1.00, 2: 0.96}),
    Limit("channel g2 0.5", 0.5, ("channel",), {1: 0.93, 2: 0.90}),
    Limit("channel g2 0.25", 0.25, ("channel",), {1: 0.88, 2: 0.82}),
    Limit("both 4-4-2-1 g2 0.5", 0.5, ("both",), {1: 0.87, 2: 0.82}),
    Limit(
        "BF16 rate 1.0 over OpenVINO's static BF16", 1.0, MODES, {1: 0.98, 2: 0.96},
        contestant=BF16, share=False, over=OPENVINO_BF16,
    ),
    Limit("function bodies, spatial and layer 0.5", 0.5, ("spatial", "layer"), {1: 0.80}, contestant=BODIES),
    Limit("function bodies, rate 1.0, every mode", 1.0, MODES, {1: 0.90}, contestant=BODIES, share=False),
    *(
        Limit(row, rate, modes, least, share=share, batches=(1, 8), networks=REGNETS)
        for row, rate, modes, least, share in (
            ("RegNetY rate 1.0, every mode", 1.0, MODES, {1: 0.99, 2: 0.94}, False),
            ("RegNetY layer 0.5", 0.5, ("layer",), {1: 0.97, 2: 0.92}, True),
            ("RegNetY channel g2 0.5", 0.5, ("channel",), {1: 0.80, 2: 0.75}, True),
            ("RegNetY spatial 0.5, means of active pixels", 0.5, ("spatial",), {1: 0.85, 2: 0.80}, True),
            ("RegNetY both 0.5, means of active pixels", 0.5, ("both",), {1: 0.80, 2: 0.75}, True),
        )
    ),
    _int8("INT8 rate 1.0, every mode", 1.0, MODES, 1.00, ORT_INT8),
    _int8("INT8 rate 1.0, every mode", 1.0, MODES, 0.95, OPENVINO_INT8),
    _int8("INT8 spatial and layer 0.85", 0.85, ("spatial", "layer"), 1.00, OPENVINO_INT8),
    _int8("INT8 channel g2 0.75", 0.75, ("channel",), 1.00, OPENVINO_INT8),
    _int8("INT8 spatial 0.5", 0.5, ("spatial",), 1.45, OPENVINO_INT8),
    _int8("INT8 layer and channel g2 0.5", 0.5, ("layer", "channel"), 1.60, OPENVINO_INT8),
    _int8("INT8 spatial 0.5", 0.5, ("spatial",), 0.92),
    _int8("INT8 layer 0.5", 0.5, ("layer",), 0.96),
    _int8("INT8 channel g2 0.5", 0.5, ("channel",), 0.78),
)  # fmt: skip

Row = Mapping[str, Any]
HEAD = "| limit | threads | what | at least | least measured | where | verdict |\n|---|---|---|---|---|---|---|"
DETAIL_HEAD = (
    "| limit | what | network | mode | batch | threads | at least | measured | spread | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Outcome:
    """A limit and what one configuration reached."""

    limit: Limit
    row: Row
    least: float
    measured: float
    spread: tuple[float, float]

    @property
    def verdict(self) -> str:
        """For the table."""
        return "met" if self.measured >= self.least else "**missed**"


def outcomes(rows: Sequence[Row], granularity: str, best: str | None) -> list[Outcome]:
    """Every configuration that a limit holds for, in the order of the limits.

    Args:
        rows: Of the benchmark.
        granularity: That the limits are for.
        best: The best instruction set of the machine.
    """
    by_key = {_key(row): row for row in rows}
    found = []
    for limit in LIMITS:
        for row in rows:
            if (row["contestant"], row["rate"], row["granularity"]) != (limit.contestant, limit.rate, granularity):
                continue
            if row["network"] not in limit.networks or row["mode"] not in limit.modes:
                continue
            if row["batch"] not in limit.batches or row["threads"] not in limit.least:
                continue
            least = limit.least[row["threads"]]
            if limit.share and best != "avx512" and limit.contestant == BEST and limit.networks == RESNETS:
                least -= NARROWER
            divisor = row["ideal_speedup"] if limit.share else 1.0
            if limit.over is not None or limit.own:
                other = by_key.get((*_key(row)[:-2], *((limit.over, None) if limit.over else (row["contestant"], 1.0))))
                if other is None:
                    continue
                divisor *= speed_of(other, limit.contestant) / other["ideal_speedup"]
            low, high = (value / divisor for value in row["realised_spread"])
            found.append(Outcome(limit, row, least, speed_of(row, limit.contestant) / divisor, (low, high)))
    return found


def speed_of(row: Row, contestant: str = INT8) -> float:
    """Speed over the static twin; of INT8 on one thread by processor times, which other load changes less.

    Args:
        row: Of the benchmark.
        contestant: Whose limit it is for.
    """
    by_cpu: float | None = row["realised_speedup_cpu"] if contestant == INT8 else None
    return float(row["realised_speedup"]) if by_cpu is None else by_cpu


def _key(row: Row) -> tuple[Any, ...]:
    names = ("network", "mode", "granularity", "batch", "threads", "contestant", "rate")
    return tuple(row[name] for name in names)


def sizes(rows: Sequence[Row]) -> str:
    """Markdown: the size of every INT8 model over its FP32 one's; empty where none was measured."""
    largest: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["contestant"] == INT8:
            key = row["network"], row["mode"]
            largest[key] = max(row["size_ratio"], largest.get(key, 0.0))
    if not largest:
        return ""
    lines = ["| INT8 model over FP32 model | mode | at most | size | verdict |", "|---|---|---|---|---|"]
    for (network, mode), ratio in largest.items():
        most = MODEL_SIZES.get(network)
        verdict = "" if most is None else "met" if ratio <= most else "**missed**"
        lines.append(f"| {network} | {mode} | {'' if most is None else f'{most:.2f}'} | {ratio:.3f} | {verdict} |")
    return "\n".join(lines)


def section(rows: Sequence[Row], granularity: str, best: str | None) -> str:
    """Markdown: per limit the configuration that is furthest from it, then all of them."""
    found = outcomes(rows, granularity, best)
    lines = [HEAD]
    measured = {row["network"] for row in rows}
    for limit in LIMITS:
        if measured.isdisjoint(limit.networks):
            continue
        for threads in limit.least:
            own = [item for item in found if item.limit is limit and item.row["threads"] == threads]
            if not own:
                lines.append(
                    f"| {limit.row} | {threads} | {limit.what} | {limit.least[threads]:.2f} | not measured | | |"
                )
                continue
            worst = min(own, key=lambda item: item.measured - item.least)
            met = sum(item.measured >= item.least for item in own)
            verdict = worst.verdict if len(own) == 1 else f"{worst.verdict} ({met} of {len(own)} met)"
            where = f"{worst.row['network']} {worst.row['mode']}, batch {worst.row['batch']}"
            lines.append(
                f"| {limit.row} | {threads} | {limit.what} | {worst.least:.2f} | {worst.measured:.3f} | {where} "
                f"| {verdict} |"
            )
    lines += ["", "Every configuration (spread: quartiles of the ratios of all rounds):", "", DETAIL_HEAD]
    for item in found:
        row, (low, high) = item.row, item.spread
        lines.append(
            f"| {item.limit.row} | {item.limit.what} | {row['network']} | {row['mode']} | {row['batch']} "
            f"| {row['threads']} | {item.least:.2f} | {item.measured:.3f} | {low:.3f} .. {high:.3f} | {item.verdict} |"
        )
    return "\n".join(lines)
