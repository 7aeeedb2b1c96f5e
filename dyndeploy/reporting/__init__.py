"""Reporting: measured against predicted, and one self-contained HTML page."""

from dyndeploy.reporting.comparison import (
    BlockComparison,
    Comparison,
    ExitComparison,
    KindError,
    PartError,
    PredictedExits,
    PredictedSweep,
    RateComparison,
    compare_exit_profile,
    compare_profile,
    predict_exit_profile,
    predict_profile,
)
from dyndeploy.reporting.exit_profile import render_exit_profile_report, write_exit_profile_report
from dyndeploy.reporting.exits import exit_rows, render_exits_report, summarise, write_exits_report
from dyndeploy.reporting.gallery import GalleryItem, mask_overlay
from dyndeploy.reporting.html import ReportExtras, render_report, write_report
from dyndeploy.reporting.network import (
    NetworkComparison,
    PartComparison,
    compare_network_profile,
    render_network_report,
    write_network_report,
)

__all__ = [
    "BlockComparison",
    "Comparison",
    "ExitComparison",
    "GalleryItem",
    "KindError",
    "NetworkComparison",
    "PartComparison",
    "PartError",
    "PredictedExits",
    "PredictedSweep",
    "RateComparison",
    "ReportExtras",
    "compare_exit_profile",
    "compare_network_profile",
    "compare_profile",
    "exit_rows",
    "mask_overlay",
    "predict_exit_profile",
    "predict_profile",
    "render_exit_profile_report",
    "render_exits_report",
    "render_network_report",
    "render_report",
    "summarise",
    "write_exit_profile_report",
    "write_exits_report",
    "write_network_report",
    "write_report",
]
