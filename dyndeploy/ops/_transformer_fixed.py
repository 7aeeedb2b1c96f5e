"""The function body of the transformer blocks of a fixed capacity: standard operators whose shapes are all static.

The kept rows of every image are gathered into as many places as the capacity says, further rows fill the places that
are left and are masked. Where an image keeps more rows than that, the whole batch is computed on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import TensorProto

from dyndeploy.ops._body import Body, Value
from dyndeploy.ops._transformer import ATTENTION, ATTENTION_ONLY, INPUTS_OF_MLP, MLP, UNITS_OF_MLP
from dyndeploy.ops._transformer_body import gelu, layer_norm

_LOWEST = -1e30
"""Score of a masked key: finite, so that an image without any token gives no NaN."""


class _Masked:
    """A block on (N, n, D) rows of which a mask (N, n) says which are kept."""

    def __init__(self, b: Body, inputs: Mapping[str, Value], bits: Mapping[str, Value]) -> None:
        self.inputs, self.bits = inputs, bits
        self.batch, self.width = b.dim(inputs["x"], 0), b.dim(inputs["x"], 2)
        self.heads, self.head_size = b.dim(inputs["w_qkv"], 1), b.dim(inputs["w_qkv"], 2)
        self.mode = b.integer("head_mode")

    def _linear(self, b: Body, rows: Value, weight: Value, bias: Value) -> Value:
        return b.op("MatMul", rows, b.op("Transpose", weight, perm=[1, 0])) + bias

    def _per_feature(self, b: Body, size: Value, mode: int) -> Value:
        """The head mask as (N, 1, size) of 0 and 1; ones where ``head_mode`` is another."""
        heads = b.unsqueeze(self.bits["head"], 2)
        spread = b.op("Concat", [1], [1], b.unsqueeze(size // self.heads, 0), axis=0)
        spread = b.reshape(b.op("Expand", heads, spread), self.batch, 1, -1)
        return b.op("Cast", b.op("Or", spread, b.op("Not", b.op("Equal", self.mode, mode))), to=TensorProto.FLOAT)

    def sublayer(
        self, b: Body, name: str, rows: Value, kept: Value | None, branch: Callable[[Body, Value], Value]
    ) -> Value:
        """``rows + branch(rows)`` on the kept rows of the images that run it."""

        def run(inner: Body) -> Value:
            conditions = [] if kept is None else [inner.unsqueeze(kept, 2)]
            if name in self.bits:
                conditions.append(inner.reshape(self.bits[name], -1, 1, 1))
            updated = rows + branch(inner, rows)
            if not conditions:
                return updated
            condition = conditions[0] if len(conditions) == 1 else inner.op("And", *conditions)
            return inner.op("Where", condition, updated, rows)

        if name not in self.bits:
            return run(b)
        flags = b.op("Cast", self.bits[name], to=TensorProto.FLOAT)
        any_image = b.op("Cast", b.op("ReduceMax", flags, keepdims=0), to=TensorProto.BOOL)
        return b.branch(any_image, run, lambda inner: rows)

    def attention(self, b: Body, rows: Value, kept: Value) -> Value:
        inputs, count = self.inputs, b.dim(rows, 1)
        normal = layer_norm(b, rows, inputs["norm1_weight"], inputs["norm1_bias"])
        qkv = self._linear(b, normal, b.reshape(inputs["w_qkv"], -1, self.width), b.reshape(inputs["b_qkv"], -1))
        qkv = b.reshape(qkv, self.batch, count, 3, self.heads, self.head_size)
        qkv = b.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.gather(qkv, b.value(index)) for index in range(3))
        scores = b.op("MatMul", q * b.number("scale"), b.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = b.op("Where", b.unsqueeze(kept, 1, 2), scores, b.op("Constant", value_float=_LOWEST))
        mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        if "head" in self.bits:
            passed = b.op("Where", b.op("Equal", self.mode, ATTENTION_ONLY), v, b.zeros_like(v))
            mixed = b.op("Where", b.unsqueeze(self.bits["head"], 2, 3), mixed, passed)
        mixed = b.reshape(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.batch, count, -1)
        return self._linear(b, mixed, b.reshape(inputs["w_proj"], self.width, -1), inputs["b_proj"])

    def mlp(self, b: Body, rows: Value) -> Value:
        inputs = self.inputs
        normal = layer_norm(b, rows, inputs["norm2_weight"], inputs["norm2_bias"])
        if "head" in self.bits:
            normal = normal * self._per_feature(b, self.width, INPUTS_OF_MLP)
        hidden = gelu(b, self._linear(b, normal, inputs["w_fc1"], inputs["b_fc1"]))
        if "head" in self.bits:
            hidden = hidden * self._per_feature(b, b.dim(inputs["w_fc1"], 0), UNITS_OF_MLP)
        return self._linear(b, hidden, inputs["w_fc2"], inputs["b_fc2"])


def fixed_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    """The body; heads are masked, because gathered weights have no static shape."""
    half = b.op("Constant", value_float=0.5)
    names = [name for name in ("token", "head", ATTENTION, MLP) if name in inputs]
    bits = {name: b.op("Greater", b.op("Cast", inputs[name], to=TensorProto.FLOAT), half) for name in names}
    block, x, token = _Masked(b, inputs, bits), inputs["x"], bits["token"]
    capacity, limited = b.integer("capacity"), b.op("Equal", b.integer("token_mlp"), 1)
    chosen = b.op("Cast", token, to=TensorProto.FLOAT)
    counts = b.op("Cast", b.op("ReduceSum", chosen, [1], keepdims=0), to=TensorProto.INT64)
    overflows = b.op("Less", capacity, b.op("ReduceMax", counts, keepdims=0))

    every = b.op("Or", token, b.op("Not", token))

    def sublayers(inner: Body, rows: Value, kept: Value, written: Callable[[Body, Value], Value]) -> Value:
        rows = block.sublayer(inner, ATTENTION, rows, kept, lambda body, item: block.attention(body, item, kept))
        # The MLP of all rows is one of other shapes: the rows are written back before it.
        rows = inner.branch(limited, lambda body: rows, lambda body: written(body, rows))
        limits = inner.branch(limited, lambda body: kept, lambda body: every)
        rows = block.sublayer(inner, MLP, rows, limits, block.mlp)
        return inner.branch(limited, lambda body: written(body, rows), lambda body: rows)

    def full(inner: Body) -> Value:
        return sublayers(inner, x, token, lambda body, rows: rows)

    def fixed(inner: Body) -> Value:
        _, places = inner.several("TopK", 2, chosen, inner.unsqueeze(capacity, 0), axis=1, largest=1, sorted=0)
        kept = inner.op("GatherElements", token, places, axis=1)
        first = inner.unsqueeze(inner.arange(block.batch) * inner.dim(x, 1), 1)
        flat = inner.reshape(places + first, -1)
        table = inner.reshape(x, -1, block.width)
        rows = inner.reshape(inner.gather(table, flat), block.batch, -1, block.width)

        def written(body: Body, updated: Value) -> Value:
            updated = body.reshape(updated, -1, block.width)
            scattered = body.op("ScatterND", table, body.unsqueeze(flat, 1), updated)
            return body.reshape(scattered, block.batch, -1, block.width)

        return sublayers(inner, rows, kept, written)

    return b.branch(overflows, full, fixed)
