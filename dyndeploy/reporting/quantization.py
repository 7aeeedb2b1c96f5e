"""The report of a calibration in INT8: what each block costs, what the plan leaves in FP32, and every scale."""

from __future__ import annotations

from dyndeploy.quantization import FP32, CalibrationTable, Sensitivity
from dyndeploy.reporting.page import Rows, Table, render_page
from dyndeploy.reporting.svg import Bars, bar_chart


def render_quantization_report(table: CalibrationTable) -> str:
    """Return the page of a calibration table: one self-contained HTML file."""
    sensitivity = table.sensitivity
    return render_page(
        "quantization.html.j2",
        title=f"{table.network}: INT8",
        summary=summarise_quantization(table),
        network=table.network,
        data=table.data,
        images=table.images,
        top=[("Method", table.method), ("Weights", f"{table.weight_bits} bits"), ("Images", str(table.images))],
        notes=list(table.notes),
        blocks=None if sensitivity is None else _blocks(table, sensitivity),
        chart="" if sensitivity is None or not sensitivity.blocks else _chart(sensitivity),
        scales=_scales(table),
        facts=_facts(table),
    )


def summarise_quantization(table: CalibrationTable) -> str:
    """The calibration in a few sentences."""
    left = [block for block, precision in table.precision.items() if precision == FP32]
    quantised = len(table.precision) - len(left)
    parts = [
        f"{table.network}: {len(table.tensors)} scales by {table.method} from {table.images} images ({table.data}); "
        f"{quantised} of {len(table.precision)} blocks in INT8" + (f", in FP32 {', '.join(left)}." if left else ".")
    ]
    sensitivity = table.sensitivity
    if sensitivity is not None:
        plan = "the plan" if sensitivity.error != sensitivity.error_int8 else "all of it"
        error = f"Measured on {sensitivity.images} images: the output moves by {sensitivity.error:.2%} with {plan}"
        if plan == "the plan":
            error += f", by {sensitivity.error_int8:.2%} with every block in INT8"
        if sensitivity.mask_bits:
            share = sensitivity.mask_flips / sensitivity.mask_bits
            error += f"; {sensitivity.mask_flips} of {sensitivity.mask_bits} mask bits flip ({share:.3%})"
        parts.append(f"{error}.")
        if sensitivity.accuracy is not None and sensitivity.accuracy_fp32 is not None:
            parts.append(f"Top-1 {sensitivity.accuracy:.2%}, in FP32 {sensitivity.accuracy_fp32:.2%}.")
        if sensitivity.budget:
            parts.append(f"Budget: {sensitivity.budget}.")
    return " ".join(parts)


def quantization_rows(table: CalibrationTable) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and, per block, error of the output, drop of accuracy and precision; none where nothing was measured."""
    sensitivity = table.sensitivity
    labels = sensitivity is not None and sensitivity.labels
    columns = ("block", "output error", *(("accuracy drop",) if labels else ()), "precision")
    if sensitivity is None:
        return columns, []
    return columns, [
        (
            row.block,
            f"{row.output_error:.3%}",
            *((f"{row.accuracy_drop:+.2%}" if row.accuracy_drop is not None else "-",) if labels else ()),
            row.precision + (f" ({row.why})" if row.why else ""),
        )
        for row in sensitivity.blocks
    ]


def _blocks(table: CalibrationTable, sensitivity: Sensitivity) -> Table:
    columns, rows = quantization_rows(table)
    return Table(
        "Each block alone in INT8, measured under FP32's masks",
        columns,
        rows,
        file="blocks.csv",
        fields=("block", "output_error", "accuracy_drop", "precision"),
        values=[(row.block, row.output_error, row.accuracy_drop, row.precision) for row in sensitivity.blocks],
        marked=frozenset(index for index, row in enumerate(sensitivity.blocks) if row.precision == FP32),
    )


def _chart(sensitivity: Sensitivity) -> str:
    return bar_chart(
        [row.block for row in sensitivity.blocks],
        [Bars("output error", "data", [100 * row.output_error for row in sensitivity.blocks])],
        identifier="sensitivity",
        title="Error of the network's output with one block in INT8",
        description="The table below has the numbers.",
        x_label="error of the output, %",
        form="{:.2f}".format,
    )


def _scales(table: CalibrationTable) -> Table:
    rows = [
        (point, item.scale, item.zero_point, item.min, item.max, item.count, item.clipped)
        for point, item in table.tensors.items()
    ]
    return Table(
        "Scales",
        ("point", "scale", "zero point", "least", "largest", "values", "clipped"),
        [
            (point, f"{scale:.6g}", str(zero), f"{low:.4g}", f"{high:.4g}", str(count), f"{clipped:.3%}")
            for point, scale, zero, low, high, count, clipped in rows
        ],
        file="scales.csv",
        fields=("point", "scale", "zero_point", "min", "max", "count", "clipped"),
        values=rows,
    )


def _facts(table: CalibrationTable) -> Rows:
    settings = ", ".join(f"{name} {value}" for name, value in table.settings.items() if value is not None)
    return [
        ("Images", f"{table.images}: {table.data}"),
        ("Method", f"{table.method} ({settings})"),
        ("Weights", f"{table.weight_bits} bits, per {'channel' if table.per_channel else 'tensor'}"),
        ("Checksum of the weights", table.weights_sha256),
        *((f"{name} (calibrating)", version) for name, version in table.tools.items()),
    ]
