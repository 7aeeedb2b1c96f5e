"""Blocks and networks on boards and GPUs, modelled from the kernels' table, beside published times of static ones."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS
from dyndeploy.prediction import AnalyticalModel, GraphWalker, Kernel, Rates
from dyndeploy.prediction.break_even import BATCHES, break_even, published_figures
from dyndeploy.prediction.kernels import ELEMENT_BYTES, OperatorCall
from dyndeploy.prediction.own_kernels import own_kernels
from dyndeploy.prediction.zoo import zoo_nodes
from dyndeploy.targets.devices import Device, device_names, load_device

NETWORK = "laud_resnet50"
OPTIONS: Mapping[str, Any] = {"mode": "spatial", "granularity": (4, 4, 2, 1)}
RATES = (1.0, 0.75, 0.5, 0.25, 0.1)
ENDS = {"optimistic": 0.0, "pessimistic": 1.0}
STATIC_LAUNCHES = 3

VIT: Mapping[str, int] = {"T": 197, "D": 384, "A": 6, "d": 64, "F": 1536}
"""A block of DeiT-small (Touvron et al., 2021) at 224 x 224: 196 patches and the class token."""
TOKEN_RATES = (1.0, 0.7, 0.5)

_IMAGE, _STRIDES = (800, 1216), (4, 8, 16, 32)


def published_ms(device: str, precision: str, batch: int = 1) -> float | None:
    """Published latency of a batch of the static network; None where there is none."""
    found = [figure["ms"] for figure in published_figures(device, precision) if figure["batch"] == batch]
    return min(found, default=None)


@functools.lru_cache(maxsize=128)
def _kernels(precision: str, rate: float, batch: int = 1) -> Sequence[Kernel]:
    return _walker(precision, batch).graph(rate).kernels


@functools.lru_cache(maxsize=4)
def _walker(precision: str, batch: int) -> GraphWalker:
    return GraphWalker(zoo_nodes(NETWORK, OPTIONS, batch=batch), precision=precision, runtime="tensorrt")


def network_ms(
    device: Device, precision: str, rate: float, end: float, batch: int = 1
) -> tuple[float, dict[str, float]]:
    """Milliseconds of the network and of each of its blocks, maskers included."""
    kernels = _kernels(precision, rate, batch)
    ms, _, _ = AnalyticalModel(device, precision, "tensorrt", end=end).price(kernels)
    blocks: dict[str, float] = {}
    for kernel, value in zip(kernels, ms, strict=True):
        if kernel.block is not None:
            blocks[kernel.block] = blocks.get(kernel.block, 0.0) + float(value)
    return float(ms.sum()), blocks


def network_break_even(device: Device, precision: str, static: float, end: float, batch: int = 1) -> float:
    """Highest rate, in hundredths, at which the network is as fast as ``static`` ms; 0: none."""
    low, high = 0, 100
    while low < high:
        rate = (low + high + 1) // 2
        if network_ms(device, precision, rate / 100, end, batch)[0] <= static:
            low = rate
        else:
            high = rate - 1
    return low / 100


def launches_of_blocks(precision: str) -> dict[str, int]:
    """Launches of every block where none joins another: those of its operators, and one for anything else."""
    counts: dict[str, int] = {}
    for kernel in _kernels(precision, 0.5):
        if kernel.block is not None:
            launches = kernel.launches or ()
            transforms = 2 * sum(launch.patches > 0 for launch in launches)
            own = sum(not launch.continues for launch in launches)
            counts[kernel.block] = counts.get(kernel.block, 0) + max(1, own + transforms)
    return counts


BOUND_RATES = (1.0, 0.5, 0.25)
_PARTS = ("products", "padding", "loop", "tails", "ends", "gaps", "rest")


def network_parts(device: Device, precision: str, rate: float, end: float) -> dict[str, dict[str, float]]:
    """Where a run's milliseconds go and what cannot be beaten, by stage: the parts of :class:`LaunchTime`.

    ``"copies"`` are what launches of ours without products take, ``"runtime"`` what TensorRT's own layers do;
    ``"network"`` is the sum of all stages.
    """
    kernels = _kernels(precision, rate)
    found: dict[str, dict[str, float]] = {}
    for launch in AnalyticalModel(device, precision, "tensorrt", end=end).parts(kernels):
        kernel = kernels[launch.kernel]
        stage = (kernel.block or "others").partition(".")[0]
        others = "" if launch.layer else "runtime" if kernel.launches is None else "copies"
        for place in (stage, "network"):
            times = found.setdefault(place, dict.fromkeys(("whole", "bound", *_PARTS, "copies", "runtime"), 0.0))
            times["whole"] += launch.whole
            times["bound"] += launch.bound
            for name in _PARTS if not others else ("gaps",):
                times[name] += getattr(launch, name)
            if others:
                times[others] += launch.whole - launch.gaps
    return found


def block_us(device: Device, precision: str, block: str, rate: float, end: float) -> tuple[float, int, float]:
    """Microseconds of a block's kernels alone, its launches, and microseconds with the gaps between them."""
    model = AnalyticalModel(device, precision, "tensorrt", end=end)
    kernels = [kernel for kernel in _kernels(precision, rate) if kernel.block == block]
    whole = 1e3 * float(model.price(kernels, _resident(precision, rate, len(kernels)))[0].sum())
    launches, gaps = model.gaps(kernels)
    return whole - 1e3 * gaps, launches, whole


