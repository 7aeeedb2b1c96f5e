from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dyndeploy import Bundle, ExportSettings, create_model, export_model, verify_bundle
from dyndeploy.cli import run
from dyndeploy.errors import UsageError
from dyndeploy.planning import Plan
from dyndeploy.runtimes import OnnxRuntimeSession


def plan(**changes: object) -> Plan:
    fields = {
        "network": "laud_resnet14_small", "input_size": (40, 40), "device": "cpu", "threads": 1, "rate": 0.5,
        "mode": ("spatial", "channel", "static", "spatial"), "granularity": (4, 1, 1, 1),
        "channel_granularity": (1, 2, 1, 1), "dense": ("layer4.0",), "latency_ms": 1.0, "interval_ms": (0.9, 1.1),
        "static_ms": 2.0, "macs": 1e6, "static_macs": 2e6,
    }  # fmt: skip
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


def test_export_follows_a_plan_and_the_bundle_verifies(tmp_path: Path) -> None:
    path, output = tmp_path / "plan.json", tmp_path / "bundle"
    path.write_text(json.dumps(plan().to_json()))
    assert run(["export", "laud_resnet14_small", "--plan", str(path), "-o", str(output)]) == 0
    bundle = Bundle.open(output)
    manifest = bundle.manifest
    assert manifest.input_size == (40, 40) and manifest.network.mode == "spatial-channel-static-spatial"
    assert {(mask.block, mask.kind) for mask in manifest.masks} == {("layer1.0", "spatial"), ("layer2.0", "channel")}
    assert any("layer4.0" in note and "densely" in note for note in manifest.notes)
    assert verify_bundle(bundle).passed


def test_a_dense_block_computes_what_a_mask_of_ones_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("laud_resnet14_small", mode="spatial", granularity=(4, 4, 2, 1)).eval()
    names = tuple(name for name, _ in network.named_blocks())
    bundle = export_model(network, tmp_path / "dense", ExportSettings(dense=names, static=True))
    image = bundle.reference()["input"][:1]
    x = network.forward_stem(torch.from_numpy(image))
    for _, block in network.named_blocks():
        assert block.masker_spatial is not None, "the caller's network is not changed"
        x = block.compute(x, torch.ones(1, 1, *block.mask_size(x.shape[2], x.shape[3])), None)
    with OnnxRuntimeSession(bundle.model) as session:
        logits = session.run({"input": image}, ["logits"])["logits"]
    assert np.abs(logits - network.forward_head(x).detach().numpy()).max() < 1e-3


def test_what_contradicts_a_plan_is_refused(tmp_path: Path) -> None:
    path, output = tmp_path / "plan.json", tmp_path / "bundle"
    path.write_text(json.dumps(plan().to_json()))
    for words in (
        ["laud_resnet14_small", "--mode", "layer"],
        ["laud_resnet14_small", "--input-size", "32x32"],
        ["laud_resnet50"],
    ):
        assert run(["export", *words, "--plan", str(path), "-o", str(output)]) == 2
    assert not output.exists()
    with pytest.raises(UsageError, match=r"layer4\.0"):
        create_model("laud_resnet14_small").run_dense(["layer4.1"])
