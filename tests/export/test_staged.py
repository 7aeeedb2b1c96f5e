"""A small Dynamic Perceiver from PyTorch to stages: graphs, exits, verification, profile, command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from dyndeploy import Bundle, ExportSettings, create_model, export_model, files, verify_bundle
from dyndeploy.bundle import write_manifest
from dyndeploy.cli import run as run_command
from dyndeploy.confidences import confidences
from dyndeploy.data import sample_photographs
from dyndeploy.errors import UsageError
from dyndeploy.graphs.stages import whole_model
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.inference import classify
from dyndeploy.measure.exits import ExitTimes, mix_result, profile_exits
from dyndeploy.measure.samples import Samples
from dyndeploy.nets import DynPerceiver, exit_macs
from dyndeploy.runtimes import OnnxRuntimeSession, StagedSession, open_staged
from dyndeploy.runtimes.staged import first_reached
from dyndeploy.verification import probe_thresholds

NAME, OPTIONS = "resnet10_small_perceiver_t32", {"depth_factor": (0, 1, 0, 0)}
SIZE = (32, 32)


@pytest.fixture(scope="module")
def network() -> DynPerceiver:
    """Random statistics of every norm, and heads that are sure of themselves to different degrees."""
    torch.manual_seed(0)
    made = create_model(NAME, **OPTIONS).eval()
    assert isinstance(made, DynPerceiver)
    for module in made.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.2)
            module.bias.data.normal_(0, 0.2)
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    made.latent.data.normal_()
    heads = (made.early_classifier3, made.classifier_att, made.classifier_cnn, made.classifier_merge[1])
    for head, scale in zip(heads, (16, 4, 8, 6), strict=True):
        head.weight.data.mul_(scale)
    return made


@pytest.fixture(scope="module")
def bundle(network: DynPerceiver, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("staged") / "cpu"
    return export_model(network, folder, ExportSettings(static=True, graph="if"))


@pytest.fixture(scope="module")
def for_nano(network: DynPerceiver, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Without exit 3, in FP16."""
    folder = tmp_path_factory.mktemp("staged") / "nano"
    return export_model(network, folder, ExportSettings(target="nano", exits=(1, 2, 4), precision="fp16", static=True))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    generator = np.random.default_rng(5)
    coarse = generator.standard_normal((12, 3, 4, 4)) * generator.uniform(0.2, 4, (12, 1, 1, 1))
    return np.kron(coarse, np.ones((8, 8))).astype(np.float32)


@pytest.fixture(scope="module")
def expected(network: DynPerceiver, pictures: np.ndarray) -> np.ndarray:
    """PyTorch's logits of every exit, (exits, N, classes)."""
    with torch.no_grad():
        return np.stack([logits.numpy() for logits in network(torch.from_numpy(pictures)).exits])


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Iterator[StagedSession]:
    with open_staged(bundle, thresholds=(0.5, 0.5, 0.5)) as opened:
        yield opened


def test_graphs_stay_small_and_plain(bundle: Bundle, for_nano: Bundle) -> None:
    assert [stage.exit for stage in bundle.exits.stages] == [1, 2, 3, 4]
    # Of the legacy exporter with a dynamic batch, a network of this kind has some 5000 nodes.
    for opened, bounds in ((bundle, (280, 90, 12, 40)), (for_nano, (480, 160, 80))):
        for model, bound in zip(opened.load_stages(), bounds, strict=True):
            kinds = {node.op_type for node in model.graph.node}
            assert not kinds & {"Shape", "Gather", "Expand", "BatchNormalization", "Cast", "Constant", "Unsqueeze"}
            assert len(model.graph.node) <= bound
            constants = {item.name for item in model.graph.initializer}
            assert all(set(node.input) - constants for node in model.graph.node), "nothing constant is left to compute"
            names = [node.name for node in model.graph.node]
            assert len(set(names)) == len(names) and all("/" in name for name in names)