def _resident(precision: str, rate: float, count: int) -> Any:
    import numpy as np

    return np.full(count, sum(kernel.weight_bytes for kernel in _kernels(precision, rate)), np.float64)


def _call(name: str, sizes: Mapping[str, int], attributes: Mapping[str, Any], element: int) -> OperatorCall:
    spec = OPERATORS[name]
    shapes = tuple(tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in port.shape) for port in spec.inputs)
    return OperatorCall(spec, shapes, attributes, element)


def transformer_kernel(precision: str, rate: float, batch: int) -> Kernel:
    """A block of DeiT-small that attends and computes with a share of its tokens."""
    attributes = {"epsilon": 1e-6, "scale": VIT["d"] ** -0.5, "token_mlp": 1, "head_mode": 0}
    call = _call("TokenTransformerBlock", {**VIT, "N": batch}, attributes, int(ELEMENT_BYTES[precision]))
    return call.kernel("block", "block", Rates(token=rate))


def detector_kernels(precision: str) -> dict[str, Kernel]:
    """What detectors read with operators of ours, at 800 x 1216."""
    element = int(ELEMENT_BYTES[precision])
    maps = [(-(-_IMAGE[0] // stride), -(-_IMAGE[1] // stride)) for stride in _STRIDES]
    pyramid = {f"{axis}{level}": side for level, each in enumerate(maps) for axis, side in zip("HW", each, strict=True)}
    # An encoder samples strides 8 to 64.
    sampled = [*maps[1:], (-(-_IMAGE[0] // 64), -(-_IMAGE[1] // 64))]
    cells = sum(height * width for height, width in sampled)
    flat = [side for each in sampled for side in each]
    found = {}
    for title, queries in (("decoder layer, 900 queries", 900), ("encoder layer, every cell", cells)):
        sizes = {"N": 1, "S": cells, "A": 8, "d": 32, "Q": queries, "P": 4}
        call = _call("MultiscaleDeformableAttention4", sizes, {"sizes": flat}, element)
        found[f"deformable attention of a DETR's {title}"] = call.kernel("sampling", None, Rates())
    for title, boxes, size in (("boxes: 1000, 7 x 7", 1000, 7), ("masks: 100, 14 x 14", 100, 14)):
        call = _call("PyramidRoiAlign", {**pyramid, "C": 256, "N": boxes}, {"strides": _STRIDES, "size": size}, element)
        found[f"RoI align of an R-CNN's {title}"] = call.kernel("regions", None, Rates())
    return found


# ------------------------------------------------------------------------------------------------------ report


def _priced(device: Device, precision: str, kernel: Kernel) -> list[float]:
    """Milliseconds at both ends."""
    return [
        float(AnalyticalModel(device, precision, "tensorrt", end=end).price([kernel])[0][0]) for end in ENDS.values()
    ]


def _network(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {"rates": {}}
    lines = [f"\n{device.title}, {precision}, batch 1, modelled (optimistic-pessimistic)", ""]
    lines += ["| rate | network ms | last block of each stage, us |", "|---|---|---|"]
    for rate in RATES:
        ends = {label: network_ms(device, precision, rate, end) for label, end in ENDS.items()}
        last = _last_blocks(ends["optimistic"][1])
        found["rates"][str(rate)] = {
            label: {"network_ms": round(total, 4), "blocks_ms": {b: round(v, 5) for b, v in blocks.items()}}
            for label, (total, blocks) in ends.items()
        }
        totals = "-".join(f"{total:.2f}" for total, _ in ends.values())
        blocks = ", ".join("-".join(f"{1e3 * b[block]:.0f}" for _, b in ends.values()) for block in last)
        lines.append(f"| {rate:g} | {totals} | {blocks} |")
    return found, lines


def _bound(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    lines = [
        "",
        "Where the time goes, modelled, optimistic, in ms; the bound is what no kernel can beat: products at the",
    ]
    lines += [
        "peak rate or bytes at the memory's, whichever is longer, gaps between launches, and TensorRT's own layers.",
        "",
    ]
    titles = ("whole", "bound", *_PARTS[:-1], "waiting for bytes", "lists, copies, transforms", "TensorRT's layers")
    lines += ["| rate | stage | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(titles)]
    for rate in BOUND_RATES:
        stages = found[str(rate)] = network_parts(device, precision, rate, 0.0)
        for stage in sorted(stages, key=lambda name: (name == "network", name)):
            lines.append(f"| {rate:g} | {stage} | " + " | ".join(f"{ms:.2f}" for ms in stages[stage].values()) + " |")
    return found, lines


def _last_blocks(blocks: Iterable[str]) -> list[str]:
    last: dict[str, str] = {}
    for block in sorted(blocks):
        last[block.partition(".")[0]] = block
    return list(last.values())


def _published(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    found, lines = {}, []
    for figure in published_figures(device.name, precision):
        batch, static = int(figure["batch"]), float(figure["ms"])
        rates = {label: network_break_even(device, precision, static, end, batch) for label, end in ENDS.items()}
        found[str(batch)] = {"static_ms": static, "break_even": rates, "source": figure["source"]}
        lines.append(
            f"\nStatic {figure['runtime']}, published, batch {batch}: {static:g} ms. Modelled break-even at rate "
            + "-".join(f"{rate:.2f}" for rate in rates.values())
            + "."
        )
    return found, lines


def _batches(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    found = {batch: break_even(device, precision, batch) for batch in BATCHES}
    lines = ["", "Modelled break-even rates beside the predicted static network, by batch:", ""]
    lines += ["| batch | " + " | ".join(stage.stage for stage in found[1]) + " |", "|---|" + "---|" * len(found[1])]
    for batch, stages in found.items():
        rates = ("none" if stage.rate is None else f"{stage.rate:.3g}" for stage in stages)
        lines.append(f"| {batch} | " + " | ".join(rates) + " |")
    return {str(batch): {stage.stage: stage.rate for stage in stages} for batch, stages in found.items()}, lines


def _blocks(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    lines = ["", "A block at batch 1 and rate 1, modelled: its kernels alone, and with the gaps between launches:", ""]
    lines += ["| block | launches | kernels us | with launches us |", "|---|---|---|---|"]
    found = {}
    for block in _last_blocks(launches_of_blocks(precision)):
        ends = [block_us(device, precision, block, 1.0, end) for end in ENDS.values()]
        found[block] = {"launches": ends[0][1], "kernels_us": [e[0] for e in ends], "us": [e[2] for e in ends]}
        alone, whole = ("-".join(f"{end[place]:.1f}" for end in ends) for place in (0, 2))
        lines.append(f"| {block} | {ends[0][1]} | {alone} | {whole} |")
    return found, lines


def _transformer(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    lines = [
        "",
        "A block of DeiT-small by the share of tokens that it keeps, modelled; its share of the time of all:",
        "",
    ]
    lines += [
        "| batch | tokens kept | kernels us | with launches us | share, kernels | share |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[str, Any] = {}
    for batch in (1, 8, 32):
        all_tokens: tuple[list[float], list[float]] | None = None
        for rate in TOKEN_RATES:
            kernel = transformer_kernel(precision, rate, batch)
            whole = [1e3 * ms for ms in _priced(device, precision, kernel)]
            gaps = 1e3 * AnalyticalModel(device, precision, "tensorrt").gaps([kernel])[1]
            alone = [us - gaps for us in whole]
            all_tokens = all_tokens or (alone, whole)
            shares = [
                [now / then for now, then in zip(*pair, strict=True)]
                for pair in zip((alone, whole), all_tokens, strict=True)
            ]
            found[f"{batch}, {rate:g}"] = {"kernels_us": alone, "us": whole, "shares": shares}
            cells = ["-".join(f"{us:.1f}" for us in each) for each in (alone, whole)]
            cells += ["-".join(f"{share:.2f}" for share in each) for each in shares]
            lines.append(f"| {batch} | {rate:g} | " + " | ".join(cells) + " |")
    return found, lines


def _detectors(device: Device, precision: str) -> tuple[dict[str, Any], list[str]]:
    lines = ["", "What detectors read at 800 x 1216, batch 1, modelled:", "", "| kernel | ms |", "|---|---|"]
    found = {}
    for title, kernel in detector_kernels(precision).items():
        found[title] = _priced(device, precision, kernel)
        lines.append(f"| {title} | " + "-".join(f"{ms:.3f}" for ms in found[title]) + " |")
    return found, lines


def report(
    table: Path, devices: Sequence[str] | None = None, precisions: Sequence[str] = ("fp16", "fp32")
) -> tuple[dict[str, Any], str]:
    """Figures as JSON, and as text.

    Args:
        table: Of the kernels.
        devices: Names; None: all of whose architecture there are figures.
        precisions: Of the kernels.

    Raises:
        UsageError: An unknown device.
    """
    results: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in devices or device_names():
        device = load_device(name)
        for precision in precisions:
            if device.is_local or own_kernels(device.hardware.compute_capability, precision, table=table) is None:
                continue
            found: dict[str, Any] = {"device": name, "precision": precision}
            parts = {
                "network": _network,
                "bound": _bound,
                "published": _published,
                "batches": _batches,
                "blocks": _blocks,
            }
            parts |= {"transformer": _transformer, "detectors": _detectors}
            for part, made in parts.items():
                found[part], said = made(device, precision)
                lines += said
            results.append(found)
    if not results:
        raise UsageError("There are no figures of these devices' kernels: see 'modelled.py kernels'.")
    counts = launches_of_blocks("fp16")
    most, every = max(counts.values()), sum(counts.values())
    lines.append(
        f"\nLaunches: {most} of a block at most, {every} of all; a static block has {STATIC_LAUNCHES}. "
        "Kernels of further tiles, which end at once, are priced and not counted. "
        "From sm_80 on a block of one image in halves has one less, because conv1 makes its lists."
    )
    return {"basis": "modelled", "network": NETWORK, "boards": results, "launches": counts}, "\n".join(lines)
