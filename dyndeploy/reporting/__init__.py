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
    unpredicted_note,
)
from dyndeploy.reporting.detections import detection_extras, detection_gallery, precision_table
from dyndeploy.reporting.exit_profile import (
    render_exit_profile_report,
    staging_cost,
    summarise_exits,
    write_exit_profile_report,
)
from dyndeploy.reporting.exits import exit_rows, render_exits_report, summarise, write_exits_report
from dyndeploy.reporting.gallery import DRAWN, GalleryItem, mask_overlay, token_grid
from dyndeploy.reporting.html import ReportExtras, render_report, write_report
from dyndeploy.reporting.network import (
    NetworkComparison,
    PartComparison,
    compare_network_profile,
    render_network_report,
    write_network_report,
)
from dyndeploy.reporting.pair_page import render_pair_report, write_pair_report
from dyndeploy.reporting.pairs import Pair, compare_files, compare_measurements, measurement_kind
from dyndeploy.reporting.parts import parts_table, steps_table
from dyndeploy.reporting.quantization import quantization_rows, render_quantization_report, summarise_quantization

__all__ = [
    "DRAWN",
    "BlockComparison",
    "Comparison",
    "ExitComparison",
    "GalleryItem",
    "KindError",
    "NetworkComparison",
    "Pair",
    "PartComparison",
    "PartError",
    "PredictedExits",
    "PredictedSweep",
    "RateComparison",
    "ReportExtras",
    "compare_exit_profile",
    "compare_files",
    "compare_measurements",
    "compare_network_profile",
    "compare_profile",
    "detection_extras",
    "detection_gallery",
    "exit_rows",
    "mask_overlay",
    "measurement_kind",
    "parts_table",
    "precision_table",
    "predict_exit_profile",
    "predict_profile",
    "quantization_rows",
    "render_exit_profile_report",
    "render_exits_report",
    "render_network_report",
    "render_pair_report",
    "render_quantization_report",
    "render_report",
    "staging_cost",
    "steps_table",
    "summarise",
    "summarise_exits",
    "summarise_quantization",
    "token_grid",
    "unpredicted_note",
    "write_exit_profile_report",
    "write_exits_report",
    "write_network_report",
    "write_pair_report",
    "write_report",
]