def test_the_first_queries_and_the_pooled_convolutions_are_folded(bundle: Bundle, network: DynPerceiver) -> None:
    first = bundle.load_stages()[0]
    assert "AveragePool" not in {node.op_type for node in first.graph.node}
    shapes = [tuple(item.dims) for item in first.graph.initializer]
    channels, tokens = network.channels[0], network.architecture.tokens()[0]
    assert (1, tokens, channels) in shapes, "queries of the learnt latents"
    # 32 x 32 pixels in windows of 8 behind a 7 x 7 convolution.
    assert (channels, 1, 14, 14) in shapes


def test_carried_tensors_are_named_and_typed(bundle: Bundle, for_nano: Bundle) -> None:
    exits = bundle.exits
    assert exits.dynamic_batch and not for_nano.exits.dynamic_batch
    assert (exits.disabled, for_nano.exits.disabled) == ((), (3,))
    assert bundle.manifest.network.mode == "early_exit"
    assert [info.name for info in exits.stages[0].inputs] == ["images"]
    seen: dict[str, Any] = {}
    for stage in exits.stages:
        names = [info.name for info in stage.outputs]
        assert (names[0], names[-1]) == ("logits", "confidence")
        assert all(info.name == "images" or seen[info.name] == info for info in stage.inputs)
        seen |= {info.name: info for info in stage.outputs[1:-1]}
    assert all(info.dtype == "float32" and info.shape[0] == 1 for info in seen.values())
    assert {model.opset_import[0].version for model in for_nano.load_stages()} == {13}


def test_macs_are_the_networks_own(bundle: Bundle, for_nano: Bundle, network: DynPerceiver) -> None:
    assert tuple(stage.macs for stage in bundle.exits.stages) == exit_macs(network, SIZE)
    assert tuple(stage.macs for stage in for_nano.exits.stages) == exit_macs(network, SIZE, (1, 2, 4))
    assert bundle.manifest.static_macs < bundle.exits.stages[-1].macs, "exit 3 has a head of its own"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_exits_and_logits_are_pytorchs(
    data: st.DataObject, session: StagedSession, pictures: np.ndarray, expected: np.ndarray
) -> None:
    confident = np.stack([confidences(logits) for logits in expected])
    apart = st.floats(0, 1).filter(lambda value: np.abs(confident - value).min() > 1e-4)
    thresholds = (*data.draw(st.tuples(apart, apart, apart)), -np.inf)
    chosen = data.draw(st.lists(st.integers(0, len(pictures) - 1), min_size=1, max_size=8))
    session.thresholds = thresholds
    result = session.run(pictures[chosen])
    stages = first_reached(confident, thresholds)[chosen]
    assert (result.exits == stages + 1).all()
    np.testing.assert_allclose(result.logits, expected[stages, chosen], rtol=1e-3, atol=1e-4)


def test_the_pictures_differ_in_confidence(expected: np.ndarray) -> None:
    confident = np.stack([confidences(logits) for logits in expected])
    assert confident.std(1).min() > 0.02


def test_every_exit_of_the_board_bundle(for_nano: Bundle, pictures: np.ndarray, expected: np.ndarray) -> None:
    with open_staged(for_nano) as opened:
        got = opened.run_all(pictures)
    for logits, wanted in zip(got, expected[[0, 1, 3]], strict=True):
        np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)


def test_one_graph_with_branches(bundle: Bundle, pictures: np.ndarray, expected: np.ndarray) -> None:
    confident = np.stack([confidences(logits) for logits in expected])
    with OnnxRuntimeSession(bundle.load_branched()) as opened:
        for thresholds in probe_thresholds(expected)[::3]:
            stages = first_reached(confident, thresholds)
            for index in range(0, len(pictures), 4):
                feeds = {"images": pictures[index : index + 1], "thresholds": np.float32(thresholds[:-1])}
                result = opened.run(feeds)
                assert result["exit"].tolist() == [stages[index] + 1]
                np.testing.assert_allclose(result["logits"][0], expected[stages[index], index], rtol=1e-3, atol=1e-4)


