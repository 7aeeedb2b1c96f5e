"""The function body of the transformer blocks: standard operators that compute what is kept, image by image.

Of an image, the kept rows are gathered, computed as a block without masks, and written back; the weights of kept heads
are gathered where not all are; sublayers and blocks that are off are branches that are not entered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx import TensorProto

from dyndeploy.ops._body import AttributeRef, Body, Value
from dyndeploy.ops._transformer import ATTENTION, ATTENTION_ONLY, INPUTS_OF_MLP, MLP, UNITS_OF_MLP

LAYER_NORM_OPSET = 17
"""From here on LayerNormalization is an operator."""


def layer_norm(b: Body, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """LayerNorm over the last axis, with the attribute ``epsilon``."""
    if b.opset >= LAYER_NORM_OPSET:
        inputs = [x, weight] if bias is None else [x, weight, bias]
        return b.op("LayerNormalization", *inputs, axis=-1, epsilon=AttributeRef("epsilon", AttributeRef.FLOAT))
    centred = x - b.op("ReduceMean", x, axes=[-1], keepdims=1)
    variance = b.op("ReduceMean", centred * centred, axes=[-1], keepdims=1)
    scaled = b.op("Div", centred, b.op("Sqrt", variance + b.number("epsilon"))) * weight
    return scaled if bias is None else scaled + bias


def gelu(b: Body, x: Value) -> Value:
    """The exact GELU."""
    erf = b.op("Erf", b.op("Div", x, b.op("Constant", value_float=2.0**0.5)))
    one, half = b.op("Constant", value_float=1.0), b.op("Constant", value_float=0.5)
    return x * (erf + one) * half


@dataclass(frozen=True)
class _Heads:
    """Which heads a branch of the body computes.

    Attributes:
        kept: Their indices; None where all or none are kept.
        none: Whether none is.
    """

    kept: Value | None = None
    none: bool = False


class _Block:
    """The pieces of a body: values that do not depend on the image."""

    def __init__(self, b: Body, inputs: Mapping[str, Value]) -> None:
        self.inputs = inputs
        self.tokens, self.width = b.dim(inputs["x"], 1), b.dim(inputs["x"], 2)
        self.heads, self.head_size = b.dim(inputs["w_qkv"], 1), b.dim(inputs["w_qkv"], 2)
        self.scale, self.mode = b.number("scale"), b.integer("head_mode")

    def norm(self, b: Body, rows: Value, number: int) -> Value:
        return layer_norm(b, rows, self.inputs[f"norm{number}_weight"], self.inputs[f"norm{number}_bias"])

    def attention(self, b: Body, rows: Value, heads: _Heads) -> Value:
        """Rows (n, D) after the attention and its residual."""
        inputs = self.inputs
        if heads.kept is None and not heads.none:
            return self._attend(b, rows, inputs["w_qkv"], inputs["b_qkv"], inputs["w_proj"])

        def compact(inner: Body) -> Value:
            if heads.kept is None:
                return rows + inputs["b_proj"]
            picked = [inner.gather(inputs[name], heads.kept, axis=1) for name in ("w_qkv", "b_qkv", "w_proj")]
            return self._attend(inner, rows, picked[0], picked[1], picked[2])

        def passing(inner: Body) -> Value:
            return self._attend(inner, rows, inputs["w_qkv"], inputs["b_qkv"], inputs["w_proj"], heads)

        return b.branch(b.op("Equal", self.mode, ATTENTION_ONLY), passing, compact)

    def _attend(
        self, b: Body, rows: Value, w_qkv: Value, b_qkv: Value, w_proj: Value, passing: _Heads | None = None
    ) -> Value:
        weight, bias = b.reshape(w_qkv, -1, self.width), b.reshape(b_qkv, -1)
        qkv = b.linear(self.norm(b, rows, 1), weight, bias)
        # All three with heads in front; their first axis is split without a copy of its own per head.
        qkv = b.op("Transpose", b.reshape(qkv, 0, 3, b.dim(w_qkv, 1), self.head_size), perm=[1, 2, 0, 3])
        q, k, v = (b.op("Gather", qkv, index, axis=0) for index in range(3))
        every = v
        if passing is not None and passing.kept is not None:
            q, k, v = (b.gather(item, passing.kept) for item in (q, k, v))
        if passing is not None and passing.none:
            mixed = v
        else:
            scores = b.op("MatMul", q * self.scale, b.op("Transpose", k, perm=[0, 2, 1]))
            mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        if passing is not None and passing.kept is not None:
            mixed = b.op("ScatterND", every, b.unsqueeze(passing.kept, 1), mixed)
        mixed = b.op("Flatten", b.op("Transpose", mixed, perm=[1, 0, 2]), axis=1)
        return rows + b.linear(mixed, b.op("Flatten", w_proj, axis=1), self.inputs["b_proj"])

    def mlp(self, b: Body, rows: Value, heads: _Heads) -> Value:
        """Rows (n, D) after the MLP and its residual."""
        w1, b1, w2 = (self.inputs[name] for name in ("w_fc1", "b_fc1", "w_fc2"))

        def dense(inner: Body) -> Value:
            return self._mlp(inner, rows, self.norm(inner, rows, 2), w1, b1, w2)

        if heads.kept is None and not heads.none:
            return dense(b)

        def inputs_only(inner: Body) -> Value:
            if heads.kept is None:
                hidden = inner.unsqueeze(gelu(inner, b1), 0)
                return rows + inner.linear(hidden, w2, self.inputs["b_fc2"])
            normal = inner.reshape(self.norm(inner, rows, 2), 0, self.heads, self.head_size)
            weight = inner.gather(inner.reshape(w1, 0, self.heads, -1), heads.kept, axis=1)
            normal = inner.op("Flatten", inner.gather(normal, heads.kept, axis=1), axis=1)
            return self._mlp(inner, rows, normal, inner.op("Flatten", weight, axis=1), b1, w2)

        def units_only(inner: Body) -> Value:
            if heads.kept is None:
                return rows + self.inputs["b_fc2"]
            weight = inner.gather(inner.reshape(w1, self.heads, -1, self.width), heads.kept)
            bias = inner.gather(inner.reshape(b1, self.heads, -1), heads.kept)
            behind = inner.gather(inner.reshape(w2, self.width, self.heads, -1), heads.kept, axis=1)
            return self._mlp(
                inner, rows, self.norm(inner, rows, 2), inner.reshape(weight, -1, self.width),
                inner.reshape(bias, -1), inner.op("Flatten", behind, axis=1),
            )  # fmt: skip

        return b.branch(
            b.op("Equal", self.mode, INPUTS_OF_MLP),
            inputs_only,
            lambda other: other.branch(other.op("Equal", self.mode, UNITS_OF_MLP), units_only, dense),
        )

    def _mlp(self, b: Body, rows: Value, normal: Value, w1: Value, b1: Value, w2: Value) -> Value:
        return rows + b.linear(gelu(b, b.linear(normal, w1, b1)), w2, self.inputs["b_fc2"])


def block_body(b: Body, inputs: Mapping[str, Value]) -> Value:
    """The body.

    Conditions that are constant are folded away with their branches, and releases of ONNX Runtime up to 1.31 then lose
    what branches inside those read (they stop, wait for ever or crash): such conditions choose between leaves only, and
    a batch of one is a loop of one step.
    """
    names = [name for name in ("token", "head", ATTENTION, MLP) if name in inputs]
    half = b.op("Constant", value_float=0.5)
    bits = [b.op("Greater", b.op("Cast", inputs[name], to=TensorProto.FLOAT), half) for name in names]
    block = _Block(b, inputs)

    def each(body: Body, slices: list[Value]) -> Value:
        flags = {name: body.reshape(item, -1) for name, item in zip(names, slices[1:], strict=True)}
        return _image(body, block, slices[0], flags)

    return b.for_each_sample([inputs["x"], *bits], each)


def _image(b: Body, block: _Block, x: Value, flags: Mapping[str, Value]) -> Value:
    """One image: rows (T, D), and the bits of its masks as vectors."""
    if "head" not in flags:
        return _rows(b, block, x, flags, _Heads())
    kept = b.reshape(b.op("NonZero", flags["head"]), -1)
    count = b.dim(kept, 0)

    def some(inner: Body) -> Value:
        return inner.branch(
            inner.op("Equal", count, 0),
            lambda body: _rows(body, block, x, flags, _Heads(none=True)),
            lambda body: _rows(body, block, x, flags, _Heads(kept)),
        )

    # All heads take the weights as they lie, which runtimes have packed.
    return b.branch(b.op("Equal", count, block.heads), lambda inner: _rows(inner, block, x, flags, _Heads()), some)


def _rows(b: Body, block: _Block, x: Value, flags: Mapping[str, Value], heads: _Heads) -> Value:
    runs = {name: b.gather(flags[name], b.value(0)) for name in (ATTENTION, MLP) if name in flags}

    def sublayer(inner: Body, name: str, rows: Value, compute: Callable[[Body, Value, _Heads], Value]) -> Value:
        if name not in runs:
            return compute(inner, rows, heads)
        return inner.branch(runs[name], lambda body: compute(body, rows, heads), lambda body: rows)

    if "token" not in flags:
        return sublayer(b, MLP, sublayer(b, ATTENTION, x, block.attention), block.mlp)

    kept = b.reshape(b.op("NonZero", flags["token"]), -1)
    limited = b.op("Equal", b.integer("token_mlp"), 1)
    some = b.op("Less", 0, b.dim(kept, 0))
    attention, mlp = some, b.op("Or", some, b.op("Not", limited))
    if runs:
        attention, mlp = b.op("And", attention, runs[ATTENTION]), b.op("And", mlp, runs[MLP])

    def written(inner: Body, rows: Value) -> Value:
        return inner.op("ScatterND", x, inner.unsqueeze(kept, 1), rows)

    def run(inner: Body) -> Value:
        rows = inner.gather(x, kept)
        # Also without a gate of the attention: not all operators of runtimes take zero rows.
        rows = inner.branch(attention, lambda body: block.attention(body, rows, heads), lambda body: rows)
        # What the MLP reads: the kept rows, or all of them.
        rows = inner.branch(limited, lambda body: rows, lambda body: written(body, rows))
        rows = sublayer(inner, MLP, rows, block.mlp)
        return inner.branch(limited, lambda body: written(body, rows), lambda body: rows)

    return b.branch(b.op("Or", attention, mlp), run, lambda body: x)
