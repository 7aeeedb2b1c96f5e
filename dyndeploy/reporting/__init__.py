"""Reporting: measured against predicted, and one self-contained HTML page."""

from dyndeploy.reporting.comparison import (
    BlockComparison,
    Comparison,
    PredictedSweep,
    RateComparison,
    compare_profile,
    predict_profile,
)
from dyndeploy.reporting.gallery import GalleryItem, mask_overlay
from dyndeploy.reporting.html import ReportExtras, render_report, write_report

__all__ = [
    "BlockComparison",
    "Comparison",
    "GalleryItem",
    "PredictedSweep",
    "RateComparison",
    "ReportExtras",
    "compare_profile",
    "mask_overlay",
    "predict_profile",
    "render_report",
    "write_report",
]
