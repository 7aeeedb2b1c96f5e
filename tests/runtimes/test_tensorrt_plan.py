"""Build plans, and that the host and the agent on a board carry one out alike."""

from __future__ import annotations

import ctypes
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.bundle.device_files import board_modules
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.graphs.tensorrt import TUNING, float_nodes
from dyndeploy.ops import OPERATORS
from dyndeploy.remote import agent
from dyndeploy.runtimes.tensorrt_api import TensorRT
from dyndeploy.runtimes.tensorrt_inspector import plugin_facts
from dyndeploy.runtimes.tensorrt_plan import BuildOptions, BuildPlan, plan_build
from tests.bundles import MODES, tiny_models
from tests.runtimes.fake_tensorrt import LIBRARY, VERSIONS, Creator, World, install_fakes, numbers


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_plan_says_all_that_the_builder_is_told(version: str, precision: str) -> None:
    model, twin, _ = tiny_models("both")
    plan, copy = plan_build(model, precision, version)
    assert BuildPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    typed = numbers(version) >= (11,)
    assert (plan.tensorrt, plan.precision, plan.typed) == (version, precision, typed)
    assert set(plan.float_layers) == ({"head/mean", "head/fc"} if precision == "fp16" and not typed else set())
    assert (plan.workspace_mib, plan.tf32, plan.cuda_graph, plan.tuning) == (1024, False, True, True)
    assert {name for name, _ in plan.plugins} == {node.op_type for node in copy.graph.node if node.domain}
    assert plan.with_library("a" * 64).library_sha256 == "a" * 64
    static, _ = plan_build(twin, precision, version)
    assert static.plugins == () and static.with_library("a" * 64) == static


def test_what_gives_no_floats_is_not_pinned_to_them() -> None:
    """A detector's attention: trtexec would have a comparison give floats."""
    shape = (1, 4)
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["probability"], name="heads/probability"),
        helper.make_node("Less", ["probability", "least"], ["hidden"], name="heads/hidden"),
        helper.make_node("Where", ["hidden", "least", "x"], ["y"], name="heads/y"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    least = numpy_helper.from_array(np.float32([0.5]), "least")
    graph = helper.make_graph(nodes, "g", [x], [y], [least])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert float_nodes(model) == {"heads/probability", "heads/hidden", "heads/y"}
    plan, _ = plan_build(model, "fp16", "8.5.3")
    assert plan.float_layers == ("heads/probability", "heads/y")


@pytest.mark.parametrize("mode", MODES)
def test_labels_do_not_change_what_is_pinned(mode: str) -> None:
    model, _, _ = tiny_models(mode)
    plain, _ = plan_build(model, "fp16", "8.6.1")
    labelled, copy = plan_build(LabelledGraph(model, bodies=False).model, "fp16", "8.6.1")
    assert [name.split("~")[0] for name in labelled.float_layers] == list(plain.float_layers)
    assert set(labelled.float_layers) <= {node.name for node in copy.graph.node}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workspace_mib": 0}, "workspace_mib must be a whole number"),
        ({"precision": "bf16"}, "one of fp32, fp16, int8"),
        ({"integers": 1}, "integers must be true or false"),
        ({"typed": 1}, "typed must be true or false"),
        ({"plugins": [["a"]]}, r"plugins\[0\] must be a list of 2"),
        ({"float_layers": None}, "float_layers must be a list"),
        ({"library_sha256": "x"}, "a SHA-256"),
    ],
)
def test_malformed_plans(change: dict[str, Any], message: str) -> None:
    plan, _ = plan_build(tiny_models()[0], "fp16", "8.6.1")
    with pytest.raises(UsageError, match=rf"build plan is malformed: .*{message}"):
        BuildPlan.from_json(plan.to_json() | change)


