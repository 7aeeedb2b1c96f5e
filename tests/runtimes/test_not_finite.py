"""Outputs that are not finite are no results, in any runtime, in one exit as well as in all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dyndeploy.bundle import Bundle
from dyndeploy.errors import InputError, NotFiniteError
from dyndeploy.runtimes import OnnxRuntimeSession, open_staged
from dyndeploy.runtimes.torch import TorchSession
from tests.bundles import tiny_bundle
from tests.spoiled import BAD, spoiled
from tests.staged_bundles import EXITS, images, staged_bundle

PICTURES = images(4)


@pytest.mark.parametrize("value", BAD)
def test_a_session_names_the_output(tmp_path: Path, value: float) -> None:
    bundle = spoiled(tiny_bundle(tmp_path / "b"), "model.onnx", "head.b", value)
    with OnnxRuntimeSession(bundle.model) as session:
        feeds = {"input": np.zeros(session.inputs[0].shape, np.float32)}
        with pytest.raises(NotFiniteError, match=r"'logits' holds 1 (NaN|infinite) of 10 values.*dyndeploy verify"):
            session.run(feeds)
        # Asked for alone, the masks are fine; and verification wants to see everything.
        assert session.run(feeds, [bundle.manifest.masks[0].name])
        assert not np.isfinite(session.run(feeds, finite=False)["logits"]).all()
        feeds["input"][0, 0, 0, 0] = np.nan
        with pytest.raises(InputError, match="'input': expected finite numbers, got 1 NaN of"):
            session.run(feeds)


def test_pytorch_is_held_to_the_same() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x.mean((2, 3)))

    with (
        TorchSession(Logarithm(), inputs={"input": torch.ones(1, 3, 32, 32)}) as session,
        pytest.raises(NotFiniteError, match="'logits' holds 3 infinite"),
    ):
        session.run({"input": np.zeros((1, 3, 32, 32), np.float32)})


def bad_exit(folder: Path, stage: int, value: float, batch: int | None = None) -> Bundle:
    return spoiled(staged_bundle(folder, batch=batch), f"stage{stage}.onnx", "head/b", value)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("batch", [None, 3])
def test_a_broken_exit_is_named_and_no_later_one_answers(
    tmp_path: Path, stage: int, value: float, count: int, batch: int | None
) -> None:
    bundle = bad_exit(tmp_path / "b", stage, value, batch)
    leave_there = [2.0] * stage + [0.0] * (2 - stage)
    with open_staged(bundle, thresholds=leave_there) as session:
        with pytest.raises(NotFiniteError, match=rf"exit {EXITS[stage]}: "):
            session.run(PICTURES[:count])
        with pytest.raises(NotFiniteError, match=rf"exit {EXITS[stage]}: "):
            session.run_all(PICTURES[:count])
        assert len(session.run_all(PICTURES[:count], finite=False)) == 3
    if stage and batch is None:
        # Images that leave before it never see it.
        with open_staged(bundle, thresholds=(0.0, 0.0)) as session:
            assert set(session.run(PICTURES[:count]).exits) == {EXITS[0]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bound_image_passes_no_broken_exit(tmp_path: Path, value: float) -> None:
    with open_staged(bad_exit(tmp_path / "b", 0, value), thresholds=(0.5, 0.5)) as session:
        for stage in (None, 0, 2):
            with pytest.raises(NotFiniteError, match=f"exit {EXITS[0]}: "):
                session.bind(PICTURES[:1], stage=stage)()
