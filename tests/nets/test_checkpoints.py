from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dyndeploy.errors import CheckpointError, OutputError, UsageError
from dyndeploy.nets import LaudResNet, load_checkpoint, save_checkpoint

from .helpers import MODES, build, narrow_resnet50


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def weights_of(model: LaudResNet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(model: LaudResNet, weights: dict[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refused(model: LaudResNet, path: Path, message: str) -> None:
    """The load fails with the message and changes nothing."""
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, path)
    assert str(path) in str(caught.value)
    assert_equal(model, before)


@pytest.mark.parametrize("mode", MODES)
def test_our_own_files(tmp_path: Path, mode: str) -> None:
    source, target = narrow_resnet50(mode=mode), narrow_resnet50(mode=mode)
    save_checkpoint(source, tmp_path / "deep" / "a.pt", epoch=7, history=[1.5, {"loss": torch.ones(2)}])
    report = load_checkpoint(target, tmp_path / "deep" / "a.pt")
    assert_equal(target, source.state_dict())
    assert (report.source_format, report.epoch, report.architecture) == ("dyndeploy", 7, "laud_resnet50")
    assert report.missing == report.unexpected == report.renamed == report.option_differences == ()
    assert report.extra["history"][0] == 1.5
    assert os.listdir(tmp_path / "deep") == ["a.pt"]


def laudnet_file(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "epoch": 99,
        "model": "uni_resnet50",
        "hyper_set": "finetune_100eps_1024bs_lr0x08",
        "state_dict": weights,
        "best_acc1": torch.tensor(77.1),
        "best_acc1_corresponding_acc5": np.float64(93.5),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.08, "params": [0, 1]}]},
        "val_acc_top1": [np.float32(70.0), 71.0],
        "val_FLOPs": [2.1e9],
        "temp": 0.1,
    }


def test_laudnet_files(tmp_path: Path) -> None:
    source, target = narrow_resnet50(mode="channel"), narrow_resnet50(mode="channel")
    path = saved(tmp_path / "checkpoint.pth.tar", laudnet_file(source.state_dict()))
    report = load_checkpoint(target, path)
    assert_equal(target, source.state_dict())
    assert (report.source_format, report.epoch, report.architecture) == ("laudnet", 99, "uni_resnet50")
    assert report.missing == report.unexpected == ()
    assert "Epoch 99" in report.summary()


def test_lasnet_files(tmp_path: Path) -> None:
    source, target = narrow_resnet50(mode="spatial"), narrow_resnet50(mode="spatial")
    weights = {key.replace("masker_spatial.conv", "masker.conv2"): v for key, v in source.state_dict().items()}
    report = load_checkpoint(target, saved(tmp_path / "a.pth.tar", laudnet_file(weights)))
    assert_equal(target, source.state_dict())
    assert report.source_format == "lasnet"
    assert ("layer1.0.masker.conv2.bias", "layer1.0.masker_spatial.conv.bias") in report.renamed
    assert len(report.renamed) == 32
    assert "layer1.0.masker.conv2.weight -> layer1.0.masker_spatial.conv.weight" in report.summary()


@pytest.mark.parametrize("mode", ["spatial", "channel", "both", "layer"])
@pytest.mark.parametrize("counters", [True, False])
def test_torchvision_files_leave_the_maskers_fresh(tmp_path: Path, mode: str, counters: bool) -> None:
    source, target = narrow_resnet50(mode="static"), narrow_resnet50(mode=mode)
    weights = {k: v for k, v in source.state_dict().items() if counters or "num_batches" not in k}
    fresh = {k: v for k, v in weights_of(target).items() if ".masker_" in k}
    report = load_checkpoint(target, saved(tmp_path / "resnet50.pth", weights))
    assert report.source_format == "torchvision"
    assert_equal(target, {**source.state_dict(), **fresh})
    counted = [] if counters else [k for k in source.state_dict() if "num_batches" in k]
    assert sorted(report.missing) == sorted([*fresh, *counted])
    assert report.unexpected == ()


