"""Tiny bundles made by hand, in the form that the exporter writes: for tests that need a bundle but no export.

The network: a convolution (the stem), two dynamic residual blocks, global mean, classifier. ``static.onnx`` is the
same network with every mask bit set and no maskers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dyndeploy import files
from dyndeploy.bundle import (
    MANIFEST,
    MODEL,
    REFERENCE,
    STATIC,
    Bundle,
    Manifest,
    MaskInfo,
    NetworkInfo,
    OperatorInfo,
    PreprocessingInfo,
    ReferenceInfo,
    TensorInfo,
    write_manifest,
)
from dyndeploy.graphs.forced import PREFIX, forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.prediction.laudnet import BlockSpec, NetworkSpec, StemSpec
from dyndeploy.runtimes import OnnxRuntimeSession

SIZE = 16
STEM_MACS = 16 * 16 * 8 * 27
BLOCK_MACS = {
    "layer1.0": 16 * 16 * 8 * 4 + 64 * 9 * 4 * 4 + 64 * 4 * 16 + 64 * 8 * 16,
    "layer2.0": 64 * 16 * 4 + 64 * 9 * 4 * 4 + 64 * 4 * 16,
}
HEAD_MACS = 16 * 10
STATIC_MACS = STEM_MACS + sum(BLOCK_MACS.values()) + HEAD_MACS
CHANNEL_GROUPS = 2
MODES = ("spatial", "layer", "channel", "both")

_BLOCKS = {  # name: channels, stride, projection
    "layer1.0": (8, 2, True),
    "layer2.0": (16, 1, False),
}
_HIDDEN, _OUT, _CLASSES, _OPSET = 4, 16, 10, 17


def _weights(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {"stem.w": normal(8, 3, 3, 3), "stem.b": normal(8)}
    for name, (channels, _, projection) in _BLOCKS.items():
        weights |= {
            f"{name}.w1": normal(_HIDDEN, channels),
            f"{name}.b1": normal(_HIDDEN),
            f"{name}.w2": normal(_HIDDEN, _HIDDEN, 3, 3),
            f"{name}.b2": normal(_HIDDEN),
            f"{name}.w3": normal(_OUT, _HIDDEN),
            f"{name}.b3": normal(_OUT),
        }
        if projection:
            weights |= {f"{name}.wd": normal(_OUT, channels), f"{name}.bd": normal(_OUT)}
        weights |= {
            f"{name}.spatial.w": normal(1, channels),
            f"{name}.spatial.b": np.zeros(1, np.float32),
            f"{name}.channel.w": normal(CHANNEL_GROUPS, channels),
            f"{name}.channel.b": np.zeros(CHANNEL_GROUPS, np.float32),
        }
    return weights | {"head.w": normal(_CLASSES, _OUT), "head.b": normal(_CLASSES)}


def _model(
    nodes: list[onnx.NodeProto], batch: int, masks: list[MaskInfo], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (batch, 3, SIZE, SIZE))],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, _CLASSES)),
            *(helper.make_tensor_value_info(mask.name, TensorProto.FLOAT, mask.shape) for mask in masks),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
    )
    types = sorted({node.op_type for node in nodes if node.domain == DOMAIN})
    imports = [helper.make_opsetid("", _OPSET), *([helper.make_opsetid(DOMAIN, 1)] if types else [])]
    functions = [OPERATORS[name].function(_OPSET) for name in types]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    onnx.checker.check_model(model)
    return model


def _stem() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["input", "stem.w", "stem.b"], ["c0"], name="stem/conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["x0"], name="stem/relu"),
    ]


def _dynamic(batch: int, mode: str) -> tuple[list[onnx.NodeProto], list[MaskInfo]]:
    nodes = [*_stem(), helper.make_node("Transpose", ["x0"], ["y0"], name="stem/transpose", perm=[0, 2, 3, 1])]
    masks: list[MaskInfo] = []
    plugin = {"domain": DOMAIN, "plugin_version": "1", "plugin_namespace": ""}
    for index, (name, (_, stride, projection)) in enumerate(_BLOCKS.items()):
        x, used = f"y{index}", []
        if mode in ("spatial", "both", "layer"):
            kind, side = ("layer", 1) if mode == "layer" else ("spatial", 4)
            mask = MaskInfo(f"mask/{name}/{kind}", name, kind, (batch, 1, side, side))
            inputs = [x, f"{name}.spatial.w", f"{name}.spatial.b"]
            nodes.append(
                helper.make_node(
                    "SpatialMasker",
                    inputs,
                    [mask.name],
                    name=f"{name}/SpatialMasker",
                    mask_height=side,
                    mask_width=side,
                    **plugin,
                )
            )
            used.append(mask)
        if mode in ("channel", "both"):
            mask = MaskInfo(f"mask/{name}/channel", name, "channel", (batch, CHANNEL_GROUPS))
            inputs = [x, f"{name}.channel.w", f"{name}.channel.b"]
            nodes.append(helper.make_node("ChannelMasker", inputs, [mask.name], name=f"{name}/ChannelMasker", **plugin))
            used.append(mask)
        masks += used
        kind = {"spatial": "Spatial", "layer": "Layer", "channel": "Channel", "both": "SpatialChannel"}[mode]
        op_type = f"{kind}Bottleneck{'Projection' if projection else ''}"
        ports = ["w1", "b1", "w2", "b2", "w3", "b3", *(["wd", "bd"] if projection else [])]
        nodes.append(
            helper.make_node(
                op_type,
                [x, *(mask.name for mask in used), *(f"{name}.{port}" for port in ports)],
                [f"y{index + 1}"],
                name=f"{name}/{op_type}",
                strides=[stride] * 2,
                dilations=[1, 1],
                pads=[1] * 4,
                group=1,
                **plugin,
            )
        )
    last = f"y{len(_BLOCKS)}"
    nodes.append(helper.make_node("ReduceMean", [last], ["pooled"], name="head/mean", axes=[1, 2], keepdims=0))
    nodes.append(helper.make_node("Gemm", ["pooled", "head.w", "head.b"], ["logits"], name="head/fc", transB=1))
    return nodes, masks


def _static() -> list[onnx.NodeProto]:
    nodes = _stem()
    for index, (name, (_, stride, projection)) in enumerate(_BLOCKS.items()):
        x, y = f"x{index}", f"x{index + 1}"
        shortcut = x
        for number, inputs in enumerate(([x], [f"{name}/1"], [f"{name}/2"]), start=1):
            spatial = number == 2
            nodes.append(
                helper.make_node(
                    "Conv",
                    [*inputs, f"{name}.w{number}" + ("" if spatial else ".conv"), f"{name}.b{number}"],
                    [f"{name}/c{number}"],
                    name=f"{name}/conv{number}",
                    **({"pads": [1] * 4, "strides": [stride] * 2} if spatial else {}),
                )
            )
            if number < 3:
                relu = helper.make_node("Relu", [f"{name}/c{number}"], [f"{name}/{number}"], name=f"{name}/r{number}")
                nodes.append(relu)
        if projection:
            shortcut = f"{name}/shortcut"
            weights = [f"{name}.wd.conv", f"{name}.bd"]
            nodes.append(
                helper.make_node("Conv", [x, *weights], [shortcut], name=f"{name}/downsample", strides=[stride] * 2)
            )
        nodes.append(helper.make_node("Add", [f"{name}/c3", shortcut], [f"{name}/sum"], name=f"{name}/add"))
        nodes.append(helper.make_node("Relu", [f"{name}/sum"], [y], name=f"{name}/relu"))
    last = f"x{len(_BLOCKS)}"
    nodes.append(helper.make_node("ReduceMean", [last], ["pooled"], name="head/mean", axes=[2, 3], keepdims=0))
    nodes.append(helper.make_node("Gemm", ["pooled", "head.w", "head.b"], ["logits"], name="head/fc", transB=1))
    return nodes


def tiny_models(mode: str = "spatial", batch: int = 1) -> tuple[onnx.ModelProto, onnx.ModelProto, list[MaskInfo]]:
    """The dynamic graph, its static twin and the masks."""
    weights = _weights()
    weights |= {f"{name}.conv": value[..., None, None] for name, value in weights.items() if value.ndim == 2}
    nodes, masks = _dynamic(batch, mode)
    return _model(nodes, batch, masks, weights), _model(_static(), batch, [], weights), masks


def tiny_spec() -> NetworkSpec:
    """What the manifest says of the network."""
    return NetworkSpec(
        name="tiny",
        input_size=(SIZE, SIZE),
        stem=StemSpec(3, 8, 3, 1),
        stages=(1, 1),
        blocks=(
            BlockSpec("layer1.0", 8, _HIDDEN, _OUT, 16, 16, stride=2, projection=True, mask_before_norm=True),
            BlockSpec("layer2.0", 16, _HIDDEN, _OUT, 8, 8, mask_before_norm=True),
        ),
        classes=_CLASSES,
    )


def tiny_bundle(
    folder: Path,
    *,
    mode: str = "spatial",
    batch: int = 1,
    static: bool = True,
    images: int = 2,
    target: str = "cpu",
    precision: str = "fp32",
) -> Bundle:
    """Write a bundle of the tiny network and open it."""
    folder.mkdir(parents=True, exist_ok=True)
    model, twin, masks = tiny_models(mode, batch)
    onnx.save(model, folder / MODEL)
    if static:
        onnx.save(twin, folder / STATIC)
    pictures = np.random.default_rng(1).standard_normal((images * batch, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(folder / REFERENCE, input=pictures)
    spec = tiny_spec()
    manifest = Manifest(
        network=NetworkInfo("tiny", mode, (2, 2), (2, 2), _CLASSES, {}, None, None),
        target=target,
        opset=_OPSET,
        ir_version=8,
        batch=batch,
        input_size=(SIZE, SIZE),
        precision=precision,
        inputs=(TensorInfo("input", (batch, 3, SIZE, SIZE), "float32"),),
        outputs=(TensorInfo("logits", (batch, _CLASSES), "float32"),),
        masks=tuple(masks),
        operators=tuple(
            OperatorInfo(node.name, node.op_type, 1, node.name.split("/")[0])
            for node in model.graph.node
            if node.domain == DOMAIN
        ),
        preprocessing=PreprocessingInfo(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear"),
        reference=ReferenceInfo("random numbers", len(pictures), {}, 1.0),
        static_macs=STATIC_MACS,
        network_spec=spec.to_json(),
        files={path.name: files.sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
        tools={"dyndeploy": "test"},
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def with_reference(bundle: Bundle) -> Bundle:
    """The bundle with complete reference tensors, as the exporter writes them; ONNX Runtime stands for PyTorch."""
    masks, inputs, outputs = (
        bundle.manifest.masks,
        [info.name for info in bundle.manifest.inputs],
        [info.name for info in bundle.manifest.outputs],
    )
    reference, batch = bundle.reference(), bundle.manifest.batch
    columns: dict[str, list[np.ndarray]] = {}
    with (
        OnnxRuntimeSession(bundle.model, native="off") as own,
        OnnxRuntimeSession(overlay_forced_masks(bundle.load_model(), masks), native="off") as overlay,
    ):
        for index in range(len(reference[inputs[0]]) // batch):
            feeds = {name: reference[name][index * batch : (index + 1) * batch] for name in inputs}
            drawn = forced_masks(masks, 0.5, seed=index)
            forced = overlay.run({**feeds, **forced_feeds(drawn, masks)})
            entry = {**feeds, **own.run(feeds)}
            entry |= {f"margin/{mask.name}": np.ones(mask.shape, np.float32) for mask in masks}
            entry |= {PREFIX + name: value for name, value in drawn.items()}
            entry |= {PREFIX + name: forced[name] for name in outputs}
            for name, value in entry.items():
                columns.setdefault(name, []).append(value)
    np.savez(bundle.path / REFERENCE, **{name: np.concatenate(parts) for name, parts in columns.items()})
    return resealed(bundle)


def resealed(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with the checksums of its files as they are now, and changes of its manifest."""
    checksums = {path.name: files.sha256(path) for path in bundle.path.iterdir() if path.name != MANIFEST}
    write_manifest(bundle.path, replace(bundle.manifest, files=checksums, **changes))
    return Bundle.open(bundle.path)


