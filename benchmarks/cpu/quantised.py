"""INT8 copies of a bundle's two networks, with the same scales, and whether a runtime computes them in integers.

Weights of a benchmark are random and only speed is of interest, so that a few crops of scikit-learn's photographs do
for calibration, at forced masks: maskers of random weights may never let a block run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.bundle import Bundle
from dyndeploy.graphs.forced import forced_feeds, forced_masks, replace_masks
from dyndeploy.graphs.inspect import group_of
from dyndeploy.quantization import CalibrationTable, calibrate, quantize_model
from dyndeploy.runtimes import OnnxRuntimeSession

SAMPLES = 16
CALIBRATION_RATE = 0.5
"""Of the forced masks."""


def calibration_table(bundle: Bundle, path: Path, samples: int = SAMPLES) -> CalibrationTable:
    """Calibrate the dynamic network on crops; a file that is there already is taken."""
    if not path.exists():
        (info,), masks = bundle.manifest.inputs, bundle.manifest.masks
        feeds = (
            {info.name: batch, **forced_feeds(forced_masks(masks, CALIBRATION_RATE, seed), masks)}
            for seed, batch in enumerate(crops(info.shape, -(-samples // info.shape[0])))
        )
        table = calibrate(replace_masks(bundle.load_model(), masks), feeds, min_images=samples)
        left_out = sorted(block for block, precision in table.precision.items() if precision != "int8")
        assert not left_out, f"{', '.join(left_out)}: not in INT8, so that it is no benchmark of that: {table.notes}"
        table.save(path)
    return CalibrationTable.load(path)


def dynamic_int8(bundle: Bundle, path: Path, table: CalibrationTable) -> onnx.ModelProto:
    """The dynamic network in INT8; a file that is there already is taken."""
    if not path.exists():
        onnx.save(quantize_model(bundle.load_model(), table), path)
    return onnx.load(path)


def static_int8(bundle: Bundle, path: Path, table: CalibrationTable | None = None, samples: int = SAMPLES) -> Path:
    """The static twin in INT8 by ONNX Runtime's own tools: Q/DQ, U8S8, weights per channel.

    Args:
        bundle: With a twin.
        path: Where it goes; a file that is there already is taken.
        table: Scales of the points that the twin shares with the dynamic network; None leaves all to the tools.
        samples: Crops to calibrate what remains with.
    """
    if path.exists():
        return path
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert bundle.static is not None
    (info,) = bundle.manifest.inputs

    class Crops(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = crops(info.shape, -(-samples // info.shape[0]))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {info.name: batch}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(bundle.static), str(prepared))
    options = {} if table is None else {"TensorQuantOverrides": scales_of_twin(onnx.load(prepared), table)}
    quantize_static(
        str(prepared), str(path), Crops(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, extra_options=options,
    )  # fmt: skip
    prepared.unlink()
    return path


def scales_of_twin(twin: onnx.ModelProto, table: CalibrationTable) -> dict[str, list[Mapping[str, Any]]]:
    """Scales by tensor of a static ResNet, as ONNX Runtime's tools take them: of what its blocks read and rectify.

    The sums before a block's last ReLU have no scale in the dynamic network, which adds before it rounds.
    """
    blocks: dict[str, list[onnx.NodeProto]] = {}
    for node in twin.graph.node:
        blocks.setdefault(group_of(node.name), []).append(node)
    found = {}
    for block, nodes in blocks.items():
        if f"{block}/h1" not in table.tensors:
            continue
        relus = [node.output[0] for node in nodes if node.op_type == "Relu"]
        for point, tensor in zip(("x", "h1", "h2", "y"), (nodes[0].input[0], *relus), strict=True):
            scale, zero = np.array(table.scale(f"{block}/{point}"), np.float32), np.array(0, np.uint8)
            found[tensor] = [{"scale": scale, "zero_point": zero}]
    return found


def integer_convolutions(path: Path, openvino: bool) -> tuple[int, int]:
    """How many convolutions a runtime computes in integers on this machine, by its own word, and how many there are."""
    return _openvino_convolutions(path) if openvino else _onnxruntime_convolutions(path)


def _onnxruntime_convolutions(path: Path) -> tuple[int, int]:
    with OnnxRuntimeSession(path, threads=1, native="off", profile=True) as session:
        feeds = {info.name: np.zeros(info.shape, np.float32) for info in session.inputs}
        for _ in range(2):
            session.run(feeds)
        kinds = [node.op_type for node in session.node_times() if "Conv" in node.op_type]
    return sum(kind in ("QLinearConv", "ConvInteger") for kind in kinds), len(kinds)


def _openvino_convolutions(path: Path) -> tuple[int, int]:
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    graph = core.compile_model(core.read_model(path), "CPU", options).get_runtime_model()
    kinds = [
        str(node.get_rt_info()["primitiveType"].value)
        for node in graph.get_ops()
        if node.get_rt_info()["layerType"].value == "Convolution"
    ]
    return sum(kind.endswith(("_I8", "_U8")) for kind in kinds), len(kinds)


def crops(shape: tuple[int, ...], count: int) -> Iterator[npt.NDArray[np.float32]]:
    """Batches (N, 3, H, W) of random crops, about normalised."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images  # (427, 640, 3), uint8
    random = np.random.default_rng(0)
    batch, channels, height, width = shape
    for _ in range(count):
        result = np.empty((batch, height, width, channels), np.float32)
        for crop in result:
            photograph = photographs[random.integers(len(photographs))]
            top, left = (
                random.integers(photograph.shape[0] - height + 1),
                random.integers(photograph.shape[1] - width + 1),
            )
            crop[...] = photograph[top : top + height, left : left + width]
        yield np.ascontiguousarray((result / 255 - 0.45) / 0.225).transpose(0, 3, 1, 2).copy()
