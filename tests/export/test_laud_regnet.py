"""Bottlenecks with squeeze-and-excitation, from the network to the file: every mode, both ways of pooling."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import dyndeploy
from dyndeploy.blocks import Tape, early_exits
from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.graphs.tensorrt import PrecisionPlan, required_creators, tensorrt_model
from dyndeploy.measure import profile_bundle
from dyndeploy.nets import LaudRegNet, LaudRegNetConfig
from dyndeploy.nets.regnet import StageWidth
from dyndeploy.ops import OPERATORS
from dyndeploy.reporting import compare_profile, predict_profile
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.nets.helpers import randomize

MODES = ("layer", "channel", "spatial", "both")


def tiny(se: str, modes: tuple[str, ...] = MODES) -> LaudRegNet:
    """A mode in every stage; the first block of each has a projection, the second one the identity."""
    # Groups of 4 channels of the mask across groups of 6 of the 3x3.
    widths = [StageWidth(2, channels, 6) for channels in (12, 12, 24, 24)]
    config = LaudRegNetConfig(
        mode=modes, granularity=(2, 2, 3, 2), channel_granularity=4, num_classes=5, se=se, reduction=4
    )
    torch.manual_seed(0)
    network = LaudRegNet("tiny", widths, config, stem_channels=8, stem_stride=1)
    return randomize(network, torch.randn(8, 3, 48, 40))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("se", ["exact", "active"])
def test_every_mode_is_exported_as_it_is_computed(se: str, tmp_path: Path) -> None:
    network = tiny(se)
    settings = dyndeploy.ExportSettings(input_size=(48, 40), static=True)
    bundle = dyndeploy.export_model(network, tmp_path / "b", settings)
    assert [info.op_type for info in bundle.manifest.operators if "Bottleneck" in info.op_type] == [
        f"{name}SEBottleneck{variant}"
        for name in ("Layer", "Channel", "Spatial", "SpatialChannel")
        for variant in ("Projection", "")
    ]
    assert {mask.name for mask in bundle.manifest.masks} >= {
        "mask/trunk_output.block1.block1-0/layer",
        "mask/trunk_output.block4.block4-1/channel",
    }
    for native in ("auto", "off"):
        report = dyndeploy.verify_bundle(bundle, native=native)
        assert report.passed, [check for check in report.checks if not check.passed]
        apart = [check for check in report.checks if "against the exact network" in check.name]
        assert len(apart) == (1 if se == "active" else 0)
        assert all("relative difference" in check.detail for check in apart)
    assert any("se=active averages" in note for note in bundle.manifest.notes) == (se == "active")

    # Everything, and nothing: as the network computes it.
    masks = bundle.manifest.masks
    x = torch.randn(1, 3, 48, 40)
    overlay = overlay_forced_masks(bundle.load_model(), masks)
    for native, value in itertools.product(("auto", "off"), (0.0, 1.0)):
        with OnnxRuntimeSession(overlay, threads=1, native=native) as session:
            with Tape(network, force=lambda name, mask, value=value: torch.full_like(mask, value)), torch.no_grad():
                expected = network(x).logits.numpy()
            given = {mask.name: np.full(mask.shape, value, np.float32) for mask in masks}
            found = session.run({"input": x.numpy(), **forced_feeds(given, masks)})["logits"]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_profile_predict_compare_and_the_copy_for_tensorrt(tmp_path: Path) -> None:
    network = tiny("exact", ("spatial", "both", "layer", "channel"))
    bundle = dyndeploy.export_model(
        network, tmp_path / "b", dyndeploy.ExportSettings(input_size=(48, 40), static=True, target="nano")
    )
    plugins = [
        f"{name}SEBottleneck{v}"
        for name in ("Channel", "Layer", "Spatial", "SpatialChannel")
        for v in ("", "Projection")
    ]
    assert not [note for note in bundle.manifest.notes if "no TensorRT plugin" in note]

    profile = profile_bundle(bundle, rates=(0.0, 0.5, 1.0), repeats=3)
    macs = [rate.needed_macs for rate in profile.rates]
    assert macs[0] < macs[1] < macs[2]
    predictions = [dyndeploy.predict(bundle, "nano", rate=rate) for rate in (0.25, 0.5, 1.0)]
    assert predictions[0].latency_ms < predictions[1].latency_ms < predictions[2].latency_ms
    assert not predictions[0].coverage.unknown
    assert len(compare_profile(profile, predict_profile(profile, "nano")).rates) == 4

    # The copy holds the weights as the plugins read them, and no constants of skipped channels.
    model = bundle.load_model()
    copy = tensorrt_model(model, PrecisionPlan("fp16", typed=True))
    assert set(plugins) <= set(required_creators(copy)) and not copy.functions
    constants = {item.name: numpy_helper.to_array(item) for item in copy.graph.initializer}
    sources = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in (node for node in copy.graph.node if node.op_type in plugins):
        spec = OPERATORS[node.op_type]
        assert len(node.input) == len(spec.inputs), "no constants besides"
        original = next(source for source in model.graph.node if source.name == node.name)
        for name in ("ws", "we"):
            index = spec.input_index(name)
            packed, weight = constants[node.input[index]], sources[original.input[index]]
            assert packed.dtype == np.float16 and np.array_equal(packed, weight.T.astype(np.float16))
        assert all(constants[node.input[spec.input_index(name)]].dtype == np.float32 for name in ("bs", "be"))


@pytest.mark.parametrize(("mode", "size"), [("both", (33, 47)), ("spatial", (225, 225))])
def test_odd_sizes_are_exported_as_they_are_computed(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    network = randomize(
        dyndeploy.create_model("laud_regnety_small", mode=mode, granularity=(4, 4, 2, 1)), torch.randn(2, 3, *size)
    )
    bundle = dyndeploy.export_model(network, tmp_path / "b", dyndeploy.ExportSettings(input_size=size))
    height, width = ((side + 1) // 2 for side in size)
    assert bundle.manifest.masks[0].shape[2:] == (height // 4, width // 4)
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_images_below_the_strides_are_refused_before_any_work(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = dyndeploy.create_model("laud_regnety_400mf", mode="layer")
    with pytest.raises(UsageError, match="Input size 31x40 is too small: give at least 32x32"):
        dyndeploy.export_model(network, tmp_path / "b", dyndeploy.ExportSettings(input_size=(31, 40)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("granularity", "said"), [((8, 4, 7, 1), True), ((4, 4, 2, 1), False)])
def test_layer_mode_says_that_patches_have_no_use(granularity: tuple[int, ...], said: bool, tmp_path: Path) -> None:
    network = dyndeploy.create_model("laud_regnety_small", mode="layer", granularity=granularity)
    bundle = dyndeploy.export_model(network, tmp_path / "b", dyndeploy.ExportSettings())
    found = [note for note in bundle.manifest.notes if "has no use" in note]
    text = "mode layer decides on whole blocks: the granularity 8-4-7-1 has no use"
    assert found == ([text] if said else [])
    assert all(mask.shape == (1, 1, 1, 1) for mask in bundle.manifest.masks)


def test_reference_predictor_reads_a_bundle_that_describes_itself(tmp_path: Path) -> None:
    from dyndeploy.prediction.laudnet.network_spec import NetworkSpec, network_spec

    with torch.device("meta"):
        described = dyndeploy.create_model("laud_regnety_800mf", mode="spatial").describe((224, 224))  # type: ignore[operator]
    spec, published = NetworkSpec.from_json(described), network_spec("laud_regnety_800mf")
    assert (spec.stem, spec.stages, spec.classes) == (published.stem, published.stages, published.classes)
    for ours, theirs in zip(spec.blocks, published.blocks, strict=True):
        assert ours.__dict__ | {"name": ""} == theirs.__dict__ | {"name": ""}


def test_exits_between_its_stages(tmp_path: Path) -> None:
    network = tiny("exact", ("static", "layer", "static", "channel"))
    stages = list(network.trunk_output.values())

    class Blocks(torch.nn.Module):
        def __init__(self, *parts: torch.nn.Module) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                out = part(x)
                x = out[0] if isinstance(out, tuple) else out
            return x

    def head(channels: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 5))

    first = Blocks(network.stem, *stages[0].values(), *stages[1].values())
    second = Blocks(*stages[2].values(), *stages[3].values())
    staged = early_exits([first, second], [head(12), head(24)]).eval()
    bundle = dyndeploy.export_model(staged, tmp_path / "b", dyndeploy.ExportSettings(input_size=(48, 40)))
    assert bundle.manifest.exits is not None and len(bundle.manifest.exits.stages) == 2
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert isinstance(onnx.load(bundle.path / bundle.manifest.exits.stages[0].file), onnx.ModelProto)
