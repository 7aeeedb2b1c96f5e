"""Batch norms: none is left in an exported graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from dyndeploy.graphs.inspect import drop_unused
from dyndeploy.graphs.passes.shared import Double, Links, attributes_of, drop_attribute, known_shapes

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def fold_batch_norm(model: onnx.ModelProto, context: Context) -> None:
    """``fold::batch_norm``: into the linear layer before it, else into the one behind it, else as a product and a sum.

    Layers are Conv, ConvTranspose, Gemm, and MatMul of matrices with or without an Add. A convolution behind the norm
    takes it only where its padding is the norm's image of zero, that is zero. Layers that share weights with others get
    copies. Where there is no layer, or something else reads what lies between, a Mul and an Add with constants per
    channel remain, which runtimes fuse. Computed in double precision.
    """
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    shapes = known_shapes(model) if norms else {}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    for norm in norms:
        links = Links(model)
        if not all(name in links.constants for name in norm.input[1:]) or len(norm.output) > 1:
            continue
        scale, bias, mean, variance = (links.value(name) for name in norm.input[1:])
        scale = scale / np.sqrt(variance + attributes_of(norm).get("epsilon", 1e-5))
        shift = bias - mean * scale
        before = _layer_before(norm, links, ranks)
        behind = _layer_behind(norm, shift, links, ranks)
        if before is not None:
            _fold_behind(before, scale, shift, links)
            before.output[0] = norm.output[0]
        elif behind is not None:
            _fold_before(behind, scale, shift, links)
            behind.input[0] = norm.input[0]
        elif not _write_out(norm, scale, shift, links, ranks):
            continue
        model.graph.node.remove(norm)
    drop_unused(model)


def is_linear(node: onnx.NodeProto, links: Links) -> bool:
    """Whether a node is a convolution or linear layer with constant weights."""
    plain = all(
        attributes_of(node).get(name, value) == value for name, value in (("alpha", 1), ("beta", 1), ("transA", 0))
    )
    constant = len(node.input) > 1 and all(name in links.constants for name in node.input[1:])
    return node.op_type in ("Conv", "ConvTranspose", "Gemm") and plain and constant


def _layer_before(norm: onnx.NodeProto, links: Links, ranks: dict[str, int]) -> onnx.NodeProto | None:
    """The layer whose output only the norm reads; a matrix product with a bias becomes a Gemm."""
    node = links.producers.get(norm.input[0])
    if node is None or links.only_reader(norm.input[0]) is None:
        return None
    if node.op_type == "Add":
        product, bias = _product_and_bias(node, links)
        if product is None or not _is_matrix_product(product, links, ranks):
            return None
        if links.value(bias).size not in (1, links.constants[product.input[1]].dims[1]):
            return None
        _as_gemm(product)
        # Broadcast to one bias per column, as a layer has it.
        wide = np.broadcast_to(links.value(bias).ravel(), (links.constants[product.input[1]].dims[1],))
        product.input.append(links.add(f"{product.output[0]}/bias", wide, bias))
        product.output[0] = node.output[0]
        links.model.graph.node.remove(node)
        return product
    if _is_matrix_product(node, links, ranks):
        _as_gemm(node)
    return node if is_linear(node, links) else None


def _layer_behind(norm: onnx.NodeProto, shift: Double, links: Links, ranks: dict[str, int]) -> onnx.NodeProto | None:
    """The only reader of the norm, if it is a layer that can take the norm in exactly."""
    node = links.only_reader(norm.output[0])
    if node is None or node.input[0] != norm.output[0] or ranks.get(norm.input[0], 2) != len(_weight_dims(node, links)):
        return None
    if _is_matrix_product(node, links, ranks, norm.input[0]):
        _as_gemm(node)
    if not is_linear(node, links) or node.op_type == "ConvTranspose":
        return None
    attributes = attributes_of(node)
    padded = any(attributes.get("pads", [])) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    return None if node.op_type == "Conv" and padded and shift.any() else node


def _weight_dims(node: onnx.NodeProto, links: Links) -> list[int]:
    return list(links.constants[node.input[1]].dims) if len(node.input) > 1 and node.input[1] in links.constants else []


def _product_and_bias(add: onnx.NodeProto, links: Links) -> tuple[onnx.NodeProto | None, str]:
    """The matrix product that only an Add reads, and the constant that it adds."""
    for position in (0, 1):
        product, bias = links.producers.get(add.input[position]), add.input[1 - position]
        alone = links.only_reader(add.input[position]) is not None
        if product is not None and product.op_type == "MatMul" and alone and bias in links.constants:
            return product, bias
    return None, ""


def _is_matrix_product(node: onnx.NodeProto, links: Links, ranks: dict[str, int], data: str | None = None) -> bool:
    """Whether a MatMul multiplies rows (N, C) by a constant matrix: only then are columns the norm's channels."""
    if node.op_type != "MatMul" or len(_weight_dims(node, links)) != 2:
        return False
    return ranks.get(data or node.input[0]) == 2


