"""A staged bundle made by hand that really classifies digits: for tests that need early exits but no export.

Four linear or small classifiers on the same 8x8 image, each on more of it: exit 1 sees 2x2 means, exit 2 4x4 means,
exit 3 the sums of the columns (it costs more than exit 2 and is worse), exit 4 every pixel through a hidden layer. The
weights are those that scikit-learn finds on the digits that are trained on.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy import files
from dyndeploy.bundle import (
    CONFIDENCE,
    LOGITS,
    MANIFEST,
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
    write_manifest,
)
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.data import digits
from dyndeploy.runtimes import open_staged

SIZE, CLASSES, HIDDEN, OPSET = 8, 10, 48, 17
PREPROCESSING = PreprocessingInfo(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")
WINDOWS = {1: (4, 4), 2: (2, 2), 3: (8, 1)}
"""Average pooling in front of each of the first three exits."""
MACS = (40, 200, 280, 280 + 64 * HIDDEN + HIDDEN * CLASSES)

Array = npt.NDArray[np.float32]


def _pooled(images: Array, window: tuple[int, int]) -> Array:
    height, width = window
    grey = images[:, 0].reshape(len(images), SIZE // height, height, SIZE // width, width)
    return np.asarray(grey.mean(axis=(2, 4)).reshape(len(images), -1), np.float32)


@functools.cache
def _weights() -> dict[str, Array]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    train = digits(PREPROCESSING, (SIZE, SIZE)).train
    weights: dict[str, Array] = {}
    for number, window in WINDOWS.items():
        model = LogisticRegression(C=30, max_iter=300).fit(_pooled(train.images, window), train.labels)
        weights |= {f"w{number}": model.coef_.T, f"b{number}": model.intercept_}
    network = MLPClassifier((HIDDEN,), max_iter=60, tol=0, learning_rate_init=0.01, random_state=0)
    with warnings.catch_warnings():
        # A fixed number of steps is the point.
        warnings.simplefilter("ignore")
        network.fit(_pooled(train.images, (1, 1)), train.labels)
    weights |= {
        "w4": network.coefs_[0],
        "b4": network.intercepts_[0],
        "v4": network.coefs_[1],
        "c4": network.intercepts_[1],
    }
    return {name: np.asarray(value, np.float32) for name, value in weights.items()}


def _classifier(number: int, source: str) -> list[onnx.NodeProto]:
    """Nodes from grey pixels (N, 1, 8, 8) to the logits of an exit."""
    nodes = []
    if number in WINDOWS:
        window = WINDOWS[number]
        nodes.append(helper.make_node("AveragePool", [source], ["pooled"], kernel_shape=window, strides=window))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        nodes.append(helper.make_node("Gemm", ["flat", f"w{number}", f"b{number}"], [LOGITS]))
        return nodes
    nodes.append(helper.make_node("Flatten", [source], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "w4", "b4"], ["sum"]))
    nodes.append(helper.make_node("Relu", ["sum"], ["hidden"]))
    nodes.append(helper.make_node("Gemm", ["hidden", "v4", "c4"], [LOGITS]))
    return nodes


def _graph(number: int, first: bool, confident: bool) -> onnx.ModelProto:
    def value(name: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    nodes = [helper.make_node("ReduceMean", ["images"], ["grey"], axes=[1], keepdims=1)] if first else []
    nodes += _classifier(number, "grey")
    outputs = [value(LOGITS, CLASSES)]
    if first and confident:
        outputs.append(value("grey", 1, SIZE, SIZE))
    if confident:
        nodes.append(helper.make_node("Softmax", [LOGITS], ["probabilities"], axis=-1))
        nodes.append(helper.make_node("ReduceMax", ["probabilities"], [CONFIDENCE], axes=[1], keepdims=0))
        outputs.append(value(CONFIDENCE))
    for index, node in enumerate(nodes):
        node.name = f"exit{number}/{index}_{node.op_type}"
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(array, name) for name, array in _weights().items() if name in used]
    source = value("images", 3, SIZE, SIZE) if first else value("grey", 1, SIZE, SIZE)
    graph = helper.make_graph(nodes, f"exit{number}", [source], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def digits_bundle(folder: Path, exits: tuple[int, ...] = (1, 2, 3, 4), precision: str = "fp32") -> Bundle:
    """Write the bundle and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    images = TensorInfo("images", (1, 3, SIZE, SIZE), "float32")
    grey = TensorInfo("grey", (1, 1, SIZE, SIZE), "float32")
    logits, confidence = TensorInfo(LOGITS, (1, CLASSES), "float32"), TensorInfo(CONFIDENCE, (1,), "float32")
    stages = []
    for index, number in enumerate(exits):
        onnx.save(_graph(number, index == 0, True), folder / f"stage{index}.onnx")
        outputs = (logits, grey, confidence) if index == 0 else (logits, confidence)
        stages.append(StageInfo(f"stage{index}.onnx", number, (grey if index else images,), outputs, MACS[number - 1]))
    onnx.save(_graph(4, True, False), folder / STATIC)
    pictures = digits(PREPROCESSING, (SIZE, SIZE)).train.images[:2]
    np.savez(folder / REFERENCE, input=pictures)
    manifest = Manifest(
        network=NetworkInfo("digits_by_hand", "early_exit", (), (), CLASSES, {}, None, None),
        target="cpu",
        opset=OPSET,
        ir_version=8,
        batch=1,
        input_size=(SIZE, SIZE),
        precision=precision,
        inputs=(images,),
        outputs=(logits,),
        masks=(),
        operators=(),
        preprocessing=PREPROCESSING,
        reference=ReferenceInfo("digits", len(pictures), {}, 1.0),
        static_macs=64 * HIDDEN + HIDDEN * CLASSES,
        network_spec={},
        files={path.name: files.sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
        tools={"dyndeploy": "test"},
        exits=ExitsInfo(tuple(stages), {}, tuple(sorted({1, 2, 3, 4} - set(exits))), dynamic_batch=True),
    )
    write_manifest(folder, manifest)
    with open_staged(Bundle.open(folder)) as session:
        results = session.run_all(pictures)
    reference = {exit_logits(number): value for number, value in zip(exits, results, strict=True)}
    np.savez(folder / REFERENCE, input=pictures, **reference)
    sums = {**manifest.files, REFERENCE: files.sha256(folder / REFERENCE)}
    write_manifest(folder, Manifest(**{**vars(manifest), "files": sums}))
    return Bundle.open(folder)
