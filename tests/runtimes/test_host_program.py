from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dyndeploy.graphs import split
from dyndeploy.runtimes import host_program
from dyndeploy.runtimes.host_program import OPERATORS, HostProgram, ProgramError, keep_boxes, pyramid_roi_align, top_k

vision = pytest.mark.vision("torchvision")
rng = np.random.default_rng(0)


def boxes(count: int, side: float = 120.0) -> np.ndarray[Any, Any]:
    corner = rng.random((count, 2), np.float32) * 900
    extent = rng.random((count, 2), np.float32) * side * (rng.random((count, 1)) > 0.05)
    return np.concatenate([corner, corner + extent], 1).astype(np.float32)


def test_writer_and_reader_agree_on_the_file() -> None:
    assert (split.PROGRAM, split.FORMAT, split.CONSTANT) == (
        host_program.PROGRAM,
        host_program.FORMAT,
        host_program.CONSTANT,
    )
    assert set(split.STANDS_FOR) == {host_program.KEEP_BOXES, host_program.PYRAMID_ROI_ALIGN}


# ---------------------------------------------------------------- boxes


@vision
@pytest.mark.parametrize("count", [0, 1, 60, 6000])
@pytest.mark.parametrize(("threshold", "limit"), [(0.5, 100), (0.7, 1000)])
def test_suppression_is_exact(count: int, threshold: float, limit: int) -> None:
    """More than the 5000 boxes that TensorRT looks at, many equal scores, boxes without extent."""
    from dyndeploy.blocks.boxes import _keep_boxes

    given = boxes(count), np.round(rng.random(count), 2).astype(np.float32), rng.integers(0, 5, count)
    found = keep_boxes(*given, threshold, 0.05, limit)
    expected = _keep_boxes(*map(torch.from_numpy, given), threshold, 0.05, limit)
    assert found.dtype == np.int64 and found.tolist() == expected.tolist()
    assert count < 6000 or (found >= 0).all()


@vision
def test_suppression_of_nothing_and_of_equals() -> None:
    from dyndeploy.blocks.boxes import _keep_boxes

    one = np.float32([[10, 10, 20, 20]])
    assert keep_boxes(one, np.float32([0.05]), np.array([0]), 0.5, 0.05, 3).tolist() == [-1, -1, -1]
    # Equal boxes with equal scores: the first stays, and each group keeps its own.
    same, scores, groups = one.repeat(4, 0), np.full(4, 0.5, np.float32), np.array([1, 0, 1, 0])
    assert keep_boxes(same, scores, groups, 0.5, 0.05, 3).tolist() == [0, 1, -1]
    expected = _keep_boxes(*map(torch.from_numpy, (same, scores, groups)), 0.5, 0.05, 3)
    assert expected.tolist() == [0, 1, -1]


