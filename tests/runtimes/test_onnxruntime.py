from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dyndeploy.bundle import TensorInfo
from dyndeploy.errors import BundleError, DyndeployError, InputError, UsageError
from dyndeploy.graphs.forced import forced_feeds, forced_masks, overlay_forced_masks
from dyndeploy.ops import Role
from dyndeploy.runtimes import ANY_SIZE, FALLBACK_BODIES, OnnxRuntimeSession
from dyndeploy.runtimes.native import ISA_VARIABLE, LIBRARY_VARIABLE, NativeLibrary, find_cpu_library
from tests.bundles import MODES, SIZE, tiny_bundle, tiny_models
from tests.ops.cases import build
from tests.ops.test_operators import single_node_model


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return tiny_models()[0]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


def branching_model() -> onnx.ModelProto:
    """``y = (x > 0 for the first element) ? relu(sigmoid(x)) : x`` with an If node."""
    branch = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["s"], name="inner_a"), helper.make_node("Relu", ["s"], ["t"], name="b")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, (4,))],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, (4,))]
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], name="largest", keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["positive"], name="greater"),
        helper.make_node("If", ["positive"], ["y"], name="choice", then_branch=branch, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4,))],
        [helper.make_tensor("zero", TensorProto.FLOAT, (), [0.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_session_describes_itself(model: onnx.ModelProto) -> None:
    with OnnxRuntimeSession(model, threads=2, native="off") as session:
        assert session.inputs == (TensorInfo("input", (1, 3, SIZE, SIZE), "float32"),)
        assert [info.name for info in session.outputs] == ["logits", "mask/layer1.0/spatial", "mask/layer2.0/spatial"]
        assert session.outputs[0].shape == (1, 10)
        assert (session.info.runtime, session.info.threads) == ("onnxruntime", 2)
        assert session.info.native.description == FALLBACK_BODIES
        assert session.info.to_json()["native"] == {"path": None, "sha256": None, "instruction_set": None}


def test_a_path_and_the_model_itself_give_the_same(tmp_path: Path, model: onnx.ModelProto, image: np.ndarray) -> None:
    bundle = tiny_bundle(tmp_path)
    with OnnxRuntimeSession(bundle.model, native="off") as a, OnnxRuntimeSession(model, native="off") as b:
        first, second = a.run({"input": image}), b.run({"input": image}, ["logits"])
    assert list(second) == ["logits"]
    np.testing.assert_array_equal(first["logits"], second["logits"])


def test_a_bound_run_reads_its_arrays_in_place(model: onnx.ModelProto, image: np.ndarray) -> None:
    with OnnxRuntimeSession(model, native="off", profile=True) as session:
        feeds = {"input": image}
        call = session.bind(feeds, ["logits"])
        del feeds
        gc.collect()
        for _ in range(3):
            assert call() is None
        assert len(session.node_times(slice(0, 3))) > 0


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, ["missing input"]),
        ({"image": np.zeros((1, 3, SIZE, SIZE), np.float32)}, ["missing input", "unknown image"]),
        ({"input": np.zeros((1, 3, SIZE, SIZE + 1), np.float32)}, ["(1, 3, 16, 16)", "(1, 3, 16, 17)"]),
        ({"input": np.zeros((3, SIZE, SIZE), np.float32)}, ["(1, 3, 16, 16)", "(3, 16, 16)"]),
        ({"input": np.zeros((1, 3, SIZE, SIZE), np.float64)}, ["float32", "float64"]),
        ({"input": np.full((1, 3, SIZE, SIZE), np.nan, np.float32)}, ["finite", "768"]),
        ({"input": np.full((1, 3, SIZE, SIZE), np.inf, np.float32)}, ["finite"]),
        ({"input": [[1.0]]}, ["NumPy array", "list"]),
    ],
)
def test_wrong_inputs_say_what_was_expected_and_given(model: onnx.ModelProto, feeds: dict, words: list[str]) -> None:
    with OnnxRuntimeSession(model, native="off") as session:
        for attempt in (session.run, session.bind):
            with pytest.raises(InputError) as caught:
                attempt(feeds)
            for word in words:
                assert word in str(caught.value)


def test_an_unknown_output_is_refused_with_the_nearest_name(model: onnx.ModelProto, image: np.ndarray) -> None:
    with OnnxRuntimeSession(model, native="off") as session, pytest.raises(UsageError, match="Did you mean 'logits'"):
        session.run({"input": image}, ["logit"])


def test_open_sizes_accept_any_size() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with OnnxRuntimeSession(model, native="off") as session:
        assert session.inputs[0].shape == (ANY_SIZE, 2)
        assert session.run({"x": -np.ones((5, 2), np.float32)})["y"].tolist() == [[0.0, 0.0]] * 5
        session.bind({"x": np.ones((3, 2), np.float32)})()
        with pytest.raises(InputError, match=r"\(any, 2\)"):
            session.run({"x": np.ones((5, 3), np.float32)})


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_bad_thread_counts_are_refused(model: onnx.ModelProto, threads: object) -> None:
    with pytest.raises(UsageError, match="threads"):
        OnnxRuntimeSession(model, threads=threads, native="off")  # type: ignore[arg-type]


