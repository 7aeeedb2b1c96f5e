from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from dyndeploy import Bundle, ExportSettings, create_model, export_model
from dyndeploy.errors import ExportError, InputError, OutputError, UsageError
from dyndeploy.graphs.passes import Context, legalise_opset
from dyndeploy.nets import save_checkpoint
from dyndeploy.ops import DOMAIN
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.export.conftest import MODES, lively_network


def run_all(path: Path, bundle: Bundle) -> dict[str, np.ndarray]:
    """Run an ONNX file on the reference images without any library of ours."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    images = bundle.reference()["input"]
    parts = [session.run(names, {"input": batch}) for batch in np.split(images, len(images) // bundle.manifest.batch)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


@pytest.mark.parametrize("target", ["cpu", "nano"])
@pytest.mark.parametrize("mode", MODES)
def test_plain_onnxruntime_gives_what_pytorch_gave(mode: str, target: str, make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle(mode, target=target)
    got, expected = run_all(bundle.model, bundle), bundle.reference()
    for mask in bundle.manifest.masks:
        np.testing.assert_array_equal(got[mask.name], expected[mask.name])
        assert got[mask.name].shape[1:] == mask.shape[1:]
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "opset", "ir"), [("cpu", 18, 10), ("nano", 13, 8), ("tx2", 13, 8), ("agx_orin", 20, 10)]
)
def test_opset_and_ir_are_those_of_the_target(
    target: str, opset: int, ir: int, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("spatial", target=target)
    model = onnx.load(bundle.model)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset, DOMAIN: 1}
    assert model.ir_version == ir
    for function in model.functions:
        assert {entry.domain: entry.version for entry in function.opset_import} == {"": opset}
    used = {node.op_type for node in model.graph.node if node.name.startswith("head/")}
    assert used == {"Reshape", "MatMul", "Gemm"}, "runtimes are slow at means over the leading axes of a map"


def test_axes_of_a_mean_become_an_attribute_below_opset_18() -> None:
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0, noop_with_empty_axes=0)],
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, (2, 3, 5, 7))],
        [tensor("y", onnx.TensorProto.FLOAT, (2, 7))],
        [onnx.numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    legalise_opset(model, Context({}, [], 13, 8, None, "nano"))
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert not model.graph.initializer


def test_every_dynamic_node_is_complete(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("both", target="nano")
    model = onnx.load(bundle.model)
    dynamic = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [node.name for node in dynamic] == [info.node for info in bundle.manifest.operators]
    assert len(dynamic) == 4 * 3
    bodies = {function.name for function in model.functions}
    for node in dynamic:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_version"] == b"1"
        assert attributes["plugin_namespace"] == b""
        assert node.op_type in bodies
    assert not any(node.metadata_props for node in model.graph.node), "IR 8 has no place for metadata"


def test_nodes_are_named_after_their_blocks(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("spatial", static=True)
    for path in (bundle.model, bundle.static):
        names = [node.name for node in onnx.load(path).graph.node]
        assert len(set(names)) == len(names)
        assert {name.split("/")[0] for name in names} == {
            "stem",
            "layer1.0",
            "layer2.0",
            "layer3.0",
            "layer4.0",
            "head",
        }
    assert {"layer1.0/SpatialMasker", "layer1.0/SpatialBottleneck"} <= {i.node for i in bundle.manifest.operators}


def test_batch_keeps_samples_apart(make_bundle: Callable[..., Bundle]) -> None:
    single, triple = make_bundle("both"), make_bundle("both", batch=3)
    assert triple.manifest.batch == 3
    got, expected = run_all(triple.model, triple), triple.reference()
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    masks = [mask.name for mask in triple.manifest.masks]
    assert any(not np.array_equal(expected[name][0], expected[name][1]) for name in masks), "samples must differ"
    np.testing.assert_allclose(expected["logits"][:2], single.reference()["logits"][:2], rtol=1e-5, atol=1e-6)


def test_static_twin_has_no_dynamic_operator(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("spatial", static=True)
    assert bundle.static is not None
    model = onnx.load(bundle.static)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [output.name for output in model.graph.output] == ["logits"]
    assert make_bundle("spatial").static is None


def test_manifest_tells_what_was_exported(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("spatial", input_size=(40, 48))
    manifest = bundle.manifest
    assert (manifest.network.name, manifest.network.mode) == ("laud_resnet14_small", "spatial")
    assert manifest.network.granularity == (4, 4, 2, 1)
    assert manifest.input_size == (40, 48)
    assert manifest.inputs[0].shape == (1, 3, 40, 48)
    assert manifest.masks[0].shape == (1, 1, 10, 12)
    assert manifest.network_spec["blocks"][0]["height"] == 40
    reference = bundle.reference()
    assert manifest.reference.images == len(reference["input"]) == 4
    for name, rate in manifest.reference.rates.items():
        assert rate == pytest.approx(float(reference[name].mean()))
    assert 0.05 < manifest.reference.flops_ratio < 1
    assert set(manifest.files) == {"model.onnx", "reference.npz"}
    assert bundle.damaged_files() == {}
    rebuilt = create_model(manifest.network.name, **manifest.network.options)
    assert rebuilt.config == lively_network("spatial").config


def test_user_images_become_the_reference(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(np.full((50, 60, 3), 40 + 100 * index, np.uint8)).save(folder / f"{index}.png")
    bundle = export_model(lively_network("layer"), tmp_path / "b", ExportSettings(data=folder))
    images = bundle.reference()["input"]
    assert "images" in bundle.manifest.reference.source
    assert images[0].mean() == pytest.approx((40 / 255 - 0.5) / 0.5, abs=0.02)


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    network = lively_network("spatial")
    with torch.no_grad():
        network.layer2[0].conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"layer2\.0\.conv2\.weight holds NaN"):
        export_model(network, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "nanno"}, "Did you mean 'nano'"),
        ({"target": "nano", "precision": "int8"}, "no INT8 instructions"),
        ({"precision": "fp64"}, "Unknown precision"),
        ({"batch": 0}, "batch size"),
        ({"input_size": (16, 16)}, "too small"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(lively_network("spatial"), tmp_path / "b", ExportSettings(**settings))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not empty"):
        export_model(lively_network("layer"), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_earlier_bundle_is_replaced(tmp_path: Path) -> None:
    first = export_model(lively_network("layer"), tmp_path / "b")
    second = export_model(lively_network("channel"), tmp_path / "b")
    assert (first.manifest.network.mode, second.manifest.network.mode) == ("layer", "channel")
    assert Bundle.open(tmp_path / "b").manifest.network.mode == "channel"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def assert_signal_leaves_nothing(script: str, folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        # The temporary folder appears when the output is claimed: from then on there is work to interrupt.
        deadline = time.monotonic() + 60
        while not list(folder.iterdir()) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, "the export ended before it could be interrupted"
        time.sleep(0.5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    script = f"from dyndeploy.cli import main\nmain(['export', 'laud_resnet50', '-o', {str(tmp_path / 'b')!r}])\n"
    assert_signal_leaves_nothing(script, tmp_path, signal.SIGINT)


def test_an_operator_without_a_rule_is_refused_not_relabelled() -> None:
    node = onnx.helper.make_node("ReduceSum", ["x"], ["y"], name="s")
    node2 = onnx.helper.make_node("Split", ["y"], ["a", "b"], name="split", num_outputs=2)
    graph = onnx.helper.make_graph([node, node2], "g", [], [])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match="no rule takes Split from opset 18 to 13"):
        legalise_opset(model, Context({}, [], 13, 8, None, "nano"))


def test_manifest_is_valid_json_without_nan(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("spatial")
    text = (bundle.path / "bundle.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["schema_version"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_exported_in_single_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    network = lively_network("layer").to(dtype).train()
    bundle = export_model(network, tmp_path / "b")
    assert bundle.manifest.inputs[0].dtype == "float32"
    assert network.training
    assert next(network.parameters()).dtype == dtype, "the caller's network is not changed"


def test_the_other_small_network(tmp_path: Path) -> None:
    bundle = export_model(create_model("laud_resnet26_small", mode="channel"), tmp_path / "b")
    assert bundle.manifest.input_size == (64, 64)
    got, expected = run_all(bundle.model, bundle), bundle.reference()
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1.5, "2", True, None])
def test_wrong_types_in_settings(batch: object) -> None:
    with pytest.raises(UsageError, match="batch size"):
        ExportSettings(batch=batch)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"\(height, width\)"):
        ExportSettings(input_size=(64,))  # type: ignore[arg-type]


def test_foreign_networks_and_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Linear does not say what it takes"):
        export_model(torch.nn.Linear(1, 1), tmp_path / "b")
    with pytest.raises(InputError, match="Cannot read the checkpoint"):
        export_model(lively_network("layer"), tmp_path / "b", ExportSettings(checkpoint=tmp_path / "nope.pt"))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_names_files_that_are_no_text_can_be_opened(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xe9[a]")
    folder.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    network = lively_network("layer")
    checkpoint = save_checkpoint(network, tmp_path / os.fsdecode(b"\xe9.pt")) or tmp_path / os.fsdecode(b"\xe9.pt")
    settings = ExportSettings(data=folder, checkpoint=checkpoint)
    bundle = Bundle.open(export_model(network, tmp_path / os.fsdecode(b"b\xe9"), settings).path)
    assert r"of the folder \udce9[a]" in bundle.manifest.reference.source
    assert bundle.manifest.network.checkpoint == r"\udce9.pt"
    with OnnxRuntimeSession(bundle.model) as session:
        session.run({"input": bundle.reference()["input"][:1]})


def test_a_terminated_export_leaves_nothing(tmp_path: Path) -> None:
    script = f"from dyndeploy.cli import main\nmain(['export', 'laud_resnet50', '-o', {str(tmp_path / 'b')!r}])\n"
    assert_signal_leaves_nothing(script, tmp_path, signal.SIGTERM)


def test_a_closed_terminal_leaves_nothing(tmp_path: Path) -> None:
    script = f"from dyndeploy.cli import main\nmain(['export', 'laud_resnet50', '-o', {str(tmp_path / 'b')!r}])\n"
    assert_signal_leaves_nothing(script, tmp_path, signal.SIGHUP)