@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_wrapped_files(tmp_path: Path, container: str | None, prefix: str, zipped: bool) -> None:
    source, target = narrow_resnet50(mode="both"), narrow_resnet50(mode="both")
    content: Any = {prefix + key: value for key, value in source.state_dict().items()}
    if container:
        content = {container: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    report = load_checkpoint(target, tmp_path / "a.pt")
    assert_equal(target, source.state_dict())
    assert report.source_format == (container or "plain")
    assert report.epoch == (3 if container else None)
    assert len(report.renamed) == (len(source.state_dict()) if prefix else 0)


def test_dtypes_are_converted(tmp_path: Path) -> None:
    source, target = narrow_resnet50().half(), narrow_resnet50().double()
    load_checkpoint(target, saved(tmp_path / "a.pt", source.state_dict()))
    assert target.conv1.weight.dtype == torch.float64
    assert torch.equal(target.conv1.weight, source.conv1.weight.double())


def test_masker_weights_are_ignored_by_a_static_network(tmp_path: Path) -> None:
    source, target = narrow_resnet50(mode="both"), narrow_resnet50(mode="static")
    report = load_checkpoint(target, saved(tmp_path / "a.pt", {"state_dict": source.state_dict()}))
    assert sorted(report.unexpected) == sorted(k for k in source.state_dict() if ".masker_" in k)
    assert "Unexpected, ignored" in report.summary()
    assert torch.equal(target.fc.weight, source.fc.weight)


def test_heads_of_other_tasks_are_ignored(tmp_path: Path) -> None:
    model = narrow_resnet50()
    content = {**model.state_dict(), "aux_head.weight": torch.ones(3)}
    assert load_checkpoint(model, saved(tmp_path / "a.pt", content)).unexpected == ("aux_head.weight",)


def test_own_files_report_other_options(tmp_path: Path) -> None:
    source = narrow_resnet50(mode="spatial", granularity=4)
    target = narrow_resnet50(mode="spatial", granularity=(4, 4, 2, 1))
    save_checkpoint(source, tmp_path / "a.pt")
    report = load_checkpoint(target, tmp_path / "a.pt")
    assert report.option_differences == (("granularity", [4, 4, 4, 4], [4, 4, 2, 1]),)
    assert "saved with granularity 4; this network has 4-4-2-1" in report.summary()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(narrow_resnet50(), tmp_path / "none.pt", "does not exist: check the path")
    refused(narrow_resnet50(), tmp_path, "is a folder")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {})
    path.chmod(0)
    refused(narrow_resnet50(), path, "Permission denied")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, kept: float) -> None:
    model = narrow_resnet50()
    path = saved(tmp_path / "a.pt", model.state_dict())
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused(model, path, "not a readable PyTorch checkpoint")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, path)
    assert "miniz" not in str(error.value)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(5000))
    refused(narrow_resnet50(), path, "not a readable PyTorch checkpoint")


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_newer_pickles_do_not_run(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "owned"), protocol=5))
    refused(narrow_resnet50(), path, r"is whole, but pickled \(protocol 5\)")
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "a.pt"))
    refused(narrow_resnet50(), tmp_path / "a.pt", "is a TorchScript program")


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
def test_hostile_files_do_not_run(tmp_path: Path, layout: str) -> None:
    content = {"state_dict": {"conv1.weight": Hostile(tmp_path / "owned")}}
    path = tmp_path / "a.pt"
    if layout == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    refused(narrow_resnet50(), path, r"posix\.mkdir, which could run code: it was not loaded")
    assert not (tmp_path / "owned").exists()
    # The same bytes do run where nothing holds them back, so this test can fail.
    pickle.loads(pickle.dumps(content))
    assert (tmp_path / "owned").exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    refused(narrow_resnet50(), saved(tmp_path / "a.pt", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds no weights"),
        ({"epoch": 3, "state_dict": {}}, "holds no weights. Its entries are: epoch, state_dict"),
        ({"state_dict": {"conv1.weight": torch.ones(1), "conv1.bias": 3}}, "'conv1.bias' of the weights is a int"),
        ({"a": torch.ones(2).to_sparse()}, "a is sparse or quantized"),
        ({"backbone.w": torch.ones(2)}, "shares no weight.*backbone.w; this network needs conv1.weight"),
    ],
    ids=str,
)
def test_files_without_fitting_weights(tmp_path: Path, content: Any, message: str) -> None:
    refused(narrow_resnet50(), saved(tmp_path / "a.pt", content), message)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    model = narrow_resnet50()
    content = {"format": "dyndeploy.checkpoint", "version": 2, "state_dict": model.state_dict()}
    refused(model, saved(tmp_path / "a.pt", content), "version 2; this release reads up to 1")


def test_a_key_under_two_names_is_refused(tmp_path: Path) -> None:
    model = narrow_resnet50(mode="spatial")
    weights = {**model.state_dict(), "layer1.0.masker.conv2.bias": torch.zeros(2)}
    refused(model, saved(tmp_path / "a.pt", weights), "holds layer1.0.masker_spatial.conv.bias twice")


