"""The papers' points: what was published beside what this project predicts and measures.

    python benchmarks/papers/run.py --measure      # on this CPU, about ten minutes; then the page
    python benchmarks/papers/run.py                # the page again, from the measurement that is there

Writes benchmarks/results/papers-points.json (measured) and docs/papers_points.md. A network that the zoo does not have
is marked so, and is predicted and measured as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # Also where another script loads this one.

import points_page
from measured import SCHEMA, measurable, measure
from points import ROWS, read_points

from dyndeploy.files import write_json, write_text

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "papers-points.json"
PAGE = ROOT / "docs" / "papers_points.md"


def main(arguments: list[str] | None = None) -> None:
    """Measure where that is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure on this CPU first; nothing else should run")
    parser.add_argument("--resume", action="store_true", help="with --measure: keep what the result file has")
    parser.add_argument("--networks", nargs="+", help="measure these only")
    parser.add_argument("--seconds", type=float, default=25.0, help="of measurement per network and mode")
    parser.add_argument("--native", default="auto", help="operator library: auto, off or a path")
    parser.add_argument("--rows", type=Path, default=ROWS, help="table of published points")
    parser.add_argument("--result", type=Path, default=RESULT, help="measurement to write or read")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    points = read_points(options.rows)
    before = json.loads(options.result.read_text(encoding="utf-8")) if options.result.exists() else {}
    measured: dict[str, Any] = before.get("networks", {}) if before.get("schema") == SCHEMA else {}
    if options.measure:
        for key, group in measurable(points).items():
            if (options.resume and key in measured) or (options.networks and group[0].network not in options.networks):
                continue
            measured[key] = measure(group, options.seconds, options.native)
            speedups = ", ".join(f"{row['speedup']:.2f}x" for row in measured[key]["rows"])
            print(f"{key}: measured {speedups}", flush=True)
            write_json(options.result, {"schema": SCHEMA, "kind": "measured", "networks": measured})
    write_text(options.page, points_page.page(points, measured))
    print(f"{options.page}: {len(points)} published points")


if __name__ == "__main__":
    main()