def test_probes_reach_every_exit_and_stay_off_confidences(expected: np.ndarray) -> None:
    confident = np.stack([confidences(logits) for logits in expected])
    probes = probe_thresholds(expected)
    assert len(probes) == expected.shape[1] + 1
    taken = np.concatenate([first_reached(confident, thresholds) for thresholds in probes])
    assert set(taken) == {0, 1, 2, 3}


def test_verification(bundle: Bundle, for_nano: Bundle, tmp_path: Path) -> None:
    for opened in (bundle, for_nano):
        report = verify_bundle(opened)
        assert report.passed, [check for check in report.checks if not check.passed]
        assert {check.name for check in report.checks} >= {"exit 4: logits", "exits under probe thresholds"}
    assert max(error.relative_error for error in report.outputs) < 1e-4
    shutil.copytree(bundle.path, tmp_path / "b")
    damaged = Bundle.open(tmp_path / "b")
    model = damaged.load_stages()[1]
    weight = max(model.graph.initializer, key=lambda item: np.prod(item.dims))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    onnx.save(model, damaged.stages[1])
    assert [check.name for check in verify_bundle(damaged).checks if not check.passed] == ["files"]
    sums = {name: files.sha256(damaged.path / name) for name in damaged.manifest.files}
    write_manifest(damaged.path, replace(damaged.manifest, files=sums))
    failed = {check.name for check in verify_bundle(tmp_path / "b").checks if not check.passed}
    assert {"exit 2: logits", "exit 4: logits"} <= failed
    assert "exit 1: logits" not in failed


def test_profile(bundle: Bundle) -> None:
    profile = profile_exits(bundle, repeats=2, warmup=1, mixes=[(1, 1, 1, 1), (60, 20, 10, 10)], thresholds=(0, 0, 0))
    assert [entry.exit for entry in profile.exits] == [1, 2, 3, 4]
    assert [entry.macs for entry in profile.exits] == [stage.macs for stage in bundle.exits.stages]
    assert [mix.name for mix in profile.mixes] == ["25/25/25/25", "60/20/10/10", "data"]
    data = profile.mixes[-1]
    assert data.shares == (1, 0, 0, 0)
    assert data.mean_macs == profile.exits[0].macs
    assert data.realised_speedup == pytest.approx(1 / profile.exits[0].relative)
    assert profile.overhead == profile.staging.relative - 1
    assert profile.branched is not None and profile.branched.macs == bundle.exits.stages[-1].macs
    json.dumps(profile.to_json(), allow_nan=False)
    for wrong, message in (([(1, 2)], "4 shares"), ([(1, 1, 1, -1)], "not valid")):
        with pytest.raises(UsageError, match=message):
            profile_exits(bundle, mixes=wrong)


def test_a_mix_is_weighted_by_its_shares() -> None:
    samples = Samples((1.0, 1.0), (0, 0))
    times = [ExitTimes(1, 250, samples, 0.3, None), ExitTimes(2, 1000, samples, 1.1, None)]
    mix = mix_result("75/25", (0.75, 0.25), times, 20.0, 1000)
    assert mix.mean_macs == 437.5
    assert mix.mean_ms == pytest.approx(20 * (0.75 * 0.3 + 0.25 * 1.1))
    assert mix.ideal_speedup == pytest.approx(1000 / 437.5)
    assert mix.realised_speedup == pytest.approx(2.0)
    assert mix.realisation == pytest.approx(2.0 * 437.5 / 1000)


def test_images_are_classified(bundle: Bundle, network: DynPerceiver) -> None:
    paths = sample_photographs()
    images = torch.from_numpy(bundle.reference()["input"][:2])
    with torch.no_grad():
        wanted = network(images).exits
    for thresholds, exit in (((0.0, 0.0, 0.0), 1), ((2.0, 2.0, 2.0), 4)):
        results = classify(bundle, paths, thresholds=thresholds)
        assert [r.exit for r in results] == [exit] * 2
        assert [r.label for r in results] == wanted[exit - 1].argmax(1).tolist()
        shares = torch.softmax(wanted[exit - 1], 1).amax(1).tolist()
        assert [r.confidence for r in results] == pytest.approx(shares, abs=1e-4)
        assert all(r.ms > 0 and r.rates == {} for r in results)
    with pytest.raises(UsageError, match="dyndeploy calibrate"):
        classify(bundle, paths)


