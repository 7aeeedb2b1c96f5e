"""A static ONNX file measured: what is in the profile, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.cli import run
from dyndeploy.errors import BundleError, InputError, UsageError
from dyndeploy.measure import load_network_profile, load_profile, profile_network
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.prediction.kernels import GraphWalker
from tests.bundles import tiny_bundle
from tests.graphs.lookalikes import exported

QUICK = ("--repeats", "2")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "detector.onnx"
    onnx.save(exported("detector"), path)
    return path


def lengths(path: Path) -> Path:
    """A file with a float and a whole-number input, which is an index into a table of three rows."""
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["row"], name="/block.0/Gather"),
        helper.make_node("MatMul", ["x", "row"], ["h"], name="/block.0/MatMul"),
        helper.make_node("Softmax", ["h"], ["y"], name="/head/Softmax"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 6)),
        helper.make_tensor_value_info("index", TensorProto.INT64, ()),
    ]
    table = numpy_helper.from_array(np.ones((3, 6, 5), np.float32), "table")
    graph = helper.make_graph(nodes, "main_graph", inputs, [onnx.ValueInfoProto(name="y")], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_is_measured_as_it_is(detector: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    found = profile_network(
        detector, input_size=(64, 96), repeats=2, progress=lambda message, fraction: stages.append(message)
    )
    assert found.network["inputs"] == {"image": [1, 3, 64, 96]}
    assert found.network["name"] == "detector"
    # Two rounds of three visits each, at least one run per visit, and the first visit of the pair.
    assert len(found.samples.ms) >= 6 and min(found.samples.ms) > 0
    stem = 32 * 48 * 8 * 27
    levels = 16 * 24 * 8 * 8 * 9 + 8 * 12 * 12 * 8 * 9 + 4 * 6 * 16 * 12 * 9
    joins = 8 * 12 * 12 * 28 + 16 * 24 * 8 * 20
    heads = 21 * (16 * 24 * 8 + 8 * 12 * 12 + 4 * 6 * 16)
    assert found.macs == stem + levels + joins + heads
    operators = {part.name: part.ms for part in found.operators}
    assert sum(ms for name, ms in operators.items() if "Conv" in name) > 0
    # What follows from sizes is computed when the file is loaded, not in every run.
    assert not operators.keys() & {"Shape", "Range", "Expand", "ConstantOfShape"}
    assert sum(part.ms for part in found.parts) == pytest.approx(sum(operators.values()))
    assert {part.name for part in found.parts} >= {"levels.0", "heads.0", "join.0"}
    assert "timing the nodes" in stages and any("no twin" in note for note in found.warnings())
    path = tmp_path / "p.json"
    path.write_text(json.dumps(found.to_json()))
    assert load_network_profile(path) == found


def test_conversions_of_layouts_do_not_move_parts(tmp_path: Path) -> None:
    """Kernels that only convert a layout lie between the nodes' own: positions of kernels are not those of nodes."""
    weights = {"a": (16, 3, 3, 3), "c": (16, 16, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], name="/first/Conv"),
        helper.make_node("Softmax", ["1"], ["2"], name="/second/Softmax", axis=-1),
        helper.make_node("Conv", ["2", "c"], ["3"], name="/third/Conv"),
        helper.make_node("Softmax", ["3"], ["y"], name="/fourth/Softmax", axis=-1),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 16, 16))
    constants = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    graph = helper.make_graph(nodes, "main_graph", [image], [onnx.ValueInfoProto(name="y")], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    walker = GraphWalker(onnx.load(tmp_path / "m.onnx"))
    assert len(walker.graph().kernels) > len(nodes), "conversions are kernels"
    assert set(walker.part_of_nodes()) == {"1", "2", "3", "y"}
    found = profile_network(tmp_path / "m.onnx", repeats=2)
    assert sum(part.ms for part in found.parts) == pytest.approx(sum(part.ms for part in found.operators))


def test_inputs_may_be_given_and_are_else_made_up(tmp_path: Path) -> None:
    path = lengths(tmp_path / "lengths.onnx")
    found = profile_network(path, dims={"n": 4}, repeats=2)
    assert found.network["inputs"] == {"x": [4, 6], "index": []}
    assert found.macs == 6 * 5 * 4 / found.batch
    np.save(tmp_path / "index.npy", np.int64(2))
    found = profile_network(path, inputs={"index": tmp_path / "index.npy"}, repeats=2)
    assert found.settings["inputs"] == "random numbers, whole numbers 1: x; from files: index"
    np.save(tmp_path / "index.npy", np.array([1.5]))
    with pytest.raises(InputError, match="expected int64"):
        profile_network(path, inputs={"index": tmp_path / "index.npy"}, repeats=2)
    with pytest.raises(UsageError, match="Unknown input 'idx'"):
        profile_network(path, inputs={"idx": tmp_path / "index.npy"}, repeats=2)


def test_what_cannot_be_measured_is_refused(detector: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Give --input-size HxW"):
        profile_network(detector)
    with pytest.raises(InputError, match=r"none\.onnx"):
        profile_network(tmp_path / "none.onnx")
    (tmp_path / "cut.onnx").write_bytes(detector.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"cut\.onnx"):
        profile_network(tmp_path / "cut.onnx")
    with pytest.raises(UsageError, match=r"SpatialMasker.*profile the folder of its bundle"):
        profile_network(tiny_bundle(tmp_path / "b").path / "model.onnx")
    with pytest.raises(UsageError, match="at least 2"):
        profile_network(detector, input_size=(64, 96), repeats=1)


@pytest.fixture
def saved(detector: Path, tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    assert run(["profile", str(detector), "--input-size", "64x96", *QUICK, "--json", str(path)]) == 0
    return path


def test_profile_and_compare_on_the_command_line(
    detector: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["profile", str(detector), "--input-size", "64x96", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "measured" in out and "no twin" in out and "Conv" in out and "image 1x3x64x96" in out
    value: dict[str, Any] = json.loads(saved.read_text())
    assert value["kind"] == "measured_network" and {"median_ms", "samples_ms"} <= set(value["latency"])
    report = tmp_path / "report.html"
    assert run(["compare", str(saved), "-o", str(report), "--predict-device", "nano", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert entry["error"] is None and entry["predicted_ms"] > 0 and entry["parts"] == []
    assert run(["compare", str(saved), "-o", str(report), "--predict-device", "nano"]) == 0
    assert "not comparable" in (out := capsys.readouterr().out) and "calibrate-device" in out
    page = report.read_text()
    assert "nano, predicted" in page and "Time by type of operator, measured" in page and "levels.0" in page
    # As if it had been measured there.
    saved.write_text(json.dumps({**value, "device": "nano"}))
    call = ["compare", str(saved), "-o", str(report), "--predict-device", "nano"]
    assert run([*call, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert entry["error"] == pytest.approx(entry["predicted_ms"] / entry["measured_ms"] - 1)
    parts = {part["name"]: part for part in entry["parts"]}
    times = {part["name"]: part["ms"] for part in value["parts"]}
    assert parts["levels.0"]["measured_ms"] == times["levels.0"] and parts["levels.0"]["predicted_ms"] > 0
    assert run([*call, "--fail-above", "0.001"]) == 1
    assert run([*call, "--fail-above", "1e9"]) == 0
    assert "levels.0" in capsys.readouterr().out


def test_two_profiles_of_a_file_are_compared(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(saved.read_text())
    slower = {**value["latency"], "samples_ms": [2 * ms for ms in value["latency"]["samples_ms"]]}
    other, page = tmp_path / "other.json", tmp_path / "pair.html"
    other.write_text(json.dumps({**value, "threads": 2, "latency": slower}))
    capsys.readouterr()
    assert run(["compare", str(saved), str(other), "-o", str(page), "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)
    network, *parts = pair["rows"]
    assert (network["name"], network["time_ratio"]) == ("network", pytest.approx(2.0))
    assert {row["time_ratio"] for row in parts} == {1.0} and "part levels.0" in {row["name"] for row in parts}
    assert [(fact["what"], fact["one"], fact["other"]) for fact in pair["differences"]] == [("threads", "1", "2")]
    assert "part levels.0" in page.read_text()


def test_a_report_at_once(detector: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert run(["profile", str(detector), "--input-size", "64x96", *QUICK, "--report", str(page)]) == 0
    assert "nano, predicted" in page.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rates", "0.5"), "is static: nothing in it skips"),
        (("--exit-mix", "50/50"), "is static"),
        (("--data", "photos"), "leave --data out"),
        (("--native", "off"), "leave --native out"),
        (("--dim", "height"), "--dim takes NAME=N"),
        (("--dim", "heigth=3"), "Unknown open size 'heigth'"),
    ],
)
def test_options_that_mean_nothing_for_a_file_are_refused(
    detector: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(detector), "--input-size", "64x96", *QUICK, *options]) == 2
    assert words in capsys.readouterr().err


def test_options_of_a_file_are_refused_for_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(tiny_bundle(tmp_path / "b").path), "--dim", "n=1"]) == 2
    assert "--dim: only for an ONNX file" in capsys.readouterr().err


def test_kinds_of_profiles_are_told_apart(saved: Path, tmp_path: Path) -> None:
    for load in (load_profile, load_exit_profile):
        with pytest.raises(InputError, match="no profile"):
            load(saved)
    value = json.loads(saved.read_text())
    for damage, words in (
        ({"kind": "measured"}, "no profile of an ONNX file"),
        ({"schema_version": 99}, "schema version 99"),
        ({"latency": {**value["latency"], "samples_ms": [1.0, -1.0]}}, "samples_ms"),
        ({"parts": [{"name": "a"}]}, "malformed"),
        ({"macs": float("nan")}, "NaN"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps({**value, **damage}))
        with pytest.raises(InputError, match=words):
            load_network_profile(tmp_path / "bad.json")