def many_bundle(folder: Path, *, mode: str = "spatial", batch: int = 1) -> Bundle:
    """A tiny bundle that takes a second input (a gain per stem channel) and gives a second output (the features)."""
    bundle = tiny_bundle(folder, mode=mode, batch=batch)
    for path, load in ((bundle.model, bundle.load_model), (bundle.path / STATIC, bundle.load_static)):
        model = load()
        (relu,) = (node for node in model.graph.node if node.name == "stem/relu")
        relu.input[0] = "gained"
        model.graph.node.insert(1, helper.make_node("Mul", ["c0", "gain/stem"], ["gained"], name="stem/gain"))
        model.graph.input.append(helper.make_tensor_value_info("gain/stem", TensorProto.FLOAT, (batch, 8, 1, 1)))
        model.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, (batch, _OUT)))
        onnx.checker.check_model(model)
        onnx.save(model, path)
    images = bundle.reference()["input"]
    gains = np.random.default_rng(2).uniform(0.5, 2, (len(images), 8, 1, 1)).astype(np.float32)
    np.savez(folder / REFERENCE, **{"input": images, "gain/stem": gains})
    inputs = (*bundle.manifest.inputs, TensorInfo("gain/stem", (batch, 8, 1, 1), "float32"))
    outputs = (*bundle.manifest.outputs, TensorInfo("pooled", (batch, _OUT), "float32"))
    reference = replace(bundle.manifest.reference, images=len(images))
    return with_reference(resealed(bundle, inputs=inputs, outputs=outputs, reference=reference))


def parted_bundle(folder: Path, *, mode: str = "spatial", batch: int = 1) -> Bundle:
    """A tiny bundle whose nodes are named as a detector's: the mean is its neck, the classifier its heads."""
    bundle = tiny_bundle(folder, mode=mode, batch=batch)
    for path, load in ((bundle.model, bundle.load_model), (bundle.path / STATIC, bundle.load_static)):
        model = load()
        mean, classifier = model.graph.node[-2:]
        mean.name, classifier.name = "neck/ReduceMean", "heads/Gemm"
        classifier.output[0] = "raw"
        model.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"], name="post-processing/Softmax"))
        onnx.checker.check_model(model)
        onnx.save(model, path)
    return resealed(bundle)
