"""An operator and a kind of gate that live outside the package go the whole way; nobody asks for names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import Block, Gate, LoweredCall
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.measure import profile_bundle
from dyndeploy.ops import (
    GATE_KINDS,
    OPERATORS,
    Counts,
    Element,
    GateKind,
    OperatorSpec,
    Port,
    Role,
    Work,
    register_operator,
)
from dyndeploy.reporting import compare_profile, predict_profile
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_checked
from dyndeploy.runtimes.tensorrt_plan import plan_build

ROW = GateKind("row", ("N", "T"), "row of the input")
"""A kind of gate that the package does not know."""


def _reference(x: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.where(keep[..., None] > 0.5, torch.relu(x @ weight.T + bias), x)
    return y, keep.sum(1).to(torch.int64)


def _infer_shape(shapes: Sequence[tuple[int, ...]], attributes: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    x, keep, weight, bias = shapes
    if len(x) != 3 or keep != x[:2] or weight != (x[2], x[2]) or bias != (x[2],):
        raise UsageError(f"TokenLinear: {shapes} do not fit.")
    return x, (x[0],)


def _body(b: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    linear = b.op("MatMul", inputs["x"], b.op("Transpose", inputs["weight"], perm=[1, 0]))
    computed = b.op("Relu", b.op("Add", linear, inputs["bias"]))
    chosen = b.op("Cast", b.unsqueeze(inputs["keep"], 2), to=TensorProto.BOOL)
    count = b.op("Cast", b.op("ReduceSum", inputs["keep"], [1], keepdims=0), to=TensorProto.INT64)
    return b.op("Where", chosen, computed, inputs["x"]), count


def _tokens(mask: Any) -> Counts:
    return {"tokens": mask.reshape(mask.shape[0], -1).sum(1)}


def _work(shapes: Sequence[tuple[int, ...]], attributes: Any, counts: Counts, element: float) -> Work:
    (batch, tokens, width), size = shapes[0], shapes[0][2] ** 2
    return Work(
        counts["tokens"] * size, element * batch * tokens * width, element * batch * tokens * width, element * size
    )


TOKEN_LINEAR = OperatorSpec(
    name="TokenLinear",
    version=1,
    kind="token_linear",
    summary="A linear layer and a ReLU on the tokens that are kept, and how many those are.",
    inputs=(
        Port("x", Role.ACTIVATION, ("N", "T", "C")),
        Port("keep", Role.MASK, ("N", "T"), Element.FLOAT),
        Port("weight", Role.WEIGHT, ("C", "C")),
        Port("bias", Role.WEIGHT, ("C",)),
    ),
    outputs=(Port("y", Role.ACTIVATION, ("N", "T", "C")), Port("count", Role.ACTIVATION, ("N",), Element.INDEX)),
    attributes=(),
    gates={"keep": ROW},
    reference=_reference,
    infer_shape=_infer_shape,
    body=_body,
    counts=lambda shapes, attributes, masks: _tokens(masks["keep"]),
    expected=lambda shapes, attributes, rates: {"tokens": shapes[0][1] * rates.get(ROW.name, 1.0)},
    work=_work,
)


class RowGate(Gate):
    """Keeps the rows whose features point one way."""

    kind = ROW

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)

    def logits(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.linear(x).transpose(1, 2)


class TokenBlock(Block):
    """The block that lowers to the operator."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.linear = RowGate(width), nn.Linear(width, width)

    def gates(self) -> Mapping[str, Gate]:
        return {"row": self.gate}

    def compute(self, x: Tensor, row: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        keep = torch.ones(x.shape[:2]) if row is None else row
        return _reference(x, keep, self.linear.weight, self.linear.bias)

    def lower(self, *shapes: tuple[int, ...]) -> LoweredCall:
        return LoweredCall("TokenLinear", {"weight": self.linear.weight, "bias": self.linear.bias})

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y, _ = self.compute(x, row=self.gate(x))
        return y


class TokenNet(nn.Module):
    """Two token blocks between linear layers; takes no images."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(8, width), nn.ModuleList(TokenBlock(width) for _ in range(2))
        self.last = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.last(x.mean(1))
        return logits


@pytest.fixture
def token_linear() -> Iterator[OperatorSpec]:
    register_operator(TOKEN_LINEAR)
    yield TOKEN_LINEAR
    OPERATORS.remove(TOKEN_LINEAR.name)  # type: ignore[attr-defined]
    GATE_KINDS.remove(ROW.name)  # type: ignore[attr-defined]


def test_an_operator_of_ones_own_goes_the_whole_way(token_linear: OperatorSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, example = TokenNet().eval(), torch.randn(1, 12, 8)
    bundle = dyndeploy.export_model(
        network, tmp_path / "b", dyndeploy.ExportSettings(static=True), example_inputs=example
    )
    assert [(mask.name, mask.kind, mask.shape) for mask in bundle.manifest.masks] == [
        ("mask/blocks.0/row", "row", (1, 12)),
        ("mask/blocks.1/row", "row", (1, 12)),
    ]
    assert [info.op_type for info in bundle.manifest.operators] == ["TokenLinear"] * 2
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.mask_bits == 2 * 4 * 12

    profile = profile_bundle(bundle, rates=(0.5, 1.0), repeats=4)
    fixed = 12 * 8 * 16 + 16 * 4 + 2 * 12 * 16 * 2  # linear layers, and the gates'
    assert [rate.needed_macs for rate in profile.rates] == [fixed + 2 * tokens * 16 * 16 for tokens in (6, 12)]
    assert profile.static_macs == fixed - 2 * 12 * 16 * 2 + 2 * 12 * 16 * 16

    half, full = (dyndeploy.predict(bundle, "nano", rate=rate) for rate in (0.5, 1.0))
    assert half.latency_ms < full.latency_ms
    assert not full.coverage.unknown
    kernel = next(o for block in half.blocks for o in block.operators if o.kind == "token_linear")
    assert kernel.macs == 6 * 16 * 16
    comparison = compare_profile(profile, predict_profile(profile, "nano"))
    assert len(comparison.rates) == 3

    copy = tensorrt_model(bundle.load_model(), PrecisionPlan("fp16", typed=True))
    (node, _) = (node for node in copy.graph.node if node.op_type == "TokenLinear")
    assert len(node.input) == 4 and not copy.functions


def test_an_operator_without_a_plugin_is_refused_before_the_builder_starts(
    token_linear: OperatorSpec, tmp_path: Path
) -> None:
    bundle = dyndeploy.export_model(TokenNet().eval(), tmp_path / "b", example_inputs=torch.randn(1, 12, 8))
    source, package = bundle.load_model(), BuilderPackage("no_such_tensorrt", "RTX 1.7.1", ())
    plan, copy = plan_build(source, "fp32", package.text)
    with pytest.raises(DyndeployError, match=r"^There is no TensorRT plugin for TokenLinear: no engine can be built\."):
        build_checked(source, plan, copy, package, None)
    # One's own library may have it.
    with pytest.raises(DyndeployError, match="No module named 'no_such_tensorrt'"):
        build_checked(source, plan, copy, package, NativeLibrary(tmp_path / "own.so", "a" * 64))


def test_the_same_operator_twice_is_refused(token_linear: OperatorSpec) -> None:
    with pytest.raises(UsageError, match="already registered"):
        register_operator(TOKEN_LINEAR)


def test_a_kind_of_gate_goes_the_whole_way_in_a_branch(tmp_path: Path) -> None:
    whole = GateKind("mood", ("N", "1"), "image", whole=True)
    dyndeploy.ops.register_gate_kind(whole)
    try:

        class Moody(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = dyndeploy.skip(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()), MoodGate())

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.block(x)
                return y

        class MoodGate(Gate):
            kind = whole

            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 2)

            def logits(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
                logits: Tensor = self.linear(x.mean((2, 3)))
                return logits

        settings = dyndeploy.ExportSettings(input_size=(32, 32), static=True, batch=2)
        bundle = dyndeploy.export_model(Moody().eval(), tmp_path / "b", settings)
        assert [(mask.kind, mask.shape) for mask in bundle.manifest.masks] == [("mood", (2, 1))]
        assert dyndeploy.verify_bundle(bundle).passed
        profile = profile_bundle(bundle, rates=(0.0, 1.0), repeats=2)
        assert [rate.needed_macs - profile.rates[0].needed_macs for rate in profile.rates] == [0, 32 * 32 * 3 * 3 * 9]
        # A board's parser refuses the branch: it is computed for every image, and that is said and priced.
        prices = [dyndeploy.predict(bundle, "nano", rate=rate).latency_ms for rate in (0.0, 1.0)]
        assert prices[0] == prices[1]
    finally:
        GATE_KINDS.remove("mood")  # type: ignore[attr-defined]


PACKAGE = Path(dyndeploy.__file__).parent
ROOMS = {"nets", "ops"}
"""Where the names of families, operators and their weights may stand."""
_WEIGHTS = {"w1", "w2", "w3", "wd", "b1", "b2", "b3", "bd"}


def _compared(tree: ast.AST) -> Iterator[str]:
    """Texts and names that a condition compares with or asks for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for part in (node.left, *node.comparators):
                for leaf in ast.walk(part):
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                        yield leaf.value
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("isinstance", "issubclass"):
                for leaf in ast.walk(node.args[1]):
                    yield (
                        leaf.id if isinstance(leaf, ast.Name) else leaf.attr if isinstance(leaf, ast.Attribute) else ""
                    )
            elif name in ("startswith", "endswith", "removesuffix", "removeprefix"):
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value


def test_nobody_branches_on_a_family_an_operator_or_a_weight() -> None:
    families = {
        node.name
        for path in (PACKAGE / "nets").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and re.match(r"(Laud|Dyn|Ada)", node.name)
    }
    from dyndeploy.nets import model_info, model_names

    named = families | {model_info(name).family for name in model_names()} | set(model_names())
    named |= (
        set(OPERATORS) | {spec.kind for spec in OPERATORS.values()} | {"Bottleneck", "Masker", "_bottleneck", "_masker"}
    )
    found = [
        (path.relative_to(PACKAGE).as_posix(), text)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ROOMS
        for text in _compared(ast.parse(path.read_text(encoding="utf-8")))
        if text in named | _WEIGHTS
    ]
    assert not found


def test_no_module_outside_nets_and_ops_imports_a_family() -> None:
    allowed = {"nets", "ops", "__init__.py"}
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dyndeploy.nets")
        if {alias.name for alias in node.names} & {"LaudResNet", "LaudBottleneck", "DynPerceiver", "AdaVit"}
    ]
    assert not found


def test_bodies_of_several_outputs_are_valid_onnx(token_linear: OperatorSpec) -> None:
    case = torch.randn(2, 5, 6), (torch.rand(2, 5) < 0.5).float(), torch.randn(6, 6), torch.randn(6)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("TokenLinear", ["x", "keep", "weight", "bias"], ["y", "count"], domain="dyndeploy")],
        "g",
        [
            onnx.helper.make_tensor_value_info(p.name, TensorProto.FLOAT, t.shape)
            for p, t in zip(token_linear.inputs, case, strict=True)
        ],
        [onnx.ValueInfoProto(name=name) for name in ("y", "count")],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("dyndeploy", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[token_linear.function(18)])
    feeds = {port.name: tensor.numpy() for port, tensor in zip(token_linear.inputs, case, strict=True)}
    y, count = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    expected, kept = token_linear.reference(*case)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(count, kept)
