"""A tiny bundle of stages made by hand, in the form that the exporter writes: for tests that need no export.

Exit 2 reads a map of stage 0; exit 4 reads maps of both stages before it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dyndeploy import files
from dyndeploy.bundle import (
    REFERENCE,
    STATIC,
    Bundle,
    ExitsInfo,
    Manifest,
    NetworkInfo,
    PreprocessingInfo,
    ReferenceInfo,
    StageInfo,
    TensorInfo,
    ThresholdInfo,
    write_manifest,
)
from dyndeploy.graphs.stages import whole_model

SIZE, CLASSES, CHANNELS = 8, 5, 4
EXITS = (1, 2, 4)
MACS = (1000, 2500, 4000)
THRESHOLDS = ThresholdInfo((0.5, 0.4, -np.inf), "a test", 10, (0.5, 0.3, 0.2), 0.9, "at most 2000 MACs")

_STAGES = (  # inputs, carried
    (("images",), ("x1",)),
    (("x1",), ("x2",)),
    (("x2", "x1"), ()),
)


def _info(name: str, batch: int) -> TensorInfo:
    shapes = {"images": (3, SIZE, SIZE), "logits": (CLASSES,), "confidence": ()}
    return TensorInfo(name, (batch, *shapes.get(name, (CHANNELS, SIZE, SIZE))), "float32")


def _value(info: TensorInfo, batch: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(info.name, TensorProto.FLOAT, (batch, *info.shape[1:]))


def stage_models(batch: int | str) -> list[onnx.ModelProto]:
    """Graphs of the stages; ``batch`` is a number, or a name for any."""
    generator = np.random.default_rng(3)

    def weight(name: str, *shape: int, scale: float = 1.0) -> onnx.TensorProto:
        value = generator.standard_normal(shape) * scale / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(value.astype(np.float32), name)

    models = []
    for inputs, carried in _STAGES:
        nodes, source = [], inputs[0]
        if len(inputs) > 1:
            nodes.append(helper.make_node("Add", list(inputs), ["both"], name="body/Add"))
            source = "both"
        y = carried[0] if carried else "last"
        weights = [
            weight("body/w", CHANNELS, 3 if source == "images" else CHANNELS, 3, 3, scale=1.5),
            weight("head/w", CHANNELS, CLASSES, scale=5),
            weight("head/b", CLASSES),
        ]
        nodes += [
            helper.make_node("Conv", [source, "body/w"], ["convolved"], name="body/Conv", pads=[1] * 4),
            helper.make_node("Relu", ["convolved"], [y], name="body/Relu"),
            helper.make_node("GlobalAveragePool", [y], ["pooled"], name="head/GlobalAveragePool"),
            helper.make_node("Flatten", ["pooled"], ["features"], name="head/Flatten"),
            helper.make_node("Gemm", ["features", "head/w", "head/b"], ["logits"], name="head/Gemm"),
            helper.make_node("Softmax", ["logits"], ["shares"], name="head/Softmax", axis=1),
            helper.make_node("ReduceMax", ["shares"], ["confidence"], name="head/ReduceMax", axes=[1], keepdims=0),
        ]
        graph = helper.make_graph(
            nodes,
            "stage",
            [_value(_info(name, 1), batch) for name in inputs],
            [_value(_info(name, 1), batch) for name in ("logits", *carried, "confidence")],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        models.append(model)
    return models


def staged_bundle(
    folder: Path, *, batch: int | None = None, thresholds: ThresholdInfo | None = THRESHOLDS, target: str = "nano"
) -> Bundle:
    """Write and open the bundle; a batch size of None leaves it open, and is for a CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    size = batch or 1
    models = stage_models(batch or "batch")
    for index, model in enumerate(models):
        onnx.save(model, folder / f"stage{index}.onnx")
    onnx.save(whole_model(models), folder / STATIC)
    np.savez(folder / REFERENCE, input=images(4 * size))
    stages = tuple(
        StageInfo(
            f"stage{index}.onnx",
            exit,
            tuple(_info(name, size) for name in inputs),
            tuple(_info(name, size) for name in ("logits", *carried, "confidence")),
            macs,
        )
        for index, ((inputs, carried), exit, macs) in enumerate(zip(_STAGES, EXITS, MACS, strict=True))
    )
    manifest = Manifest(
        network=NetworkInfo("tiny_exits", "early_exit", (), (), CLASSES, {}, None, None),
        target="cpu" if batch is None else target,
        opset=13,
        ir_version=8,
        batch=size,
        input_size=(SIZE, SIZE),
        precision="fp32",
        inputs=stages[0].inputs,
        outputs=stages[0].outputs[:1],
        masks=(),
        operators=(),
        preprocessing=PreprocessingInfo(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear"),
        reference=ReferenceInfo("random numbers", 4 * size, {}, 1.0),
        static_macs=MACS[-1],
        network_spec={},
        files={path.name: files.sha256(path) for path in sorted(folder.iterdir())},
        tools={"dyndeploy": "test"},
        exits=ExitsInfo(stages, {} if thresholds is None else {"fp32": thresholds}, (3,), batch is None),
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def images(count: int, seed: int = 1) -> np.ndarray:
    """Images (count, 3, SIZE, SIZE) whose contrast differs."""
    generator = np.random.default_rng(seed)
    contrast = generator.uniform(0.2, 3, (count, 1, 1, 1))
    return (generator.standard_normal((count, 3, SIZE, SIZE)) * contrast).astype(np.float32)


def every_exit(pictures: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits and confidences of every stage by plain ONNX Runtime, one image after the other."""
    sessions = [
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for model in stage_models("batch")
    ]
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for picture in pictures:
        tensors, row = {"images": picture[None]}, []
        for session in sessions:
            names = [value.name for value in session.get_outputs()]
            given = {value.name: tensors[value.name] for value in session.get_inputs()}
            tensors |= dict(zip(names, session.run(None, given), strict=True))
            row.append((tensors["logits"], tensors["confidence"]))
        rows.append(row)
    return [
        (np.concatenate([row[k][0] for row in rows]), np.concatenate([row[k][1] for row in rows]))
        for k in range(len(sessions))
    ]