def _as_gemm(product: onnx.NodeProto) -> None:
    product.op_type = "Gemm"


def _fold_behind(node: onnx.NodeProto, scale: Double, shift: Double, links: Links) -> None:
    weight, attributes = links.value(node.input[1]), attributes_of(node)
    if node.op_type == "ConvTranspose":
        # (in, out / group, *kernel): inputs and outputs of one group stand together.
        group = attributes.get("group", 1)
        split = weight.reshape(group, -1, *weight.shape[1:])
        per_output = scale.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
        weight = (split * per_output).reshape(weight.shape)
    elif node.op_type == "Conv" or attributes.get("transB", 0):
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        weight = weight * scale
    bias = shift if len(node.input) < 3 else shift + scale * links.value(node.input[2])
    set_weights(node, weight, bias, links)


def _fold_before(node: onnx.NodeProto, scale: Double, shift: Double, links: Links) -> None:
    weight, attributes = links.value(node.input[1]), attributes_of(node)
    old = np.zeros(1) if len(node.input) < 3 else links.value(node.input[2])
    if node.op_type == "Conv":
        # (out, in / group, *kernel): outputs of one group see that group's inputs.
        group = attributes.get("group", 1)
        split = weight.reshape(group, -1, *weight.shape[1:])
        per_input = (group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        folded = (split * scale.reshape(per_input)).reshape(weight.shape)
        bias = (split * shift.reshape(per_input)).reshape(len(weight), -1).sum(1) + old
    else:
        rows = weight if attributes.get("transB", 0) else weight.T
        bias = rows @ shift + old
        folded = rows * scale
        folded = folded if rows is weight else folded.T
    set_weights(node, folded, bias, links)


def set_weights(node: onnx.NodeProto, weight: Double, bias: Double, links: Links) -> None:
    """Give a layer weights of its own: others may share the ones that it had."""
    like, name = node.input[1], node.name or node.output[0]
    drop_attribute(node, "beta")
    made = []
    for kind, value in (("weight", weight), ("bias", bias)):
        full = f"{name}/folded_{kind}"
        while full in links.constants:
            full += "_"
        made.append(links.add(full, np.ascontiguousarray(value), like))
    node.input[:] = [node.input[0], *made]


def _write_out(norm: onnx.NodeProto, scale: Double, shift: Double, links: Links, ranks: dict[str, int]) -> bool:
    """Write a norm as a product and a sum; tells whether its rank, and so the place of the channels, is known."""
    rank = ranks.get(norm.input[0])
    if rank is None:
        return False
    name, graph = norm.name or norm.output[0], links.model.graph
    like, inner = norm.input[1], f"{norm.output[0]}/scaled"
    per_channel = (-1, *[1] * (rank - 2))
    factor = links.add(f"{name}/scale", scale.reshape(per_channel), like)
    summand = links.add(f"{name}/shift", shift.reshape(per_channel), like)
    index = list(graph.node).index(norm)
    graph.node.insert(index, helper.make_node("Add", [inner, summand], norm.output, name=f"{name}/shift"))
    graph.node.insert(index, helper.make_node("Mul", [norm.input[0], factor], [inner], name=f"{name}/scale"))
    return True
