"""The picture of the README: what the demo's report draws, as a file of its own.

    dyndeploy demo -o demo && python benchmarks/demo_plot.py demo docs/img/demo.svg

The chart is taken from the report as it is, with the report's colours for light and dark pages; below it stands how and
on which processor it was made.
"""

from __future__ import annotations

import argparse
import re
from html import escape
from pathlib import Path

from dyndeploy.files import read_text, write_text
from dyndeploy.measure import Profile, load_profile

CHART = re.compile(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>(<title id="latency-t">.*?)</svg>', re.DOTALL)
STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
CAPTION_HEIGHT = 44


def caption(profile: Profile) -> tuple[str, str]:
    """Two lines: what was measured and where."""
    data = profile.data
    where = f"{profile.machine['cpu']}, {profile.native['instruction_set'] or 'function bodies'}"
    shared = "; other programs ran too" if profile.static.unstable else ""
    return (
        f"Measured: {profile.threads} thread on {where}, ONNX Runtime {profile.runtime['version']}.",
        f"The images' own masks: {data.realised_speedup:.2f}x of an ideal {data.ideal_speedup:.2f}x{shared}.",
    )


def picture(page: str, profile: Profile) -> str:
    """The chart of a report as an SVG file."""
    chart, style = CHART.search(page), STYLE.search(page)
    if chart is None or style is None:
        raise SystemExit("The report has no chart of the latency against the rate.")
    width, height, drawn = int(chart[1]), int(chart[2]), chart[3]
    lines = "".join(
        f'<text x="8" y="{height + 16 + 16 * index}" class="value">{escape(line)}</text>'
        for index, line in enumerate(caption(profile))
    )
    total = height + CAPTION_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
        f'role="img" aria-labelledby="latency-t latency-d" class="chart"><style>{style[1]}</style>'
        f'<rect width="{width}" height="{total}" style="fill: var(--paper)"/>{drawn}{lines}</svg>\n'
    )


def main() -> None:
    """Read a demo's folder, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of 'dyndeploy demo'")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    profile = load_profile(options.demo / "profile.json")
    write_text(options.output, picture(read_text(options.demo / "report.html"), profile))


if __name__ == "__main__":
    main()
