"""The function body of the transformer blocks: standard operators that compute what is kept."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import TensorProto

from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._transformer import ATTENTION, ATTENTION_ONLY, INPUTS_OF_MLP, MLP, UNITS_OF_MLP


def layer_norm(b: Body, x: Value, weight: Value | None = None, bias: Value | None = None) -> Value:
    """LayerNorm over the last axis, with the attribute ``epsilon``."""
    mean = b.op("ReduceMean", x, axes=[-1], keepdims=1) if b.opset < 18 else b.op("ReduceMean", x, [-1], keepdims=1)
    centred = x - mean
    square = centred * centred
    variance = (
        b.op("ReduceMean", square, axes=[-1], keepdims=1)
        if b.opset < 18
        else b.op("ReduceMean", square, [-1], keepdims=1)
    )
    epsilon = b.op("CastLike", b.number("epsilon"), x) if b.opset >= 15 else b.number("epsilon")
    normal = b.op("Div", centred, b.op("Sqrt", variance + epsilon))
    if weight is None or bias is None:
        return normal
    return normal * weight + bias


def gelu(b: Body, x: Value) -> Value:
    """The exact GELU."""

    def constant(value: float) -> Value:
        number = b.op("Constant", value_float=value)
        return b.op("CastLike", number, x) if b.opset >= 15 else number

    erf = b.op("Erf", b.op("Div", x, constant(2.0**0.5)))
    return x * (erf + constant(1.0)) * constant(0.5)


def block_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    """The body."""
    x = inputs["x"]

    def bits(name: str) -> Value:
        half = b.op("Constant", value_float=0.5)
        return b.op("Greater", b.op("Cast", inputs[name], to=TensorProto.FLOAT), half)

    width, heads, head_size = b.dim(x, 2), b.dim(inputs["w_qkv"], 1), b.dim(inputs["w_qkv"], 2)
    tokens = b.dim(x, 1)
    inner = heads * head_size
    token = bits("token") if "token" in inputs else None
    head = bits("head") if "head" in inputs else None
    mode = b.integer("head_mode")

    def per_feature(mask: Value, size: Value) -> Value:
        """(N, A) as (N, 1, size), of the type of x."""
        spread = b.op("Expand", b.unsqueeze(mask, 2), b.op("Concat", [1], [1], b.unsqueeze(size // heads, 0), axis=0))
        return b.op("Cast", b.reshape(spread, b.dim(x, 0), 1, -1), to=TensorProto.FLOAT)

    def when(value: int, mask: Value, size: Value) -> Value:
        spread = per_feature(mask, size)
        return b.op("Where", b.op("Equal", mode, value), spread, b.op("Exp", b.zeros_like(spread)))

    def linear(rows: Value, weight: Value, bias: Value) -> Value:
        return b.op("MatMul", rows, b.op("Transpose", weight, perm=[1, 0])) + bias

    def chosen(rows: Value | None, name: str, new: Value, old: Value) -> Value:
        conditions = [] if rows is None else [b.unsqueeze(rows, 2)]
        if name in inputs:
            conditions.append(b.reshape(bits(name), -1, 1, 1))
        if not conditions:
            return new
        condition = conditions[0] if len(conditions) == 1 else b.op("And", *conditions)
        return b.op("Where", condition, new, old)

    normal = layer_norm(b, x, inputs["norm1_weight"], inputs["norm1_bias"])
    qkv = linear(normal, b.reshape(inputs["w_qkv"], inner * 3, width), b.reshape(inputs["b_qkv"], -1))
    qkv = b.op("Transpose", b.reshape(qkv, b.dim(x, 0), tokens, 3, heads, head_size), perm=[2, 0, 3, 1, 4])
    q, k, v = (b.gather(qkv, b.value(index)) for index in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])) * b.number("scale")
    if token is not None:
        lowest = b.op("Constant", value_float=-1e30)
        scores = b.op("Where", b.unsqueeze(token, 1, 2), scores, lowest)
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    if head is not None:
        passed = b.op("Where", b.op("Equal", mode, ATTENTION_ONLY), v, b.zeros_like(v))
        mixed = b.op("Where", b.unsqueeze(head, 2, 3), mixed, passed)
    mixed = b.reshape(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.dim(x, 0), tokens, inner)
    branch = linear(mixed, b.reshape(inputs["w_proj"], width, inner), inputs["b_proj"])
    x = chosen(token, ATTENTION, x + branch, x)

    normal = layer_norm(b, x, inputs["norm2_weight"], inputs["norm2_bias"])
    if head is not None:
        normal = normal * when(INPUTS_OF_MLP, head, width)
    hidden = gelu(b, linear(normal, inputs["w_fc1"], inputs["b_fc1"]))
    if head is not None:
        hidden = hidden * when(UNITS_OF_MLP, head, b.dim(inputs["w_fc1"], 0))
    branch = linear(hidden, inputs["w_fc2"], inputs["b_fc2"])
    rows = None
    if token is not None:
        rows = b.op("Or", token, b.op("Equal", b.integer("token_mlp"), 0))
    return chosen(rows, MLP, x + branch, x)
