"""Files and graphs of a bundle: whole, valid, and as the manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from dyndeploy.bundle import Bundle, MaskInfo, PartInfo, StageInfo, TensorInfo
from dyndeploy.graphs.inspect import all_nodes, foreign_operators, not_finite_weights
from dyndeploy.graphs.tensorrt_bytes import has_bytes, with_plugin_bytes
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.targets import PORTABLE, Target, load_target
from dyndeploy.verification.report import Check


def check_files(bundle: Bundle) -> Check:
    """Every file matches its checksum."""
    damaged = bundle.damaged_files()
    detail = ", ".join(f"{name}: {what}" for name, what in damaged.items())
    return Check("files", not damaged, detail or f"{len(bundle.manifest.files)} files match their checksums")


def check_graph(bundle: Bundle, name: str, model: onnx.ModelProto) -> Check:
    """The graph is valid ONNX of the target's opset and IR, with finite weights and operators known to run there.

    A network that its target runs in parts is one graph for a CPU.
    """
    manifest = bundle.manifest
    target = load_target(PORTABLE if bundle.parts else manifest.target)
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    problems = []
    if not opset == manifest.opset == target.opset:
        problems.append(f"opset {opset}, manifest {manifest.opset}, target {target.opset}")
    if not model.ir_version == manifest.ir_version <= target.ir_version:
        problems.append(f"IR {model.ir_version}, manifest {manifest.ir_version}, target {target.ir_version}")
    return _legal(name, model, target, problems)


def check_part(bundle: Bundle, part: PartInfo, model: onnx.ModelProto) -> Check:
    """An engine's graph is as the manifest lists it, and legal for the target as :func:`check_graph` checks it."""
    target = load_target(bundle.manifest.target)
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    problems = []
    if opset != target.opset or model.ir_version > target.ir_version:
        problems.append(f"opset {opset}, IR {model.ir_version}; target {target.opset}, {target.ir_version}")
    for kind, listed, values in (
        ("inputs", part.inputs, model.graph.input),
        ("outputs", part.outputs, model.graph.output),
    ):
        if _listed(listed) != _shapes(values):
            problems.append(f"{kind} {sorted(set(_listed(listed).items()) ^ set(_shapes(values).items()))} differ")
    return _legal(f"{part.file}: graph", model, target, problems)


def _legal(name: str, model: onnx.ModelProto, target: Target, problems: list[str]) -> Check:
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        problems.append(str(error).splitlines()[0])
    damaged = not_finite_weights(model)
    if damaged:
        problems.append(f"weights that are not finite: {damaged}")
    allowed = target.allowed_operators
    if target.runtime == "tensorrt" and has_bytes(model):
        # What its parser is given, with the two that make TensorRT's own INT8 since 8.0.
        model, allowed = with_plugin_bytes(model), (allowed or frozenset()) | {"QuantizeLinear", "DequantizeLinear"}
    foreign = foreign_operators(model, OPERATORS, allowed)
    if foreign:
        problems.append(f"{', '.join(foreign)} not known to run on {target.name}")
    return Check(name, not problems, "; ".join(problems) or f"opset {opset}, IR {model.ir_version}, {target.name}")


def check_manifest(bundle: Bundle, model: onnx.ModelProto) -> Check:
    """The manifest lists the graph's inputs, outputs and masks, each with its shape."""
    manifest = bundle.manifest
    listed = {
        "inputs": _listed(manifest.inputs),
        "outputs": {**_listed(manifest.outputs), **_listed(manifest.masks)},
    }
    found = {"inputs": _shapes(model.graph.input), "outputs": _shapes(model.graph.output)}
    problems = [
        f"{kind} {sorted(set(listed[kind].items()) ^ set(found[kind].items()))} differ"
        for kind in listed
        if listed[kind] != found[kind]
    ]
    for info in manifest.inputs:
        if info.shape[0] != manifest.batch:
            problems.append(f"{info.name} {info.shape}, batch {manifest.batch}")
        if len(manifest.inputs) == 1 and manifest.input_size not in (None, info.shape[2:]):
            problems.append(f"{info.name} {info.shape}, size {manifest.input_size}")
    return Check(
        "manifest", not problems, "; ".join(problems) or f"{len(found['outputs'])} outputs, {len(manifest.masks)} masks"
    )


def _listed(infos: Iterable[TensorInfo | MaskInfo]) -> dict[str, tuple[int, ...]]:
    return {info.name: info.shape for info in infos}


def _shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def check_operators(bundle: Bundle, models: Sequence[onnx.ModelProto]) -> Check:
    """The dynamic operators are those of the manifest, of this release's versions, with function bodies."""
    nodes = {node.name: node for model in models for node in all_nodes(model.graph) if node.domain == DOMAIN}
    bodies = {(function.domain, function.name) for model in models for function in model.functions}
    problems = []
    if set(nodes) != {info.node for info in bundle.manifest.operators}:
        problems.append("the manifest lists other dynamic operators than the graph has")
    for node in nodes.values():
        spec = OPERATORS.get(node.op_type)
        if spec is None:
            problems.append(f"{node.name}: this release knows no operator {node.op_type}")
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("plugin_version") != str(spec.version).encode() or "plugin_namespace" not in attributes:
            problems.append(f"{node.name} lacks plugin_version {spec.version} or plugin_namespace")
        if (DOMAIN, node.op_type) not in bodies:
            problems.append(f"{node.name} has no function body")
    return Check("operators", not problems, "; ".join(problems) or f"{len(nodes)} dynamic operators with bodies")


def check_stage(bundle: Bundle, stage: StageInfo, model: onnx.ModelProto) -> Check:
    """The manifest lists the inputs, outputs and masks of a stage's graph, in order, each with its shape."""
    batch, masks = bundle.manifest.batch, bundle.stage_masks(stage)
    decided = {mask.name for mask in masks}
    problems = []
    for kind, listed, values in (
        ("inputs", stage.inputs, model.graph.input),
        ("outputs", stage.outputs, [value for value in model.graph.output if value.name not in decided]),
        ("masks", masks, [value for value in model.graph.output if value.name in decided]),
    ):
        found = []
        for value in values:
            first, *rest = value.type.tensor_type.shape.dim
            if first.HasField("dim_value") == bundle.exits.dynamic_batch:
                problems.append(f"the batch size of {value.name} is {'fixed' if first.dim_value else 'open'}")
            found.append((value.name, (first.dim_value or batch, *(dim.dim_value for dim in rest))))
        expected = [(info.name, info.shape) for info in listed]
        if found != expected:
            problems.append(f"{kind} {sorted(set(found) ^ set(expected))} differ")
    detail = f"{len(stage.inputs)} inputs, {len(stage.outputs)} outputs, {len(model.graph.node)} nodes"
    detail += f", {len(masks)} masks" if masks else ""
    return Check(f"{stage.file}: manifest", not problems, "; ".join(problems) or detail)
