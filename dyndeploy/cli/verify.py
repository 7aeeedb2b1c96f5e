"""``dyndeploy verify``: does a bundle compute what PyTorch computed?"""

from __future__ import annotations

import typer

from dyndeploy.cli._arguments import print_json, print_table
from dyndeploy.cli._options import AsJson, BundleFolder, Native, Threads


def verify(
    bundle: BundleFolder,
    threads: Threads = 1,
    native: Native = "auto",
    as_json: AsJson = False,
) -> None:
    """Check a bundle: files, opset and operators of its target, masks, outputs under equal masks."""
    from dyndeploy.verification import verify_bundle

    report = verify_bundle(bundle, threads=threads, native=native)
    if as_json:
        print_json(report.to_json())
    else:
        print_table(
            ("check", "result", "detail"),
            [(check.name, "ok" if check.passed else "FAILED", check.detail) for check in report.checks],
            title=str(bundle),
        )
    if not report.passed:
        raise typer.Exit(1)
