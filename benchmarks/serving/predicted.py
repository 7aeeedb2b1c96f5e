"""What 1,000 images per second need on each device that the predictor knows; nothing runs.

Run from the repository: ``python benchmarks/serving/predicted.py``. Writes ``serving-predicted.json`` and
``serving-predicted.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from mix import BATCH, MIX, NETWORK, RESULTS

from dyndeploy.errors import DyndeployError
from dyndeploy.files import write_json, write_text
from dyndeploy.prediction import predict
from dyndeploy.targets.devices import device_names

PER_SECOND = 1000


@dataclass(frozen=True)
class Needs:
    """Predicted milliseconds per image on a device; as many devices serve 1,000 images per second.

    Attributes:
        device: Name.
        precision: Of the network.
        single: One image at a time, which leaves at its exit.
        whole: Batches, the whole network on every image.
        staged: Batches of a fixed size, each stage run if one image of the batch reaches it: today's staged batches.
        joined: Full batches at every stage: what compaction comes to where enough images wait.
    """

    device: str
    precision: str
    single: float
    whole: float
    staged: float
    joined: float


def needs(network: str | Path, device: str, precision: str) -> Needs:
    """Predict for a device."""
    single = predict(network, device, precision=precision, batch=1, exit_mix=MIX)
    batch = predict(network, device, precision=precision, batch=BATCH, exit_mix=MIX)
    until = [entry.latency_ms for entry in batch.exits]
    stages = [after - before for before, after in zip([0.0, *until[:-1]], until, strict=True)]
    reach = [1 - sum(MIX[:stage]) / 100 for stage in range(len(MIX))]
    some = [1 - (1 - share) ** BATCH for share in reach]
    return Needs(
        device,
        precision,
        single.latency_ms,
        sum(stages),
        sum(ms * share for ms, share in zip(stages, some, strict=True)),
        batch.latency_ms,
    )


def page(rows: list[Needs]) -> str:
    """The table as Markdown."""
    lines = [
        "# What 1,000 images per second need (predicted)",
        "",
        f"Predicted, not measured: {NETWORK}, exits at {'/'.join(str(share) for share in MIX)} %, FP16 where the "
        "device has it. Figures are devices that compute all the time, one for each predicted millisecond of an image; "
        f"bounded latency needs more. Batches have {BATCH} images. "
        "Staged: a fixed batch goes on as long as one of its images does. Joined: images that wait fill up the batches "
        "between the stages, so that each stage runs for the share of images that reach it. "
        "`python benchmarks/serving/predicted.py`.",
        "",
        "| device | precision | one by one | whole batches | staged batches | joined batches | joined over staged |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = " | ".join(f"{value:.2f}" for value in (row.single, row.whole, row.staged, row.joined))
        lines.append(f"| {row.device} | {row.precision} | {numbers} | {row.staged / row.joined:.2f}x |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Predict and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of what is written")
    parser.add_argument("--bundle", type=Path, help="of the network, which is exported in memory without it")
    arguments = parser.parse_args()
    rows = []
    for device in device_names():
        for precision in ("fp16", "fp32"):
            try:
                rows.append(needs(arguments.bundle or NETWORK, device, precision))
            except DyndeployError as error:
                print(f"{device} {precision}: {error}")
                continue
            break
    result = {"kind": "predicted", "network": NETWORK, "mix": MIX, "batch": BATCH, "per_second": PER_SECOND}
    write_json(arguments.output / "serving-predicted.json", {**result, "devices": [asdict(row) for row in rows]})
    write_text(arguments.output / "serving-predicted.md", page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
