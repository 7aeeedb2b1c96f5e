"""Early exits on this CPU: latency per exit, realisation at two exit mixes, and what staging costs.

Run from the repository: ``python benchmarks/early_exit/run.py``. Weights are random and exits are forced: latencies are
real, classes and the data's own mix are not. Writes ``benchmarks/results/early-exit.json`` and ``early-exit.md``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from dyndeploy import Bundle, ExportSettings, create_model, export_model
from dyndeploy.files import write_json, write_text
from dyndeploy.measure.exits import ExitProfile, profile_exits

NETWORKS = ("reg800m_perceiver_t128", "resnet50_0375_perceiver_t128", "mobilenetV3_0x75_perceiver_t128")
MIXES = ((25, 25, 25, 25), (60, 20, 10, 10))
RESULTS = Path(__file__).parents[1] / "results"


def bundle_of(name: str, folder: Path) -> Bundle:
    """Export a network with random weights, unless the folder has it."""
    path = folder / name
    if path.exists():
        return Bundle.open(path)
    torch.manual_seed(0)
    return export_model(create_model(name), path, ExportSettings(static=True, graph="if"))


def rows(profile: ExitProfile) -> list[str]:
    """Markdown rows of one network."""
    entries = [("network without exits", profile.whole_macs, profile.whole.median, None)]
    entries += [(f"exit {entry.exit}", entry.macs, entry.samples.median, entry.relative) for entry in profile.exits]
    if profile.branched is not None:
        entry = profile.branched
        entries.append(("all branches of the If graph", entry.macs, entry.samples.median, entry.relative))
    lines = []
    for name, macs, ms, relative in entries:
        ideal = profile.whole_macs / macs
        speed = (
            "1.00x | 1.00x | "
            if relative is None
            else f"{ideal:.2f}x | {1 / relative:.2f}x | {1 / relative / ideal:.0%}"
        )
        lines.append(f"| {name} | {macs / 1e6:.1f} | {ms:.2f} | {speed} |")
    for mix in profile.mixes:
        speed = f"{mix.ideal_speedup:.2f}x | {mix.realised_speedup:.2f}x | {mix.realisation:.0%}"
        lines.append(f"| mix {mix.name} | {mix.mean_macs / 1e6:.1f} | {mix.mean_ms:.2f} | {speed} |")
    return lines


def page(profiles: list[ExitProfile]) -> str:
    """The results as Markdown."""
    first = profiles[0]
    lines = [
        "# Early exits on a CPU",
        "",
        f"{first.machine['cpu']}, ONNX Runtime {first.runtime['version']}, {first.threads} thread(s), one image at a "
        f"time, FP32; {first.machine['date']}. Random weights, exits forced. `python benchmarks/early_exit/run.py`.",
        "",
        "Realised speed-ups are ratios of runs in turn with the network without exits (one graph, all that exit 4 "
        "needs); times are medians. Staging: every stage over one graph that computes the same four exits.",
    ]
    for profile in profiles:
        cpu = profile.staging.relative_cpu
        lines += [
            "",
            f"## {profile.bundle['name']}",
            "",
            f"Staging costs {profile.overhead:+.1%}" + ("." if cpu is None else f" ({cpu - 1:+.1%} by CPU time)."),
            "",
            "| what | M MACs | ms | ideal | realised | realisation |",
            "|---|---|---|---|---|---|",
            *rows(profile),
        ]
        lines += [f"\nNote: {warning}" for warning in profile.warnings()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="registered names")
    parser.add_argument(
        "--bundles", type=Path, help="folder of bundles to reuse, or to export to; a temporary one else"
    )
    parser.add_argument("--export-only", action="store_true", help="write the bundles and measure nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="of measurement per network")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bundles = [bundle_of(name, options.bundles or Path(temporary)) for name in options.networks]
        if options.export_only:
            return
        profiles = [
            profile_exits(bundle, threads=options.threads, mixes=MIXES, min_seconds=options.seconds)
            for bundle in bundles
        ]
    result: dict[str, Any] = {"networks": {p.bundle["name"]: p.to_json() for p in profiles}}
    write_json(options.output / "early-exit.json", result)
    write_text(options.output / "early-exit.md", page(profiles))
    print(page(profiles))


if __name__ == "__main__":
    main()
