"""Detectors for TensorRT: engines with the host in between."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import dyndeploy
from dyndeploy import Bundle, ExportSettings
from dyndeploy.bundle import Manifest
from dyndeploy.errors import BundleError, DyndeployError, ExportError, UsageError
from dyndeploy.export.capture import capture
from dyndeploy.export.detection import inputs_of
from dyndeploy.graphs.inspect import foreign_operators
from dyndeploy.graphs.kept_float import PRODUCTS
from dyndeploy.graphs.memory import model_footprint
from dyndeploy.graphs.passes import with_all_bodies
from dyndeploy.graphs.split import split
from dyndeploy.graphs.tensorrt import PrecisionPlan, float_nodes, tensorrt_model
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.boxes import BOXES, PYRAMID_ROI_ALIGN
from dyndeploy.runtimes import TensorRTSession, open_parts
from dyndeploy.runtimes.tensorrt_engine import (
    EngineSettings,
    engine_graphs,
    require_one_graph,
    trtexec_commands,
    write_stage_trtexec_files,
)
from dyndeploy.targets import load_target
from dyndeploy.targets.platforms import Placement
from dyndeploy.tasks.detection import compare
from dyndeploy.verification import verify_bundle
from tests.detectors import CLASSES, QUERY_DETECTORS, lively_detector, photographs
from tests.runtimes.fake_tensorrt import install_fakes
from tests.runtimes.tensorrt_reference import check_types

pytestmark = [pytest.mark.vision("torchvision", "cv2"), pytest.mark.xdist_group("detectors in parts")]

queries = pytest.mark.vision("torchvision", "cv2", "transformers")

_KEPT: list[Any] = []


@functools.cache
def bundle(kind: str, target: str, precision: str = "fp32") -> Bundle:
    folder = tempfile.TemporaryDirectory(prefix="dyndeploy-parts-")
    _KEPT.append(folder)
    network = lively_detector(kind, "channel" if kind == "retinanet" else "layer")
    settings = ExportSettings(target=target, precision=precision, static=kind == "retinanet")
    return dyndeploy.export_model(network, Path(folder.name) / "b", settings, class_names=CLASSES)


def test_what_runs_where() -> None:
    dense, regions = bundle("retinanet", "rtx4090"), bundle("mask_rcnn", "nano")
    assert [(part.file, part.host) for part in dense.parts] == [("part0.onnx", False), ("part1.npz", True)]
    assert [part.host for part in regions.parts] == [False, True] * 3
    first, proposals, boxes, _, masks, last = regions.parts
    # TensorRT 8.2 reads no regions: a plugin does, of the maps that the first engine left on the device.
    pyramid = [(1, 48, side, side) for side in (64, 32, 16, 8)]
    for part in (boxes, masks):
        assert sorted((info.shape for info in part.inputs if len(info.shape) == 4), reverse=True) == pyramid
        # Boxes, and the level that each is read from.
        assert [info.shape for info in part.inputs if info.dtype == "int32"] == [(100,)]
    assert {info.dtype for part in regions.parts if not part.host for info in part.inputs} == {"float32", "int32"}
    assert {mask.name for mask in regions.manifest.masks} <= {info.name for info in first.outputs}
    assert [info.name for info in last.outputs] == ["masks"] and "image_size" in {i.name for i in proposals.inputs}
    places = regions.manifest.detector().places
    assert any(place.startswith("RoiAlign: host; TensorRT has it from 8.5 on") for place in places)
    assert any(place.startswith("pyramid_regions: plugin; it reads a box from its own level") for place in places)
    assert regions.damaged_files() == {} and regions.manifest.opset == 18
    assert Manifest.from_json(json.loads(json.dumps(regions.manifest.to_json()))) == regions.manifest


@pytest.mark.parametrize(("kind", "target"), [("retinanet", "rtx4090"), ("mask_rcnn", "nano")])
def test_every_engine_is_legal_and_the_chain_finds_what_pytorch_finds(kind: str, target: str) -> None:
    own, platform = bundle(kind, target), load_target(target)
    for _, model in own.load_engine_parts():
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == platform.opset
        assert foreign_operators(model, OPERATORS, platform.allowed_operators) == []
        assert all(node.domain != BOXES for node in model.graph.node)
    network = lively_detector(kind, "channel" if kind == "retinanet" else "layer")
    with open_parts(own) as session, torch.no_grad():
        assert {info.name for info in session.outputs} > {"boxes", "scores", "labels", "count"}
        for image in photographs():
            feeds, placement = network.task.prepare(image, bucket=(128, 128))
            outputs = network(*map(torch.from_numpy, feeds.values())).outputs()
            expected = network.task.decode({name: value.numpy() for name, value in outputs.items()}, placement)
            found = compare(network.task.decode(session.run(feeds), placement), expected)
            assert (found.matched, found.missed, found.extra) == (100, 0, 0)
            assert found.box < 0.02 and found.score < 1e-4
            assert kind == "retinanet" or found.mask_iou > 0.98
        assert set(session.ms) == {part.file for part in own.parts}


def test_verification_looks_at_the_parts() -> None:
    report = verify_bundle(bundle("retinanet", "rtx4090"))
    assert report.passed, [check for check in report.checks if not check.passed]
    names = [check.name for check in report.checks]
    assert "part0.onnx: graph" in names and "detections of the 2 parts, engines in ONNX Runtime" in names
    # The twin runs in parts as well.
    assert "static0.onnx: graph" in names and "static twin: detections of its 2 parts, engines in ONNX Runtime" in names


def test_engines_and_host_programs_run_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT's bindings as on a board, whose engines compute in NumPy; what the host does not read stays there."""
    own, network = bundle("mask_rcnn", "nano"), lively_detector("mask_rcnn", "layer")
    feeds, placement = network.task.prepare(photographs()[0], bucket=(128, 128))
    with open_parts(own) as session:
        expected = session.run(feeds)
    world = install_fakes(monkeypatch, "8.2.1.8", tmp_path)
    with open_parts(own, "tensorrt") as session:
        assert session.info.runtime == "tensorrt" and len(world.builds) == 3
        found, again = (
            session.run(feeds),
            session.run(feeds),
        )  # The second run is another than the one that is captured.
        difference = compare(network.task.decode(found, placement), network.task.decode(expected, placement))
        assert (difference.matched, difference.missed, difference.extra) == (100, 0, 0)
        assert difference.box < 0.02 and difference.score < 1e-4
        assert all(np.array_equal(found[name], again[name]) for name in found)
    with pytest.raises(DyndeployError, match="is closed"):
        session.run(feeds)