SHAPE_CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"num_classes": 5}, {}, r"fc.weight has the shape \(5, 256\).*\(7, 256\).*num_classes=5\?"),
    ({"width_mult": 0.25}, {}, r"conv1.weight has the shape \(16, 3, 7, 7\).*\(8, 3, 7, 7\).*width_mult=0.25\?"),
    ({"groups": 2}, {}, r"have 2 groups: groups=2\?"),
    ({}, {"groups": 2}, r"have 1 groups: groups=1\?"),
    ({"spatial_groups": 2}, {"mode": "spatial"}, r"layer1.0.masker_spatial.*spatial_groups=2\?"),
    (
        {"mode": "channel", "channel_granularity": 1},
        {"mode": "channel", "channel_granularity": 2},
        r"layer1.0.masker_channel.conv.2.weight has the shape \(16, 16\).*\(8, 16\).*"
        r"8 channel groups: channel_granularity=1\?",
    ),
    (
        {"mode": "channel", "channel_granularity": 1, "reduction": 1},
        {"mode": "channel", "channel_granularity": 1, "reduction": 16},
        r"layer3.0.masker_channel.conv.0.weight has the shape \(32,.*another reduction\?",
    ),
    (
        {"mode": "both", "channel_masker": "conv_linear", "reduction": 2, "channel_granularity": 4},
        {"mode": "both", "channel_masker": "conv_linear", "reduction": 2},
        r"2 channel groups: channel_granularity=4\?",
    ),
    (
        {"mode": "channel", "channel_masker_layers": 1},
        {"mode": "channel"},
        r'maskers of channel_masker="mlp", channel_masker_layers=1 in layer1.0.*'
        r'created with channel_masker="mlp", channel_masker_layers=2',
    ),
    (
        {"mode": "channel", "channel_masker": "conv_linear", "reduction": 2},
        {"mode": "both"},
        "maskers of mode channel in layer1.0; this network was created with mode both",
    ),
    (
        {"mode": "channel", "channel_masker": "conv_linear", "reduction": 2},
        {"mode": "channel"},
        r'maskers of channel_masker="conv_linear"',
    ),
    ({"mode": "channel"}, {"mode": "spatial"}, "maskers of mode channel in layer1.0.*mode spatial or layer"),
    ({"mode": "layer"}, {"mode": "channel"}, "maskers of mode spatial or layer in layer1.0.*mode channel"),
    (
        {"mode": ("spatial", "spatial", "both", "static")},
        {"mode": "spatial"},
        "maskers of mode both in layer3.0",
    ),
]


@pytest.mark.parametrize(("theirs", "ours", "message"), SHAPE_CASES, ids=str)
def test_other_options_are_named(tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], message: str) -> None:
    path = saved(tmp_path / "a.pt", {"state_dict": narrow_resnet50(**theirs).state_dict()})
    refused(narrow_resnet50(**ours), path, message)


def test_own_files_tell_spatial_from_layer(tmp_path: Path) -> None:
    save_checkpoint(narrow_resnet50(mode="layer"), tmp_path / "a.pt")
    refused(
        narrow_resnet50(mode="spatial"),
        tmp_path / "a.pt",
        "trained with mode layer; this network was created with mode spatial",
    )
    # Fine-tuning starts from a static network: that stays possible.
    save_checkpoint(narrow_resnet50(mode="static"), tmp_path / "b.pt")
    assert load_checkpoint(narrow_resnet50(mode="spatial"), tmp_path / "b.pt").missing


@pytest.mark.parametrize("direction", ["smaller", "larger"])
def test_other_depths_are_refused(tmp_path: Path, direction: str) -> None:
    shallow = narrow_resnet50(mode="layer")
    deep = build("laud_resnet101", mode="layer", width_mult=0.125, num_classes=7)
    file, model = (shallow, deep) if direction == "smaller" else (deep, shallow)
    blocks = ("3-4-6-3", "3-4-23-3") if direction == "smaller" else ("3-4-23-3", "3-4-6-3")
    refused(
        model,
        saved(tmp_path / "a.pt", file.state_dict()),
        f"another architecture: it has {blocks[0]} blocks per stage, this network {blocks[1]}",
    )


def test_incomplete_files_are_refused(tmp_path: Path) -> None:
    model = narrow_resnet50(mode="spatial")
    weights = weights_of(model)
    del weights["layer2.1.conv2.weight"]
    refused(model, saved(tmp_path / "a.pt", weights), "it lacks layer2.1.conv2.weight")
    weights = weights_of(model)
    del weights["layer2.1.masker_spatial.conv.bias"]
    refused(model, saved(tmp_path / "b.pt", weights), "maskers of layer2.1 are incomplete")
    weights = {**weights_of(model), "layer2.1.conv2.bias": torch.ones(16)}
    refused(model, saved(tmp_path / "c.pt", weights), "this network has no layer2.1.conv2.bias")


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, word: str) -> None:
    model = narrow_resnet50(mode="spatial")
    weights = weights_of(model)
    weights["layer2.0.bn1.running_var"][3] = value
    weights["layer3.0.conv1.weight"][0, 0] = value
    refused(model, saved(tmp_path / "a.pt", weights), f"layer2.0.bn1.running_var holds {word}")


def test_weights_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    weights = weights_of(narrow_resnet50())
    weights["bn1.running_var"][0] = 1e6
    refused(narrow_resnet50().half(), saved(tmp_path / "a.pt", weights), "bn1.running_var holds values too large")


@pytest.mark.parametrize(
    "value",
    [object(), np.float64(1), {"a": {1, 2}}, {(1, 2): 3}, [lambda: 0]],
    ids=["object", "numpy scalar", "set", "tuple key", "function"],
)
def test_only_safe_extras_are_saved(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UsageError, match="note"):
        save_checkpoint(narrow_resnet50(), tmp_path / "a.pt", note=value)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(narrow_resnet50(), path)
    before = path.read_bytes()

    def full(content: Any, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 448 vs 342")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"Cannot write .*a\.pt"):
        save_checkpoint(narrow_resnet50(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot create the folder"):
        save_checkpoint(narrow_resnet50(), tmp_path / "file" / "a.pt")
