"""Evaluation in training looks at what it scores: argmax of NaN is class 0, and no accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dyndeploy.errors import NotFiniteError
from dyndeploy.nets import create_model, load_checkpoint
from dyndeploy.training import engine, train
from dyndeploy.training.engine import CHECKPOINT
from dyndeploy.training.evaluation import evaluate
from tests.training.helpers import tiny, tiny_perceiver

BATCH = [(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4))]


def test_evaluation_names_the_exit() -> None:
    network = create_model("resnet10_small_perceiver_t32", num_classes=10).eval()
    assert evaluate(network, BATCH, exits=4).images == 4
    heads = [m for name, m in network.named_modules() if "classifier" in name and isinstance(m, nn.Linear)]
    heads[0].bias.data[1] = float("inf")
    with pytest.raises(NotFiniteError, match=r"in evaluation: '\S+' holds 4 infinite of 40 values"):
        evaluate(network, BATCH, exits=4)


def test_evaluation_names_a_gate_and_a_loss() -> None:
    network = create_model("laud_resnet14_small", mode="spatial", width_mult=0.1).eval()
    with pytest.raises(NotFiniteError, match="'loss' holds 1 NaN"):
        evaluate(network, BATCH, loss=lambda output, targets: torch.tensor(float("nan")))
    network.layer1[0].masker_spatial.conv.bias.data.fill_(float("nan"))  # type: ignore[index, union-attr]
    with pytest.raises(NotFiniteError, match=r"gate mask/layer1\.0/spatial"):
        evaluate(network, BATCH)


@pytest.mark.parametrize("which", ["weights", "statistics"])
def test_a_diverged_epoch_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    step = engine._Run._step
    count = 0

    def diverge(self: engine._Run) -> None:
        nonlocal count
        step(self)
        count += 1
        # After the last step of the second epoch no loss is computed any more.
        if count == 2 * self.iterations:
            state = self.network.state_dict()
            if which == "weights":
                state["fc.bias"][0] = float("nan")
            else:
                state["bn1.running_var"].fill_(-1.0)

    monkeypatch.setattr(engine._Run, "_step", diverge)
    with pytest.raises(NotFiniteError, match=r"Training diverged in epoch 2: .*Lower optimizer\.lr"):
        train(tiny(epochs=3), tmp_path)
    network = create_model("laud_resnet14_small", **tiny().model.options)
    assert load_checkpoint(network, tmp_path / CHECKPOINT).epoch == 1


def test_a_moving_average_that_overflows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = engine._Run._step

    def diverge(self: engine._Run) -> None:
        step(self)
        assert self.ema is not None
        next(iter(self.ema.state.values())).fill_(float("inf"))

    monkeypatch.setattr(engine._Run, "_step", diverge)
    with pytest.raises(NotFiniteError, match=r"the moving average of \S+ holds infinite values"):
        train(tiny_perceiver(epochs=1, ema={"decay": 0.9}), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()