@pytest.mark.parametrize(("kind", "target"), [("retinanet", "rtx4090"), ("mask_rcnn", "nano")])
def test_in_half_the_chain_is_held_to_what_half_may_be_off_by(kind: str, target: str) -> None:
    own, single = bundle(kind, target, "fp16"), bundle(kind, target)
    files = [part.file for part in (*own.parts, *own.static_parts)]
    # What engines are made from stays FP32, and so does the host.
    assert [own.manifest.files[name] for name in files if name.endswith("onnx")] == [
        single.manifest.files[name] for name in files if name.endswith("onnx")
    ]
    assert own.manifest.precision == "fp16"
    assert own.manifest.notes[0].endswith("of a detector what decides, adds up or places points")
    report = verify_bundle(own)
    assert report.passed, [check for check in report.checks if not check.passed]
    details = {check.name: check.detail for check in report.checks}
    simulated = details["detections of the parts in FP16, rounding simulated"]
    assert "(limit 0.5)" in simulated and "(limit 0.02)" in simulated and "mask bits flip" in simulated
    assert "(limit 0.001)" in details["detections under equal masks"], "on this CPU it computes in FP32"
    moved = float(simulated.split("boxes within ")[1].split(" px")[0])
    assert 0.01 < moved < 0.25, "rounding shows, and is no wrong weight"
    assert "detections of the parts in FP16, rounding simulated" not in {c.name for c in verify_bundle(single).checks}
    plans = json.loads((own.path / "device" / "engines.json").read_text())["graphs"]
    assert {plan["plan"]["precision"] for plan in plans.values()} == {"fp16"}
    for name, plan in plans.items():
        copy = onnx.load(own.path / plan["copy"])
        types = {value.name: value.type.tensor_type.elem_type for value in (*copy.graph.input, *copy.graph.output)}
        # Seams are float: the host, and the engines behind, read what they read in FP32.
        assert set(types.values()) <= {TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL}, name
        if target == "rtx4090":
            assert plan["plan"]["typed"]
            check_types(copy)
        pinned = set(plan["plan"]["float_layers"])
        assert not any(node.op_type in PRODUCTS for node in copy.graph.node if node.name in pinned)
    assert model_footprint(onnx.load(own.path / "part0.onnx"), "fp16").weights * 2 == pytest.approx(
        model_footprint(onnx.load(own.path / "part0.onnx")).weights, rel=0.01
    )