@vision
@pytest.mark.parametrize("size", [7, 14])
def test_reading_of_regions(size: int) -> None:
    """Boxes of every level, empty ones, tiny ones, and some that reach out of the map."""
    from dyndeploy.blocks.boxes import _align, roi_levels

    maps = [torch.randn(1, 5, 64 // 2**level, 80 // 2**level) for level in range(4)]
    given = boxes(80, 400.0) / np.float32(3)
    given[0], given[1, 2:], given[2] = 0, given[1, :2] + np.float32(0.01), (0, 0, 319, 255)
    strides = [4, 8, 16, 32]
    expected = _align(maps, torch.from_numpy(given), strides, 56.0, size).numpy()
    levels = roi_levels(torch.from_numpy(given), 4, 56.0).numpy()
    assert set(levels.tolist()) == {0, 1, 2}
    found = pyramid_roi_align([level.numpy() for level in maps], given, levels, strides, size)
    assert found.shape == expected.shape and np.abs(found - expected).max() < 2e-6
    assert not found[0].any()


# ---------------------------------------------------------------- standard operators


def test_the_best_are_sorted_and_equal_ones_come_in_their_order() -> None:
    values = np.round(rng.random((3, 4000)), 2).astype(np.float32)
    for largest in (True, False):
        found, places = top_k(values, 700, 1, largest)
        order = np.argsort(-values if largest else values, axis=1, kind="stable")[:, :700]
        assert (places == order).all() and (found == np.take_along_axis(values, order, 1)).all()
    numbers = rng.integers(0, 50, 3000)
    found, places = top_k(numbers, 3000, 0, False)
    assert (np.diff(found) >= 0).all() and (numbers[places] == found).all() and places.dtype == np.int64
    assert top_k(np.zeros(0, np.float32), 0)[1].tolist() == []


X = rng.standard_normal((3, 4, 5)).astype(np.float32)
N = rng.integers(-9, 9, (3, 4, 5))
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Div", [N, np.int64(4)], {}),
    ("Div", [X, X + np.float32(3)], {}),
    ("Mod", [N, np.int64(4)], {}),
    ("Mod", [X, np.float32(0.7)], {"fmod": 1}),
    ("Clip", [X, None, np.float32(0.5)], {}),
    ("Clip", [X, np.float32(-0.1)], {}),
    ("Reshape", [X, np.array([0, -1])], {}),
    ("Slice", [X, np.array([1]), np.array([2**62]), np.array([2]), np.array([2])], {}),
    ("Slice", [X, np.array([-1]), np.array([-(2**62)]), np.array([1]), np.array([-1])], {}),
    ("Slice", [X, np.array([0, 1]), np.array([2, -1])], {}),
    ("Unsqueeze", [X, np.array([0, -1])], {}),
    ("Squeeze", [X[:1], np.array([0])], {}),
    ("ReduceSum", [X, np.array([1])], {"keepdims": 0}),
    ("ReduceSum", [N], {"keepdims": 0}),
    ("ReduceMax", [X], {}),
    ("ReduceMin", [X, np.array([0, 2])], {}),
    ("Softmax", [X], {"axis": 1}),
    ("Sigmoid", [X * 50], {}),
    ("Gather", [X, np.array([[0, 2], [1, -1]])], {"axis": 1}),
    ("GatherElements", [X, rng.integers(0, 4, (3, 2, 5))], {"axis": 1}),
    ("GatherND", [X, np.array([[0, 1], [2, 3]])], {}),
    ("ScatterElements", [X, np.array([[[1, 0, 3, 2, 1]]] * 3) % 4, X[:, :1]], {"axis": 1}),
    ("Expand", [X[:, :1], np.array([2, 1, 4, 1])], {}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Concat", [X, X], {"axis": -2}),
    ("Where", [X > 0, X, np.float32(0)], {}),
    ("Cast", [X * 9], {"to": TensorProto.INT64}),
    ("Max", [X, X[::-1].copy(), np.float32(0.2)], {}),
    ("TopK", [np.round(X, 1), np.array([3])], {"axis": -1}),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes"), CASES, ids=[f"{c[0]}{i}" for i, c in enumerate(CASES)])
def test_an_operator_does_what_onnx_says(op_type: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    outputs = ["y", "z"] if op_type == "TopK" else ["y"]
    feeds = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, outputs, **attributes)],
        "g",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    expected = ReferenceEvaluator(model).run(None, feeds)
    found = OPERATORS[op_type](attributes, *[None if value is None else np.asarray(value) for value in inputs])
    for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- files


def program_file(folder: Path) -> Path:
    """y = (a + 2) * b, and a's places of the two best."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["a", "two"], ["sum"], name="n/0"),
            helper.make_node("Mul", ["sum", "b"], ["y"], name="n/1"),
            helper.make_node("TopK", ["a", "k"], ["best", "places"], name="n/2"),
        ],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4,)) for name in "ab"],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, (4,)),
            helper.make_tensor_value_info("places", TensorProto.INT64, (2,)),
        ],
        [numpy_helper.from_array(np.float32(2), "two"), numpy_helper.from_array(np.array([2]), "k")],
    )
    path = folder / "p.npz"
    np.savez(path, **split.host_program(helper.make_model(graph), OPERATORS))
    return path


def test_a_program_is_read_and_run(tmp_path: Path) -> None:
    program = HostProgram.load(program_file(tmp_path))
    assert (program.inputs, program.outputs) == (["a", "b"], ["y", "places"])
    for _ in range(2):  # What is dropped on the way is there again.
        found = program.run({"a": np.float32([1, 5, 2, 5]), "b": np.float32([1, 2, 3, 4])})
        assert found["y"].tolist() == [3, 14, 12, 28] and found["places"].tolist() == [1, 3]


def test_a_board_needs_the_file_and_numpy_only(tmp_path: Path) -> None:
    path = program_file(tmp_path)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'dyndeploy')))\n"
        "from host_program import HostProgram; import numpy as np\n"
        f"p = HostProgram.load({str(path)!r})\n"
        "print(p.run({'a': np.float32([1, 5, 2, 5]), 'b': np.ones(4, np.float32)})['y'].tolist())"
    )
    folder = Path(host_program.__file__).parent
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[3.0, 7.0, 4.0, 7.0]"


def test_python_3_6_can_run_it() -> None:
    path = Path(host_program.__file__)
    vermin = Path(sys.executable).parent / "vermin"
    command = [str(vermin), "--target=3.6-", "--violations", "--no-tips", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    # NumPy 1.13 lacks what came later.
    text = path.read_text(encoding="utf-8")
    assert not [name for name in ("take_along_axis", "put_along_axis", '"stable"') if name in text]


def test_damage_is_told(tmp_path: Path) -> None:
    path = program_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProgramError, match="is no host program"):
        HostProgram.load(path)
    with pytest.raises(ProgramError, match="is no host program"):
        HostProgram.load(tmp_path / "missing.npz")
    text = {"format": 2, "inputs": [], "outputs": [], "constants": [], "operators": []}
    with pytest.raises(ProgramError, match="has format 2, this release reads 1"):
        HostProgram(text, {})
    step = {"type": "Loop", "inputs": [], "outputs": ["y"], "attributes": {}}
    with pytest.raises(ProgramError, match="has no rule for Loop"):
        HostProgram(json.loads(json.dumps({**text, "format": 1, "operators": [step]})), {})