class Recorded:
    """Stands before an object of the fake package and writes down what is asked of it."""

    def __init__(self, name: str, inner: Any, calls: list[tuple[Any, ...]]) -> None:
        object.__setattr__(self, "_parts", (name, inner, calls))

    def __getattr__(self, key: str) -> Any:
        name, inner, calls = object.__getattribute__(self, "_parts")
        value = getattr(inner, key)
        if not callable(value) or isinstance(value, type):
            return value

        def call(*arguments: Any) -> Any:
            bare = [each._parts[1] if isinstance(each, Recorded) else each for each in arguments]
            calls.append((name, key, *(described(each) for each in bare)))
            result = value(*bare)
            watched = key.startswith(("create_network", "create_builder", "get_layer"))
            return Recorded(key, result, calls) if watched else result

        return call

    def __setattr__(self, key: str, value: Any) -> None:
        name, inner, calls = self._parts
        calls.append((name, f"{key} =", described(value)))
        setattr(inner, key, value)


def described(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return (
        str(value)
        if isinstance(value, (bool, int, str)) or "enum" in str(type(value)).lower()
        else type(value).__name__
    )


def watched(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record all calls to builder, network, layers, parser and configuration from here on."""
    import tensorrt

    calls: list[tuple[Any, ...]] = []
    for kind in ("Builder", "OnnxParser"):
        make = getattr(tensorrt, kind)

        def made(*arguments: Any, kind: str = kind, make: Any = make) -> Recorded:
            bare = [each._parts[1] if isinstance(each, Recorded) else each for each in arguments]
            return Recorded(kind, make(*bare), calls)

        monkeypatch.setattr(tensorrt, kind, made)
    return calls


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("version", VERSIONS)
def test_host_and_board_make_the_same_calls(
    version: str, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, copy = plan_build(tiny_models("both")[0], precision, version, options=BuildOptions(workspace_mib=77))
    content, spelled = copy.SerializeToString(deterministic=True), json.loads(json.dumps(plan.to_json()))

    def world() -> tuple[World, list[tuple[Any, ...]]]:
        made = install_fakes(monkeypatch, version, tmp_path)
        made.registered = [Creator(name) for name in OPERATORS]
        return made, watched(made, monkeypatch)

    host, asked = world()
    api = TensorRT.load()
    engine, timings = api.build(content, BuildPlan.from_json(spelled), b"earlier")
    layers, note = api.read_back(engine, BuildPlan.from_json(spelled))

    board, asked_there = world()
    job = agent.Job(str(tmp_path / "agent"), "0" * 32)
    (tmp_path / "agent" / "jobs" / ("0" * 32) / "out").mkdir(parents=True)
    digests = {}
    for name, module in board_modules().items():
        digests[name] = hashlib.sha256(module).hexdigest()
        job.store.put(digests[name], len(module), 0, module)
    (tmp_path / "model").write_bytes(content)
    spec = {"plan": spelled, "plugins": None, "versions": {}, "modules": digests}
    known = f"timing-{hashlib.sha256(b'{}').hexdigest()[:16]}.cache"
    (tmp_path / "agent" / known).write_bytes(b"earlier")
    said = agent._build_tensorrt(job, spec, str(tmp_path / "model"))

    assert layers is not None and note == said["note"] == ""
    assert said["plugins"] == plugin_facts(layers, spelled) and len(said["plugins"]) == len(plan.plugin_nodes) == 6
    assert asked_there == asked and len(asked) > 8
    assert board.builds == host.builds
    assert host.builds[0]["workspace"] == 77 << 20
    assert Path(job.out, "engine").read_bytes() == engine
    assert (tmp_path / "agent" / known).read_bytes() == timings == b"earlier+"
    if precision == "fp16" and numbers(version) < (11,):
        assert ("get_layer", "precision =", "DataType.FLOAT") in asked
        assert ("create_builder_config", "set_flag", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS") in asked


def test_a_board_keeps_what_its_plugins_have_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan, copy = plan_build(tiny_models("both")[0], "fp16", "8.2.1")
    world = install_fakes(monkeypatch, "8.2.1", tmp_path)
    given: list[bytes | None] = []

    def read(text: ctypes.c_char_p) -> int:
        given.append(text.value)
        return 1

    def told(text: Any, size: ctypes.c_int32) -> int:
        if text is not None:
            text.value = b"lines"
        return 5

    world.exported = SimpleNamespace(DyndeployReadTimedTactics=read, DyndeployTimedTactics=told)
    work = tmp_path / "agent"
    job = agent.Job(str(work), "0" * 32)
    (work / "jobs" / job.key / "out").mkdir(parents=True)
    digests = {}
    for name, module in board_modules().items():
        digests[name] = hashlib.sha256(module).hexdigest()
        job.store.put(digests[name], len(module), 0, module)
    (tmp_path / "model").write_bytes(copy.SerializeToString(deterministic=True))

    def build(plugins: str) -> None:
        """With the library that a job has made."""
        made = work / "jobs" / plugins
        (made / "out").mkdir(parents=True, exist_ok=True)
        (made / "out" / LIBRARY).write_bytes(b"plugins")
        files = {LIBRARY: hashlib.sha256(b"plugins").hexdigest()}
        (made / "result.json").write_text(json.dumps({"files": files}))
        spec = {"plan": plan.to_json(), "plugins": plugins, "library": LIBRARY, "versions": {}, "modules": digests}
        agent._build_tensorrt(job, spec, str(tmp_path / "model"))

    build("1" * 32)
    assert given == [] and [path.read_bytes() for path in work.glob("tactics-*.cache")] == [b"lines"]
    build("1" * 32)
    assert given == [b"lines"]
    build("2" * 32)
    assert given == [b"lines"], "another library may have other tiles"
    assert len(list(work.glob("tactics-*.cache"))) == 2
    agent.Agent(str(work), b"")._clean()
    assert list(work.glob("*.cache")) == []


@pytest.mark.parametrize("tuning", [True, False])
def test_tiles_are_tuned_unless_the_user_rules_it_out(tuning: bool) -> None:
    plan, copy = plan_build(tiny_models()[0], "fp32", "10.16", options=BuildOptions(tuning=tuning))
    assert plan.tuning is tuning and BuildPlan.from_json(plan.to_json()) == plan
    stated = [a.i for node in copy.graph.node for a in node.attribute if a.name == TUNING]
    assert set(stated) == {int(tuning)}


def test_a_plan_for_another_tensorrt_is_not_carried_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_fakes(monkeypatch, "8.6.1.6", tmp_path)
    plan, copy = plan_build(tiny_models()[1], "fp32", "8.5.3.1")
    with pytest.raises(DyndeployError, match=r"planned for TensorRT 8\.5\.3\.1, and this is 8\.6\.1\.6"):
        TensorRT.load().build(copy.SerializeToString(), plan)
    plan, copy = plan_build(tiny_models()[0], "fp32", "8.6.1.6")
    with pytest.raises(DyndeployError, match="No TensorRT plugin is registered for SpatialBottleneck, "):
        TensorRT.load().build(copy.SerializeToString(), plan)
    with pytest.raises(DyndeployError, match="cannot read the graph: In node"):
        TensorRT.load().build(copy.SerializeToString(), replace(plan, plugins=()))


@pytest.mark.parametrize(("precision", "version"), [("fp32", "8.2.1"), ("fp16", "8.2.1"), ("fp16", "11.4.0")])
def test_plans_know_what_their_plugins_are_given(precision: str, version: str) -> None:
    plan, copy = plan_build(tiny_models("both")[0], precision, version)
    assert BuildPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [node.name for node in plan.plugin_nodes] == [node.name for node in copy.graph.node if node.domain]
    for node in plan.plugin_nodes:
        spec = OPERATORS[node.operator]
        ports = spec.native_inputs("tensorrt")
        assert [len(shape) for shape in node.shapes] == [len(port.shape) for port in ports]
        assert len(node.attributes) == sum(attribute.length or 1 for attribute in spec.attributes)
        reads = plan.plugin_types[node.operator]["reads"]
        assert reads[0] == ("any" if spec.decides else "float16" if precision == "fp16" else "float32")
    first = next(node for node in plan.plugin_nodes if node.operator == "SpatialChannelBottleneckProjection")
    assert first.shapes[0] == (1, 16, 16, 8) and first.attributes == (2, 2, 1, 1, 1, 1, 1, 1, 1)