def test_command_line(bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photograph = str(sample_photographs()[0])
    assert run_command(["run", str(bundle.path), photograph, "--thresholds", "0,0,0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["image"], result["exit"], result["rates"]) == (photograph, 1, {}) and 0 <= result["label"] < 10
    assert run_command(["run", str(bundle.path), photograph]) == 2
    assert "dyndeploy calibrate" in capsys.readouterr().err
    arguments = ["profile", str(bundle.path), "--exit-mix", "25/25/25/25", "--repeats", "2"]
    assert run_command([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["mixes"][0]["shares"] == [0.25] * 4
    assert run_command(arguments) == 0
    assert "exit 4" in capsys.readouterr().out
    assert run_command([*arguments, "--device", "nano", "--host", "user@board", "--native", "off"]) == 2
    assert "--native off is for this machine" in capsys.readouterr().err
    predicted = ["predict", str(bundle.path), "--device", "nano"]
    assert run_command([*predicted, "--exit-mix", "40/30/20/10"]) == 0
    assert "an image that leaves at each exit, predicted" in capsys.readouterr().out
    assert run_command([*predicted, "--predictor", "reference"]) == 2
    assert "exits early" in capsys.readouterr().err
    assert run_command(["engine", str(bundle.path), "--verify"]) == 2
    assert "--device BOARD' verifies and times every stage" in capsys.readouterr().err
    for refused in (["--graph", "if", "--target", "nano"], ["--exits", "1,2"], ["--precision", "bf16"]):
        assert run_command(["export", NAME, *refused, "-o", str(tmp_path / "b")]) == 2
    assert run_command(["export", "laud_resnet14_small", "--exits", "1,4", "-o", str(tmp_path / "b")]) == 2
    assert "no early exits" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_networks_with_masks_are_classified_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = create_model("laud_resnet14_small", mode="layer")
    masks = export_model(network, tmp_path / "masks")
    paths = sample_photographs()
    results = classify(masks, paths)
    reference = masks.reference()
    assert [r.label for r in results] == reference["logits"][:2].argmax(1).tolist()
    for row, result in enumerate(results):
        assert result.exit is None
        assert result.rates == {mask.name: float(reference[mask.name][row].mean()) for mask in masks.manifest.masks}
    with pytest.raises(UsageError, match="no exits"):
        classify(masks, paths, thresholds=(0.5,))
    assert run_command(["run", str(masks.path), *map(str, paths)]) == 0
    assert "mean rate" in capsys.readouterr().out
    assert run_command(["profile", str(masks.path), "--exit-mix", "50/50"]) == 2


def test_fp16_stages_compute_in_half(bundle: Bundle) -> None:
    """Such stages have no blocks: all their nodes are called head. ONNX Runtime computes the types as written."""
    whole = whole_model(bundle.load_stages(), every_exit=True)
    copy = tensorrt_model(whole, PrecisionPlan("fp16", typed=True))
    inferred = onnx.shape_inference.infer_shapes(copy).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    maps = [node.output[0] for node in copy.graph.node if node.op_type == "Conv"]
    assert len(maps) > 5 and {types[name] for name in maps} == {onnx.TensorProto.FLOAT16}
    image = bundle.reference()["input"][:1]
    results = []
    for model in (whole, copy):
        session = onnxruntime.InferenceSession(model.SerializeToString())
        names = [output.name for output in session.get_outputs()]
        values = session.run(None, {session.get_inputs()[0].name: image})
        results.append(dict(zip(names, values, strict=True)))
    single, half = results
    for name, value in single.items():
        assert half[name].dtype == np.float32
        np.testing.assert_allclose(half[name], value, atol=2e-2 * np.abs(value).max(), err_msg=name)
    assert any(not np.array_equal(half[name], single[name]) for name in single)
