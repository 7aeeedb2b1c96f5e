"""Bundles of detectors made by hand: a few operators that find image-dependent boxes, for tests without an export.

The images' mean over cells of 8x8 pixels gives scores, labels and masks; the boxes are spread over the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy import files
from dyndeploy.bundle import (
    MANIFEST,
    MODEL,
    REFERENCE,
    BucketInfo,
    Bundle,
    DetectionInfo,
    MaskInfo,
    PartInfo,
    TensorInfo,
    write_manifest,
)
from dyndeploy.bundle.manifest import bucket_folder
from dyndeploy.graphs.split import host_program
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.host_program import OPERATORS
from dyndeploy.tasks.detection import DetectionTask
from tests.bundles import tiny_bundle

CLASSES = ("ant", "bee", "cat")
CATEGORIES = (7, 11, 90)
PLACES, SIDE, CELL, LEAST = 6, 14, 8, 0.2
MASK = "mask/neck/layer"
_OPSET = 17
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

Size = tuple[int, int]


def _constants(size: Size, batch: int, queries: bool) -> dict[str, npt.NDArray[Any]]:
    generator = np.random.default_rng(3)
    corners = np.sort(generator.uniform(-0.1, 1.1, (PLACES, 2, 2)), axis=1).reshape(1, PLACES, 4)
    rows, columns = size[0] // CELL, size[1] // CELL
    cells = rows * columns
    spread = PLACES * cells if queries else PLACES * SIDE * SIDE
    numbers = {
        "corners": corners,
        "mix": generator.normal(0, 1.5, (3 * cells, PLACES)) / np.sqrt(cells),
        "spread": generator.normal(0, 0.3, (3 * cells, spread)),
        "of_classes": generator.normal(0, 1.0, (3 * cells, PLACES * (len(CLASSES) + 1))),
        "least": np.asarray(LEAST),
        "zero": np.asarray(0.0),
    }
    whole = {
        "classes": len(CLASSES),
        "places": [PLACES],
        "flip": [1, 0, 1, 0],
        "one": [1],
        "flat_shape": (batch, -1),
        "mask_shape": (batch, PLACES, SIDE, SIDE),
        "logits_shape": (batch, PLACES, len(CLASSES) + 1),
        "cells_shape": (batch, PLACES, rows, columns),
    }
    return {
        **{name: value.astype(np.float32) for name, value in numbers.items()},
        **{name: np.asarray(value, np.int64) for name, value in whole.items()},
    }


def _nodes(queries: bool, masks: bool) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """What an engine computes, and what the host can."""
    node = helper.make_node
    engine = [
        node("AveragePool", ["input"], ["cells"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        node("Reshape", ["cells", "flat_shape"], ["flat"]),
        node("ReduceMean", ["cells"], ["mean"], axes=[1, 2, 3], keepdims=1),
        node("Greater", ["mean", "zero"], ["bright"]),
        node("Cast", ["bright"], [MASK], to=TensorProto.FLOAT),
        node("MatMul", ["flat", "of_classes" if queries else "mix"], ["mixed"]),
    ]
    if queries or masks:
        engine.append(node("MatMul", ["flat", "spread"], ["flat_masks"]))
    if queries:
        return engine, [
            node("Reshape", ["mixed", "logits_shape"], ["class_logits"]),
            node("Reshape", ["flat_masks", "cells_shape"], ["mask_logits"]),
        ]
    host = [
        node("Sigmoid", ["mixed"], ["all_scores"]),
        node("TopK", ["all_scores", "places"], ["scores", "order"], axis=1),
        node("Mod", ["order", "classes"], ["labels"]),
        node("Greater", ["scores", "least"], ["sure"]),
        node("Cast", ["sure"], ["ones"], to=TensorProto.INT64),
        node("ReduceSum", ["ones", "one"], ["count"], keepdims=0),
        node("Gather", ["image_size", "flip"], ["sides"], axis=1),  # w, h, w, h
        node("Unsqueeze", ["sides", "one"], ["by_place"]),
        node("Mul", ["by_place", "corners"], ["boxes"]),
    ]
    if masks:
        host += [
            node("Reshape", ["flat_masks", "mask_shape"], ["mask_logits"]),
            node("Sigmoid", ["mask_logits"], ["masks"]),
        ]
    return engine, host


def _model(
    name: str, nodes: Sequence[onnx.NodeProto], inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo],
    constants: Mapping[str, npt.NDArray[Any]],
) -> onnx.ModelProto:  # fmt: skip
    used = {name for each in nodes for name in each.input}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(info.name, _TYPES[info.dtype], info.shape) for info in inputs],
        [helper.make_tensor_value_info(info.name, _TYPES[info.dtype], info.shape) for info in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def detector_bundle_by_hand(
    folder: Path,
    *,
    sizes: tuple[Size, ...] = ((64, 96),),
    batch: int = 1,
    masks: bool = False,
    queries: bool = False,
    rounding: bool = True,
    limits: Size = (96, 64),
    parts: bool = False,
) -> Bundle:
    """Write a detector's bundle, with one folder for each further size, and open it.

    Args:
        folder: Where to.
        sizes: (H, W) of its inputs.
        batch: Images per run.
        masks: Whether boxes have masks; queries always have.
        queries: Whether it gives classes and masks of queries.
        rounding: Whether resized pixels are rounded.
        limits: Longest and shortest side of resized images.
        parts: Whether a target runs it as an engine and a host program.
    """
    bundle = _write(folder, sizes, batch, masks, queries, rounding, limits, parts)
    for size in sizes[1:]:
        _write(folder / bucket_folder(size), (size,), batch, masks, queries, rounding, limits, parts)
    return bundle


def _write(
    folder: Path, sizes: tuple[Size, ...], batch: int, masks: bool, queries: bool, rounding: bool, limits: Size,
    parts: bool,
) -> Bundle:  # fmt: skip
    size, others = sizes[0], sizes[1:]
    cells = (size[0] // CELL, size[1] // CELL)
    if queries:
        outputs = (
            TensorInfo("class_logits", (batch, PLACES, len(CLASSES) + 1), "float32"),
            TensorInfo("mask_logits", (batch, PLACES, *cells), "float32"),
        )
    else:
        outputs = (
            TensorInfo("boxes", (batch, PLACES, 4), "float32"),
            TensorInfo("scores", (batch, PLACES), "float32"),
            TensorInfo("labels", (batch, PLACES), "int64"),
            TensorInfo("count", (batch,), "int64"),
            *((TensorInfo("masks", (batch, PLACES, SIDE, SIDE), "float32"),) if masks else ()),
        )
    base = tiny_bundle(folder, static=False, batch=batch)
    inputs = (TensorInfo("input", (batch, 3, *size), "float32"), TensorInfo("image_size", (batch, 2), "float32"))
    constants, (engine, host) = _constants(size, batch, queries), _nodes(queries, masks)
    mask = TensorInfo(MASK, (batch, 1, 1, 1), "float32")
    # The query detectors read no size.
    onnx.save(_model("detector", [*engine, *host], inputs, [*outputs, mask], constants), folder / MODEL)
    chain: tuple[PartInfo, ...] = ()
    if parts:
        widths = {node.output[0]: constants[node.input[1]].shape[1] for node in engine if node.op_type == "MatMul"}
        between = tuple(TensorInfo(name, (batch, width), "float32") for name, width in widths.items())
        chain = (
            PartInfo("part0.onnx", False, inputs[:1], (*between, mask)),
            PartInfo("part1.npz", True, (*between, *(() if queries else inputs[1:])), outputs),
        )
        onnx.save(_model("part0", engine, chain[0].inputs, chain[0].outputs, constants), folder / chain[0].file)
        program = _model("part1", host, chain[1].inputs, chain[1].outputs, constants)
        np.savez_compressed(folder / chain[1].file, **host_program(program, OPERATORS))
    task = DetectionTask(
        size=limits, masks=masks or queries, rounding=rounding, decoding="queries" if queries else "boxes",
        detections=PLACES if not queries else 2 * PLACES, mask_stride=CELL,
    )  # fmt: skip
    generator = np.random.default_rng(7)
    feeds = {
        "input": generator.normal(0, 1, (2 * batch, 3, *size)).astype(np.float32),
        "image_size": np.asarray([size, (size[0] - 9, size[1] - 20)] * batch, np.float32),
    }
    with OnnxRuntimeSession(folder / MODEL, native="off") as session:
        found = [
            session.run({name: value[i : i + batch] for name, value in feeds.items()})
            for i in range(0, 2 * batch, batch)
        ]
    results = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    margin = {f"margin/{MASK}": np.ones((2 * batch, 1, 1, 1), np.float32)}
    np.savez(folder / REFERENCE, **feeds, **results, **margin)
    info = DetectionInfo(
        classes=CLASSES,
        category_ids=CATEGORIES,
        size=limits,
        divisor=32,
        mean=task.mean,
        std=task.std,
        detections=task.detections,
        score_threshold=0.0 if queries else LEAST,
        masks=task.masks,
        rounding=rounding,
        decoding=task.decoding,
        mask_stride=CELL,
        host=task.host,
        buckets=(BucketInfo(size), *(BucketInfo(other, bucket_folder(other)) for other in others)),
        parts=chain,
    )
    found_files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    own = [path for path in found_files if path.parent == folder]
    manifest = replace(
        base.manifest,
        network=replace(base.manifest.network, name="detector", num_classes=len(CLASSES), class_names=CLASSES),
        input_size=size,
        inputs=inputs,
        outputs=outputs,
        masks=(MaskInfo(MASK, "neck", "layer", (batch, 1, 1, 1)),),
        operators=(),
        preprocessing=None,
        detection=info,
        files={path.name: files.sha256(path) for path in sorted(own)},
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)