def test_typed_engines_in_half_find_what_pytorch_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Engines whose graphs carry the types, computed in NumPy, half where they say half."""
    own, network = bundle("retinanet", "rtx4090", "fp16"), lively_detector("retinanet", "channel")
    feeds, placement = network.task.prepare(photographs()[0], bucket=(128, 128))
    with open_parts(own) as session:
        expected = session.run(feeds)
    install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    with open_parts(own, "tensorrt") as session:
        found = session.run(feeds)
    # In pixels of the photograph, which is five times as large as the input.
    difference = compare(*(network.task.decode(outputs, placement) for outputs in (found, expected)))
    assert (difference.matched, difference.missed, difference.extra) == (100, 0, 0)
    assert 0.01 < difference.box < 2.5 and 1e-5 < difference.score < 0.02


def test_regions_are_read_by_a_plugin() -> None:
    network = lively_detector("mask_rcnn", "layer")
    from dyndeploy.export.graph import build
    from dyndeploy.export.subject import make_subject

    subject = make_subject(network, batch=1)
    built = build(subject.network, subject.inputs, load_target("orin_nano"))
    kinds = [[node.op_type for node in part.model.graph.node] for part in built.parts]
    assert [part.host for part in built.parts] == [False, True] * 3
    assert [own.count("PyramidRoiAlign") for own in kinds] == [0, 0, 1, 0, 1, 0]
    assert not any("RoiAlign" in own for own in kinds)
    # Whole numbers go in with 32 bits.
    types = {value.name: value.type.tensor_type.elem_type for value in built.parts[2].model.graph.input}
    assert set(types.values()) == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT32}


@queries
@pytest.mark.parametrize("kind", QUERY_DETECTORS)
def test_detectors_of_queries_run_in_parts(kind: str) -> None:
    own = bundle(kind, "nano")
    report = verify_bundle(own)
    assert report.passed, [check for check in report.checks if not check.passed]
    engines = own.load_engine_parts()
    assert [part.host for part in own.parts] == ([False] if kind == "mask2former" else [False, True] * 3)
    attention = f"MultiscaleDeformableAttention{3 if kind == 'mask2former' else 4}"
    kinds = [node.op_type for _, model in engines for node in model.graph.node]
    assert kinds.count(attention) == (1 if kind == "mask2former" else 1 + 2) and "GridSample" not in kinds
    for part, model in engines:
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 13, part.file
        # Its body needs opset 16; whoever runs it elsewhere raises the graph.
        assert not any(function.name == attention for function in model.functions)
        raised = with_all_bodies(model)
        has_attention = any(node.op_type == attention for node in model.graph.node)
        assert any(function.name == attention for function in raised.functions) == has_attention
        assert raised.graph == model.graph
    assert (own.path / "device" / "README.md").read_text().count("host program") >= (kind == "ddq_detr")


@queries
@pytest.mark.parametrize("kind", QUERY_DETECTORS)
def test_detectors_of_queries_are_legal_on_every_release(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dyndeploy.export import graph

    captured: list[bytes] = []

    def once(*arguments: Any, **options: Any) -> onnx.ModelProto:
        if not captured:
            captured.append(capture(*arguments, **options).SerializeToString())
        return onnx.ModelProto.FromString(captured[0])

    monkeypatch.setattr(graph, "capture", once)
    network = lively_detector(kind, "layer")
    for name in ("tx2", "xavier_nx", "orin_nano", "rtx4090"):
        target = load_target(name)
        built = graph.build(network, inputs_of((96, 128), 1), target)
        assert built.parts
        for part in built.parts:
            if not part.host:
                typed = tensorrt_model(part.model, PrecisionPlan("fp16", typed=True))
                assert {node.op_type for node in typed.graph.node} <= {
                    "Cast",
                    *(node.op_type for node in part.model.graph.node),
                }
                places = {node.name: node for node in typed.graph.node}
                for node in part.model.graph.node:
                    if node.op_type.startswith("MultiscaleDeformable"):
                        # Neither is made by a node in half, nor is it cast.
                        assert list(places[node.name].input[1:]) == list(node.input[1:])
                        kept = float_nodes(part.model)
                        made = {name: each.name for each in part.model.graph.node for name in each.output}
                        assert all(made.get(name, "") in {"", *kept} for name in node.input[1:])
                assert foreign_operators(part.model, OPERATORS, target.allowed_operators) == []
                assert not any(node.op_type in ("GridSample", "RoiAlign") for node in part.model.graph.node)


def test_regions_that_no_plugin_reads_are_the_hosts_where_the_release_reads_none() -> None:
    """A pyramid of two maps."""
    inputs = {"fine": (1, 8, 32, 32), "coarse": (1, 8, 16, 16), "boxes": (10, 4)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    values.append(helper.make_tensor_value_info("levels", TensorProto.INT64, (10,)))
    read = helper.make_node(
        PYRAMID_ROI_ALIGN, [*inputs, "levels"], ["r"], name="heads/r", domain=BOXES, strides=[4, 8], size=7
    )
    layer = helper.make_node("Relu", ["r"], ["y"], name="heads/y")
    shape = (10, 8, 7, 7)
    output, inner = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", "r"))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(BOXES, 1)]
    graph = helper.make_graph([read, layer], "g", values, [output], value_info=[inner])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    for name, host in (("nano", [True, False]), ("orin_nano", [False])):
        assert [part.host for part in split(model, load_target(name).detection, name)] == host


def test_an_operator_that_runs_nowhere_is_refused_with_the_reason() -> None:
    places = {"Relu": Placement("none", "it is switched off")}
    with pytest.raises(ExportError, match="somewhere cannot run Relu: it is switched off"):
        split(bundle("retinanet", "rtx4090").load_engine_parts()[0][1], places, "somewhere")


def test_lines_for_trtexec_are_written_per_engine(tmp_path: Path) -> None:
    own = bundle("mask_rcnn", "nano")
    written = write_stage_trtexec_files(own, tmp_path, "8.2.1")
    assert [item.model.name for item in written] == [f"part{place}.fp32.trt.onnx" for place in (0, 2, 4)]
    shapes = {name: path.stat().st_size for name, path in written[1].inputs.items()}
    maps = [4 * 48 * side * side for side in (64, 32, 16, 8)]
    assert sorted(shapes.values(), reverse=True) == [*maps, 4 * 100 * 4, 4 * 100]
    # All boxes may be of level 0.
    assert all(np.fromfile(path, np.float32).any() for path in written[1].inputs.values() if path.stat().st_size > 400)
    assert all("--loadInputs=" in trtexec_commands(item, None)[1] for item in written)
    assert [label for label, _ in engine_graphs(own)] == ["part0", "part2", "part4"]


def test_what_takes_one_engine_refuses_parts() -> None:
    own = bundle("mask_rcnn", "nano")
    with pytest.raises(UsageError, match="no single engine: nano runs it in 6 parts"):
        TensorRTSession.from_bundle(own)
    with pytest.raises(UsageError, match="its static twin too, and this step takes one engine"):
        require_one_graph(own, EngineSettings(static=True))
    readme = (own.path / "device" / "README.md").read_text()
    assert "runs in parts" in readme and "`../part1.npz`: host program" in readme
    assert "built/dyndeploy-run .. --verify" in readme and 'session.detect("photo.jpg")' in readme
    assert (own.path / "device" / "host_program.py").is_file()
    plans = json.loads((own.path / "device" / "engines.json").read_text())
    assert list(plans["graphs"]) == ["part0.onnx", "part2.onnx", "part4.onnx"]


def test_a_manifest_whose_parts_do_not_fit_is_refused() -> None:
    value = bundle("mask_rcnn", "nano").manifest.to_json()
    wrong = json.loads(json.dumps(value))
    wrong["detection"]["parts"][2]["inputs"][0]["shape"][0] = 99
    with pytest.raises(BundleError, match=r"detection.parts\[2\].*inputs are there before it"):
        Manifest.from_json(wrong)
    twins = json.loads(json.dumps(bundle("retinanet", "rtx4090").manifest.to_json()))
    assert [part["file"] for part in twins["detection"]["static_parts"]] == ["static0.onnx", "static1.npz"]
    twins["detection"]["static_parts"].pop()
    with pytest.raises(BundleError, match="static_parts must be as many and such parts as parts has"):
        Manifest.from_json(twins)
    assert "static_parts" not in value["detection"], "it was exported without its twin"
    short = json.loads(json.dumps(value))
    del short["detection"]["parts"][-1]
    with pytest.raises(BundleError, match="parts that give masks as well"):
        Manifest.from_json(short)


def test_a_damaged_program_is_told() -> None:
    own = bundle("retinanet", "rtx4090")
    path = own.path / "part1.npz"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:100])
        with pytest.raises(BundleError, match="is no host program"):
            open_parts(own)
    finally:
        path.write_bytes(content)
