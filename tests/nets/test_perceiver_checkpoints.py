from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dyndeploy.errors import CheckpointError
from dyndeploy.nets import DynPerceiver, create_model, load_checkpoint, save_checkpoint
from dyndeploy.nets.dyn_perceiver import options_of

SMALL = "resnet10_small_perceiver_t32"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(name: str = SMALL, **options: Any) -> DynPerceiver:
    model = create_model(name, **options)
    assert isinstance(model, DynPerceiver)
    return model


def official_file(model: DynPerceiver) -> dict[str, Any]:
    weights = model.state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "epoch": 299,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "args": argparse.Namespace(model="reg800m_perceiver_t128", depth_factor=[1, 1, 1, 2], lr=1e-3, clip_grad=None),
        "model_ema": {k: v + 1 if v.is_floating_point() else v for k, v in weights.items()},
    }


def assert_weights(model: DynPerceiver, expected: dict[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def refused(model: DynPerceiver, path: Path, message: str, **options: Any) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, path, **options)
    assert str(path) in str(caught.value)
    assert_weights(model, before)


def test_official_files_and_their_averaged_weights(tmp_path: Path) -> None:
    content = official_file(build())
    path = tmp_path / "checkpoint-best.pth"
    torch.save(content, path)
    target = build()
    report = load_checkpoint(target, path)
    assert (report.source_format, report.epoch) == ("dyn_perceiver", 299)
    assert report.missing == report.unexpected == report.renamed == ()
    assert_weights(target, content["model"])
    report = load_checkpoint(target, path, averaged=True)
    assert report.source_format == "dyn_perceiver"
    assert_weights(target, content["model_ema"])


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"state_dict_ema": w}])
def test_other_wrappings(tmp_path: Path, wrap: Any) -> None:
    weights = {f"module.{key}": value for key, value in build().state_dict().items()}
    path = tmp_path / "weights.pth"
    torch.save(wrap(weights), path)
    target = build()
    report = load_checkpoint(target, path, averaged="state_dict_ema" in wrap(weights))
    assert len(report.renamed) == len(weights)
    assert_weights(target, {key[7:]: value for key, value in weights.items()})


def test_our_own_files(tmp_path: Path) -> None:
    source, target = build(num_sa_heads=(2, 2, 2, 2)), build(num_sa_heads=(2, 2, 2, 2))
    save_checkpoint(source, tmp_path / "a.pt", epoch=3)
    report = load_checkpoint(target, tmp_path / "a.pt")
    assert (report.source_format, report.epoch, report.architecture) == ("dyndeploy", 3, SMALL)
    assert_weights(target, source.state_dict())
    # The matrices of an attention have the same shape for any number of heads.
    refused(build(), tmp_path / "a.pt", r"num_sa_heads 2; this network was created with num_sa_heads 1-2-4-8")
    refused(target, tmp_path / "a.pt", r"no averaged weights.*averaged=False", averaged=True)


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"num_classes": 3}, r"num_classes=3: create"),
    ({"depth_factor": (1, 0, 1, 2)}, r"depth_factor=\[1, 0, 1, 2\]: create"),
    ({"sa_widening_factor": 1}, "sa_widening_factor=1: create"),
    *(({flag: False}, f"{flag}=False") for flag in ("with_x2z", "with_z2x", "with_dwc", "with_last_ca", "with_isc")),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_mismatch_names_the_option(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "other.pth"
    source = build(**change)
    torch.save({"model": source.state_dict()}, path)
    refused(build(), path, message)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in source.config.as_dict().items()}
    assert all(plain[name] == value for name, value in options_of(source.state_dict()).items())
    # And the other way round: nothing is silently left out.
    torch.save({"model": build().state_dict()}, path)
    refused(source, path, "create the network with that")


def test_a_mismatch_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    with torch.device("meta"):
        source = build("reg400m_perceiver_t64", num_classes=10)
    source.to_empty(device="cpu")
    torch.save({"model": source.state_dict()}, path)
    refused(
        build("reg400m_perceiver_t32", num_classes=10), path, "64 latents: create a network whose name ends in _t64"
    )
    refused(build(), path, "depth_factor|another architecture|latents")
    torch.save({"model": {"fc.weight": torch.zeros(3)}}, path)
    refused(build(), path, "shares no weight")


def test_damaged_weights(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    content = official_file(build())
    content["model"]["latent"] = torch.full((32, 16), float("nan"))
    torch.save(content, path)
    refused(build(), path, "latent holds NaN")
    del content["model"]["latent"]
    torch.save(content, path)
    refused(build(), path, "it lacks latent")
    content["model"] |= {"latent": torch.zeros(32, 16), "extra.weight": torch.zeros(1)}
    torch.save(content, path)
    refused(build(), path, r"has no extra\.weight")
    for shape in ((), (3,), (0, 0)):
        content = official_file(build())
        content["model"]["early_classifier3.weight"] = torch.zeros(shape)
        content["model"]["self_att1.0.mlp.fc1.weight"] = torch.zeros(shape)
        torch.save(content, path)
        refused(build(), path, "early_classifier3|num_classes|self_att1")