def test_four_threads_per_processor_are_the_most(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    with OnnxRuntimeSession(model, threads=4, native="off") as session:
        assert session.info.threads == 4
    with pytest.raises(UsageError, match="at most 4 threads"):
        OnnxRuntimeSession(model, threads=5, native="off")


def test_a_failure_is_an_exception_and_nothing_on_stderr(
    model: onnx.ModelProto, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BundleError, match="NoSuchOperator"):
        OnnxRuntimeSession(broken, native="off")
    # "tiny" has a convolution of 8 channels: weights that do not fit are only found while loading.
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    wrong.graph.node[0].input[1] = "head.w"
    with pytest.raises(BundleError, match="cannot load"):
        OnnxRuntimeSession(wrong, native="off")
    assert capfd.readouterr().err == ""


def test_a_missing_and_a_broken_model_are_different_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model at"):
        OnnxRuntimeSession(tmp_path / "nothing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07not a model")
    with pytest.raises(BundleError, match=r"cannot load .*broken\.onnx"):
        OnnxRuntimeSession(tmp_path / "broken.onnx", native="off", profile=True)


def test_a_closed_session_does_not_run(model: onnx.ModelProto, image: np.ndarray) -> None:
    session = OnnxRuntimeSession(model, native="off")
    session.close()
    session.close()
    with pytest.raises(DyndeployError, match="closed"):
        session.run({"input": image})


def test_failures_inside_the_runtime_are_reported_as_such() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "reshape",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4,)), helper.make_tensor_value_info("shape", 7, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n",))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with OnnxRuntimeSession(model, native="off") as session, pytest.raises(DyndeployError, match="ONNX Runtime failed"):
        session.run({"x": np.zeros(4, np.float32), "shape": np.array([3], np.int64)})


def test_node_times_count_a_branch_once(image: np.ndarray) -> None:
    with OnnxRuntimeSession(branching_model(), native="off", profile=True) as session:
        for _ in range(4):
            session.run({"x": np.ones(4, np.float32)})
        times = session.node_times()
    names = [node.name for node in times]
    assert "choice" in names
    assert "inner_a" not in names
    assert all(0 <= node.fastest <= node.microseconds for node in times)
    assert len(set(names)) == len(names)


def test_node_times_of_chosen_runs(model: onnx.ModelProto, image: np.ndarray) -> None:
    with OnnxRuntimeSession(model, native="off", profile=True) as session:
        for _ in range(3):
            session.run({"input": image})
        all_runs = session.node_times(slice(None))
        assert [n.name for n in session.node_times(slice(1, 2))] == [n.name for n in all_runs]
        with pytest.raises(UsageError, match="recorded 3 runs"):
            session.node_times(slice(3, None))


def test_a_session_without_profile_has_no_node_times(model: onnx.ModelProto) -> None:
    with OnnxRuntimeSession(model, native="off") as session, pytest.raises(UsageError, match="profile=True"):
        session.node_times()


def test_profiles_leave_no_files(
    model: onnx.ModelProto, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with OnnxRuntimeSession(model, native="off", profile=True) as session:
        session.run({"input": image})
        session.node_times(slice(None))
        assert list(tmp_path.iterdir()) == []
    with OnnxRuntimeSession(model, native="off", profile=True) as session:
        session.run({"input": image})
    del session
    gc.collect()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the operator library


def test_a_named_library_that_does_not_exist(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="native='off'"):
        OnnxRuntimeSession(model, native=tmp_path / "none.so")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(UsageError):
        find_cpu_library()


def test_a_broken_library_is_never_silently_replaced_by_the_bodies(model: onnx.ModelProto, tmp_path: Path) -> None:
    library = tmp_path / "libbroken.so"
    library.write_bytes(b"no library")
    with pytest.raises(DyndeployError, match="cannot load the operator library"):
        OnnxRuntimeSession(model, native=library)


@pytest.mark.skipif(find_cpu_library() is None, reason="the native operator library is not built")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [1, 2])
def test_library_and_bodies_agree(mode: str, threads: int) -> None:
    model, _, masks = tiny_models(mode, batch=2)
    images = np.random.default_rng(5).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    with (
        OnnxRuntimeSession(model, threads=threads, native="auto") as library,
        OnnxRuntimeSession(model, threads=threads, native="off") as bodies,
    ):
        assert library.info.native.path is not None
        got, expected = library.run({"input": images}), bodies.run({"input": images})
    for mask in masks:
        np.testing.assert_array_equal(got[mask.name], expected[mask.name])
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- precision

NEEDS_LIBRARY = pytest.mark.skipif(find_cpu_library() is None, reason="the native operator library is not built")


@NEEDS_LIBRARY
@pytest.mark.parametrize("mode", MODES)
def test_bf16_is_close_to_fp32_and_not_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The plain C++ kernels, so that this runs on every machine.
    monkeypatch.setenv("DYNDEPLOY_CPU_ISA", "generic")
    model, _, masks = tiny_models(mode, batch=2)
    overlay = overlay_forced_masks(model, masks)
    images = np.random.default_rng(5).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    feeds = {"input": images, **forced_feeds(forced_masks(masks, 0.5, seed=3), masks)}
    with (
        OnnxRuntimeSession(overlay, native="auto", precision="bf16") as reduced,
        OnnxRuntimeSession(overlay, native="auto") as full,
    ):
        assert (reduced.info.precision, full.info.precision) == ("bf16", "fp32")
        got, expected = reduced.run(feeds, ["logits"])["logits"], full.run(feeds, ["logits"])["logits"]
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    assert 1e-5 < error < 2e-2


def test_bf16_needs_the_library(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="switched off: function bodies compute in fp32"):
        OnnxRuntimeSession(model, native="off", precision="bf16")
    monkeypatch.setattr("dyndeploy.runtimes.onnxruntime.find_cpu_library", lambda: None)
    with pytest.raises(UsageError, match="not built: function bodies compute in fp32"):
        OnnxRuntimeSession(model, precision="bf16")


@NEEDS_LIBRARY
def test_bf16_needs_the_instructions(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNDEPLOY_CPU_ISA", "avx2")
    with pytest.raises(UsageError, match=r"This machine cannot run bf16.*Export with --precision fp32"):
        OnnxRuntimeSession(model, precision="bf16")


def test_sessions_of_several_instruction_sets(
    model: onnx.ModelProto, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = find_cpu_library()
    if library is None:
        pytest.skip("native library not built")
    sessions = []
    for name in library.instruction_sets():
        monkeypatch.setenv(ISA_VARIABLE, name)
        sessions.append(OnnxRuntimeSession(model))
        assert sessions[-1].info.native.instruction_set == name
        assert f", {name})" in sessions[-1].info.native.description
    monkeypatch.delenv(ISA_VARIABLE)
    expected = sessions[0].run({"input": image}, ["logits"])["logits"]
    for session in sessions:
        # The environment counts when a session is opened, not when it runs.
        np.testing.assert_allclose(session.run({"input": image}, ["logits"])["logits"], expected, rtol=1e-3, atol=1e-4)
        session.close()


def test_an_instruction_set_that_the_machine_lacks_is_refused(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_cpu_library() is None:
        pytest.skip("native library not built")
    monkeypatch.setenv(ISA_VARIABLE, "vax")
    with pytest.raises(UsageError, match=r"instruction set 'vax' .*it runs .*generic. Unset DYNDEPLOY_CPU_ISA"):
        OnnxRuntimeSession(model)


def test_a_library_that_would_ignore_bf16_is_refused(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    # As libraries were before there was a choice: registers, and does not know the entry.
    source, library = tmp_path / "old.c", tmp_path / "libold.so"
    source.write_text("void *RegisterCustomOps(void *options, const void *api) { return 0; }")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    old = find_cpu_library()
    assert old is not None and old.precisions() == ("fp32",)
    with pytest.raises(UsageError, match=r"computes in fp32 only and would ignore bf16\. Build it again"):
        OnnxRuntimeSession(model, precision="bf16")
    with OnnxRuntimeSession(model, native=library) as session:
        assert session.info.precision == "fp32"


@NEEDS_LIBRARY
def test_the_library_reports_its_precisions() -> None:
    library = find_cpu_library()
    assert library is not None and library.precisions() == ("fp32", "bf16", "int8")


@NEEDS_LIBRARY
def test_int8_runs_with_a_library_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    library = find_cpu_library()
    assert library is not None
    case = build("QuantizedSpatialChannelBottleneck", batch=2, channels=24, hidden=12)
    integers = single_node_model(case, 17)
    inputs = zip(case.spec.inputs, case.inputs, strict=True)
    feeds = {port.name: value.numpy() for port, value in inputs if port.role is not Role.WEIGHT}
    expected = case.reference().numpy()
    for name in library.instruction_sets("int8"):
        monkeypatch.setenv(ISA_VARIABLE, name)
        with OnnxRuntimeSession(integers, precision="int8") as session:
            assert session.info.native.instruction_set == name
            np.testing.assert_array_equal(session.run(feeds)["result"], expected)
    monkeypatch.delenv(ISA_VARIABLE)
    # An older library leaves operators in integers to their function bodies.
    for native in ("off", "auto"):
        monkeypatch.setattr(NativeLibrary, "precisions", lambda self: ("fp32", "bf16"))
        with OnnxRuntimeSession(integers, precision="int8", native=native) as session:
            assert session.info.native.path is None
            np.testing.assert_array_equal(session.run(feeds)["result"], expected)


def test_unknown_precisions(model: onnx.ModelProto) -> None:
    with pytest.raises(UsageError, match="Did you mean 'bf16'"):
        OnnxRuntimeSession(model, native="off", precision="fb16")
