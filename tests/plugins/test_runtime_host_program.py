"""Host programs in the C++ runtime against NumPy's, operator by operator; and bad files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from dyndeploy.runtimes.host_program import CONSTANT, KEEP_BOXES, OPERATORS, PROGRAM, PYRAMID_ROI_ALIGN, HostProgram
from tests.plugins.conftest import RuntimeBuild
from tests.runtimes.test_host_program import CASES as SHARED
from tests.runtimes.test_host_program import N, X, boxes

rng = np.random.default_rng(5)
ULPS = {"Exp", "Log", "Pow", "Sigmoid", "Softmax"}
"""What NumPy computes with functions of its own, which differ from the C library's in the last bits."""
Step = tuple[str, list[Any], dict[str, Any]]

B = X > 0
CASES: list[Step] = [
    *SHARED,
    *[(name, [X], {}) for name in ("Abs", "Ceil", "Floor", "Neg", "Exp", "Identity")],
    *[(name, [N], {}) for name in ("Abs", "Neg")],
    *[(name, [np.abs(X)], {}) for name in ("Log", "Sqrt")],
    *[(name, [X, X[:, :1] * np.float32(0.5)], {}) for name in ("Add", "Sub", "Mul", "Min")],
    *[(name, [N, N[:1, :, :1]], {}) for name in ("Add", "Sub", "Mul", "Max", "Equal", "Less", "LessOrEqual")],
    *[(name, [np.round(X, 1), np.round(X[..., ::-1], 1)], {}) for name in ("Greater", "GreaterOrEqual", "Equal")],
    ("And", [B, B[:, ::-1]], {}),
    ("Or", [B, B[..., :1]], {}),
    ("Not", [B], {}),
    ("Pow", [np.abs(X), np.float32(2.5)], {}),
    ("Pow", [X, np.int64(2)], {}),
    ("Mod", [X, np.float32(0.7)], {}),
    ("Mod", [N.astype(np.int32), np.int32(-4)], {"fmod": 1}),
    ("Cast", [X], {"to": TensorProto.BOOL}),
    ("Cast", [B], {"to": TensorProto.FLOAT}),
    ("Cast", [N], {"to": TensorProto.INT32}),
    ("Cast", [X], {"to": TensorProto.DOUBLE}),
    ("Where", [B[0], N, np.int64(7)], {}),
    ("Transpose", [N], {}),
    ("Squeeze", [X[:1, :, :1].copy()], {}),
    ("Reshape", [X, np.array([2, 3, -1])], {}),
    ("Concat", [N[:, :1], N, N[:, :0]], {"axis": 1}),
    ("Gather", [N, np.int64(-1)], {}),
    ("Slice", [X, np.array([3]), np.array([1]), np.array([1])], {}),
    ("ReduceSum", [np.float32(rng.random((3, 1000)))], {"keepdims": 0}),
    ("ReduceSum", [np.float32(rng.random((3, 1000))), np.array([-1])], {}),
    ("ReduceSum", [np.float32(rng.random((300, 7))), np.array([0])], {}),
    ("ReduceMax", [np.where(X > 1, np.float32("nan"), X), np.array([1])], {}),
    ("Max", [np.where(X > 1, np.float32("nan"), X), np.float32(0)], {}),
    ("TopK", [N, np.array([2])], {"axis": 1, "largest": 0}),
    ("TopK", [np.round(np.float32(rng.random((2, 5000))), 2), np.array([700])], {}),
    ("TopK", [X, np.array([0])], {}),
    *[
        (
            KEEP_BOXES,
            [boxes(count), np.round(rng.random(count), 2).astype(np.float32), rng.integers(0, 5, count)],
            {"iou_threshold": threshold, "score_threshold": 0.05, "limit": limit},
        )
        for count, threshold, limit in ((0, 0.5, 3), (1, 0.5, 100), (300, 0.5, 100), (6000, 0.7, 1000), (900, 0.3, 5))
    ],
    *[
        (
            PYRAMID_ROI_ALIGN,
            [
                *[np.float32(rng.standard_normal((1, 5, 64 // 2**level, 80 // 2**level))) for level in range(3)],
                np.concatenate([boxes(30, 300.0) / np.float32(3), np.zeros((1, 4), np.float32)]),
                rng.integers(0, 3, 31),
            ],
            {"strides": [4.0, 8.0, 16.0], "size": size},
        )
        for size in (7, 14)
    ],
]


def write_program(path: Path, steps: list[tuple[str, list[str], list[str], dict[str, Any]]], inputs: list[str],
                  outputs: list[str], constants: dict[str, Any]) -> None:  # fmt: skip
    text = {
        "format": 1,
        "inputs": inputs,
        "outputs": outputs,
        "constants": list(constants),
        "operators": [dict(zip(("type", "inputs", "outputs", "attributes"), step, strict=True)) for step in steps],
    }
    stored = {f"{CONSTANT}{place}": value for place, value in enumerate(constants.values())}
    np.savez_compressed(path, **{PROGRAM: np.frombuffer(json.dumps(text).encode(), np.uint8)}, **stored)


def run(build: RuntimeBuild, path: Path, feeds: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    tensors, output = path.with_suffix(".tensors.npz"), path.with_suffix(".out")
    np.savez(tensors, **{name: np.array(value, order="C") for name, value in {**feeds, **expected}.items()})
    done = subprocess.run(
        [str(build.host_programs), str(path), str(tensors), str(output), *feeds, "--", *expected],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    content, found, at = output.read_bytes(), {}, 0
    for name, value in expected.items():
        found[name] = np.frombuffer(content, value.dtype, value.size, at).reshape(value.shape)
        at += value.nbytes
    assert at == len(content)
    return found


@pytest.mark.parametrize(("op_type", "inputs", "attributes"), CASES, ids=[f"{c[0]}{i}" for i, c in enumerate(CASES)])
def test_an_operator_gives_numpys_bits(
    runtime_build: RuntimeBuild, tmp_path: Path, op_type: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    arrays = [None if value is None else np.asarray(value) for value in inputs]
    names = ["" if value is None else f"i{place}" for place, value in enumerate(arrays)]
    outputs = ["y", "z"] if op_type == "TopK" else ["y"]
    # The first is fed, the others are constants of the file.
    constants = {name: value for name, value in zip(names[1:], arrays[1:], strict=True) if name}
    path = tmp_path / "program.npz"
    write_program(path, [(op_type, names, outputs, attributes)], [names[0]], outputs, constants)
    with np.errstate(all="ignore"):
        expected = HostProgram.load(path).run({names[0]: arrays[0]})
    found = run(runtime_build, path, {names[0]: arrays[0]}, expected)
    for name, value in expected.items():
        if op_type in ULPS:
            np.testing.assert_array_max_ulp(found[name], value, 4)
        elif op_type == PYRAMID_ROI_ALIGN:
            # Sums of products, in the order and roundings of whatever BLAS NumPy has.
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], value)


def test_every_operator_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(OPERATORS)


def test_values_may_be_given_again_and_left_out(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    steps = [
        ("Add", ["a", "two"], ["sum"], {}),
        ("TopK", ["sum", "count"], ["", "places"], {}),
        ("Mul", ["sum", "sum"], ["sum"], {}),
        ("Identity", ["sum"], ["y"], {}),
    ]
    path = tmp_path / "program.npz"
    write_program(path, steps, ["a"], ["y", "places"], {"two": np.float32(2), "count": np.array([2])})
    feeds = {"a": np.float32([1, 5, 2, 5])}
    expected = {"y": np.float32([9, 49, 16, 49]), "places": np.array([1, 3])}
    for name, value in run(runtime_build, path, feeds, expected).items():
        np.testing.assert_array_equal(value, expected[name])


def test_bad_programs_end_in_one_line(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    feeds = {"a": np.float32([1, 5, 2, 5]), "y": np.float32([0] * 4)}
    tensors, path = tmp_path / "tensors.npz", tmp_path / "program.npz"
    np.savez(tensors, **feeds)

    def said(steps: list[Any], outputs: list[str] | None = None, **constants: Any) -> str:
        write_program(path, steps, ["a"], outputs or ["y"], constants)
        return outcome()

    def outcome() -> str:
        done = subprocess.run(
            [str(runtime_build.host_programs), str(path), str(tensors), str(tmp_path / "out"), "a", "--", "y"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and done.stdout.count("\n") == 1
        return done.stdout

    assert "the host has no rule for Loop" in said([("Loop", ["a"], ["y"], {})])
    assert "(nothing is not)" in said([("Add", ["a", "nothing"], ["y"], {})])
    assert "program.npz gives other tensors than bundle.json says" in said([("Neg", ["a"], ["b"], {})], ["b"])
    assert "Add: shapes do not fit each other" in said([("Add", ["a", "c"], ["y"], {})], c=np.float32([1, 2, 3]))
    assert "Add: it computes with float32 and int64 at once" in said([("Add", ["a", "c"], ["y"], {})], c=np.int64(1))
    assert "Gather: there is no place 9" in said([("Gather", ["a", "c"], ["y"], {})], c=np.array([9]))
    assert "Concat: the attribute axis is missing" in said([("Concat", ["a"], ["y"], {})])
    assert "TopK: it takes more than there are" in said([("TopK", ["a", "c"], ["y"], {})], c=np.array([5]))
    assert "it gives 'y' as float32 (2, 2), and bundle.json says float32 (4)" in said(
        [("Reshape", ["a", "c"], ["y"], {})], c=np.array([2, 2])
    )
    assert "Expand: it makes too large an array" in said(
        [("Expand", ["c", "d"], ["e"], {}), ("Neg", ["a"], ["y"], {})], c=np.float32(1), d=np.array([2**40, 2**40])
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is no host program" in outcome()
    text = {"format": 2, "inputs": ["a"], "outputs": ["a"], "constants": [], "operators": []}
    np.savez(path, **{PROGRAM: np.frombuffer(json.dumps(text).encode(), np.uint8)})
    assert "has format 2, this release reads 1" in outcome()
