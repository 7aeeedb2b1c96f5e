"""The operator tables of the native adapters are those of the specifications."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dyndeploy import files
from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS, Attribute, Element, KernelSpec, OperatorSpec, Port, Role, native_tables
from dyndeploy.ops.native_tables import COMMAND, HEADER, operator_tables
from dyndeploy.ops.registry import SPECS
from tests.ops.cases import QUANTIZED, build

CHECKED_IN = Path(__file__).parents[2] / "plugins" / HEADER
PACKED = [spec.name for spec in SPECS if "tensorrt" in spec.kernels and spec.kernels["tensorrt"].pack]
MASKER = OPERATORS["SpatialMasker"]


def test_the_header_is_what_the_specifications_say() -> None:
    text = CHECKED_IN.read_text(encoding="utf-8")
    assert text == operator_tables(), f"{CHECKED_IN} is older than dyndeploy/ops: run `{COMMAND}` and commit it"


def test_the_command_writes_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / HEADER
    written.parent.mkdir(parents=True)
    written.write_text("// old\n")
    monkeypatch.setattr(files, "shipped_folder", lambda name: tmp_path if name == "plugins" else None)
    # The module as the command runs it, whichever copy of the package is installed.
    runpy.run_path(native_tables.__file__, run_name="__main__")
    assert written.read_text() == CHECKED_IN.read_text()


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="no clang-format")
def test_sources_are_laid_out() -> None:
    sources = sorted(str(path) for path in CHECKED_IN.parents[1].rglob("*") if path.suffix in {".h", ".cpp"})
    assert str(CHECKED_IN) in sources
    subprocess.run(["clang-format", "--dry-run", "--Werror", *sources], check=True)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("standard", ["c++14", "c++17"])
def test_tables_are_constants_of_the_compiler(standard: str, tmp_path: Path) -> None:
    program = tmp_path / "check.cpp"
    program.write_text(
        f'#include "{CHECKED_IN.parent / "tables.h"}"\n'
        "using namespace dyndeploy::tables;\n"
        "constexpr Operator op = kSpatialChannelBottleneckProjection;\n"
        "constexpr Skipping skipping = bottleneck_skipping(op.plugin_inputs, op.plugin_input_count);\n"
        'static_assert(skipping.spatial_mask == 1 && skipping.channel_mask == 2 && skipping.projection, "");\n'
        "constexpr Skipping layer = bottleneck_skipping(kLayerBottleneck.inputs, kLayerBottleneck.input_count);\n"
        'static_assert(layer.spatial_mask == 1 && layer.whole_blocks && layer.channel_mask < 0, "");\n'
        'static_assert(!layer.projection && !skipping.whole_blocks, "");\n'
        'static_assert(value_offset(op, "group") == 8 && value_offset(op, "dilations") == 2, "");\n'
        'static_assert(find_port(op.inputs, op.input_count, "wd") == 9 && same_text(op.name + 14, "Bottleneck'
        'Projection"), "");\n'
        'static_assert(kMaxInputs == 17 && kMaxRank == 6 && kMaxAttributes == 7 && kMaxValues == 16, "");\n'
    )
    flags = [f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    subprocess.run(["c++", *flags, str(program)], check=True)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(
    ("hidden", "group", "places"),
    [(12, 1, 9), (12, 2, 9), (12, 3, 9), (64, 1, 9 + 16), (64, 2, 9)],
    ids=["12", "2 groups", "3 groups", "with Winograd's", "too narrow groups"],
)
def test_declared_constants_are_what_packing_returns(name: str, hidden: int, group: int, places: int) -> None:
    case = build(name, channels=5, hidden=hidden, out_channels=7, group=group)
    kernel = case.spec.kernels["tensorrt"]
    assert kernel.pack is not None
    if "Channel" in name or "SE" in name:
        places = 9
    tensors = {port.name: tensor.numpy() for port, tensor in zip(case.spec.inputs, case.inputs, strict=True)}
    weights = {port.name: tensors[port.name] for port in case.spec.inputs if port.role is Role.WEIGHT}
    packed = kernel.pack(weights, case.attributes)
    sizes = {
        symbol: n
        for port, s in zip(case.spec.inputs, case.shapes, strict=True)
        for symbol, n in zip(port.shape, s, strict=True)
    }
    sizes |= {"group": group, "9|25*M/group": places * hidden // group, "16": 16, "9": 9}
    assert [port.name for port in kernel.constants] == list(packed)
    for port in kernel.constants:
        assert packed[port.name].shape == tuple(sizes[symbol] for symbol in port.shape), port.name
        assert packed[port.name].dtype == np.dtype(port.element.dtype or np.float32)
    data = {name for name, value in weights.items() if value.ndim > 1 and not name.startswith("b")}
    assert kernel.half == (set() if name.startswith(QUANTIZED) else data)


@pytest.mark.parametrize("name", OPERATORS)
def test_symbolic_shapes_are_the_shapes(name: str) -> None:
    case = build(name, batch=2, size=(9, 8), channels=5, hidden=12, out_channels=7, group=2, stride=2)
    sizes: dict[str, int] = {"M/group": 6, "3": 3, "1": 1}
    for port, shape in zip(case.spec.inputs, case.shapes, strict=True):
        assert len(port.shape) == len(shape)
        for symbol, size in zip(port.shape, shape, strict=True):
            assert sizes.setdefault(symbol, size) == size, (port.name, symbol)
    expected = case.spec.infer_shape(case.shapes, case.attributes)
    for symbol, size in zip(case.spec.outputs[0].shape, expected, strict=True):
        assert sizes.setdefault(symbol, size) == size, symbol


def test_operators_without_native_kernels_are_left_out() -> None:
    elsewhere = replace(MASKER, name="Elsewhere", kernels={})
    assert operator_tables((*SPECS, elsewhere)) == operator_tables()
    assert "kElsewhere = {" in operator_tables((*SPECS, replace(elsewhere, kernels={"cpu": KernelSpec()})))


def test_families_have_lists_of_their_own() -> None:
    text = operator_tables((*SPECS, replace(MASKER, name="OnlyCpu", kernels={"cpu": KernelSpec()})))
    cpu, tensorrt = text.split("#define")[1:]
    assert "DO(OnlyCpu, SpatialMasker)" in cpu and "OnlyCpu" not in tensorrt


X = Port("x", Role.ACTIVATION, ("N", "C"))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (replace(MASKER, outputs=(X, replace(X, name="y"))), "2 outputs"),
        (replace(MASKER, inputs=(X, replace(X, name="scale", optional=True))), "the optional input scale"),
        (replace(MASKER, inputs=(replace(X, element=Element.INDEX),)), "the index tensor x"),
        (replace(MASKER, inputs=(replace(X, shape=("N", "tokens")),)), "the size tokens"),
        (replace(MASKER, inputs=(replace(X, shape=("N", "O", "Co")),)), "the size Co"),
    ],
)
def test_what_the_adapters_cannot_serve_is_refused(spec: OperatorSpec, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        operator_tables((spec,))


def test_attributes_say_whether_they_are_integers() -> None:
    text = operator_tables((replace(MASKER, attributes=(Attribute("slope", type=float), Attribute("pads", 4))),))
    assert '{"slope", 1, true},' in text and '{"pads", 4, false},' in text


def test_packing_without_its_constants_is_refused() -> None:
    kernel = OPERATORS["LayerBottleneck"].kernels["tensorrt"]
    spec = replace(OPERATORS["LayerBottleneck"], kernels={"tensorrt": replace(kernel, constants=())})
    with pytest.raises(UsageError, match="both pack and constants"):
        spec.check()
