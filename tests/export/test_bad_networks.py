"""Networks that cannot be exported: a clear message, and nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyndeploy.blocks import Gate, PooledGate, skip
from dyndeploy.errors import DyndeployError, ExportError, UsageError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.ops.gates import BLOCK
from dyndeploy.verification import verify_bundle

IMAGES = torch.linspace(-1, 1, 2 * 4 * 32 * 32).reshape(2, 4, 32, 32)


class Net(nn.Module):
    """A skipped convolution in a network with a ``forward`` of the test's."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.block = skip(nn.Conv2d(4, 4, 3, padding=1))
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


class Hesitant(nn.Module):
    """Branches on its data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


class Counting(nn.Module):
    """Cuts by a number that it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x.sum()) % 3 + 1]


class Eigen(nn.Module):
    """Has no counterpart in ONNX."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.linalg.eigvals(x[0, 0]).real.sum()


class Flat(Gate):
    """Gives one number per image where two are needed."""

    kind = BLOCK

    def logits(self, x: Tensor, size: Any = None) -> Tensor:
        return x.mean((1, 2, 3))


def _refused(network: Any, tmp_path: Path, **options: Any) -> tuple[type[DyndeployError], str]:
    options.setdefault("example_inputs", IMAGES)
    with pytest.raises(DyndeployError) as caught:
        export_model(network, tmp_path / "bundle", ExportSettings(), **options)
    assert list(tmp_path.iterdir()) == []
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("module", [Hesitant(), Counting()])
def test_control_flow_on_data_names_the_module_and_the_line(
    module: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Net(lambda net, x: net.body[1](net.block(x)), body=nn.Sequential(nn.Identity(), module))
    kind, message = _refused(network, tmp_path)
    assert kind is ExportError
    place = rf"^body\.1 \({type(module).__name__}\), .*test_bad_networks\.py:\d+ branches in Python"
    assert re.search(place, message), message
    assert "dyndeploy.skip" in message and "torch.where" in message
    assert capfd.readouterr() == ("", "")


def test_control_flow_within_a_skipped_body_has_its_whole_path(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv2d(4, 4, 1), Hesitant())
    kind, message = _refused(Net(lambda net, x: net.other(x), other=skip(body)), tmp_path)
    assert kind is ExportError and message.startswith("other.module.1 (Hesitant), ")


def test_a_layer_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    kind, message = _refused(Net(lambda net, x: net.deep(net.block(x)), deep=nn.Sequential(Eigen())), tmp_path)
    assert kind is ExportError
    assert message.startswith("PyTorch could not capture deep.0 (Eigen): ") and "aten.linalg_eig" in message


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda net, x: net.block(net.block(x)), "The block block is used twice in one pass"),
        (lambda net, x: {"x": net.block(x), "name": "cat"}, "returns str as 'name': outputs must be tensors"),
        (lambda net, x: len(net.block(x)), "returns int: outputs must be tensors"),
        (lambda net, x: net.block(x) and None, "cannot run on the example inputs"),
        (lambda net, x: (net.block(x), None)[1:], "returns no tensor, but tuple"),
        (lambda net, x: {"y": net.block(x), "loss": x.mean()}, "The output 'loss' has shape (), and the batch is 1"),
        (lambda net, x: {"input": net.block(x)}, "'input'"),
        (lambda net, x: {"mask/block/layer": net.block(x)}, "'mask/block/layer'"),
        (lambda net, x: net.block(x[:, :3]), "A gate for 4 features got an input of shape (1, 3, 32, 32)"),
    ],
)
def test_what_a_forward_cannot_do(forward: Callable[[Any, Tensor], Any], said: str, tmp_path: Path) -> None:
    kind, message = _refused(Net(forward), tmp_path)
    assert kind is UsageError and said in message, message


def test_a_body_that_changes_the_shape(tmp_path: Path) -> None:
    kind, message = _refused(Net(lambda net, x: net.wide(x), wide=skip(nn.Conv2d(4, 8, 3))), tmp_path)
    assert kind is UsageError
    assert "skip(Conv2d): the module turns (1, 4, 32, 32) torch.float32 into (1, 8, 30, 30)" in message


def test_a_gate_of_the_wrong_shape(tmp_path: Path) -> None:
    network = Net(lambda net, x: net.odd(x), odd=skip(nn.Conv2d(4, 4, 1), Flat()))
    kind, message = _refused(network, tmp_path)
    assert kind is UsageError and "Flat" in message and "(1,)" in message, message


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (IMAGES.numpy(), "a tensor, a tuple of tensors"),
        ((IMAGES, IMAGES), "takes 1 inputs, and 2 are given"),
        ({"images": IMAGES}, "forward takes x, in this order"),
        (torch.tensor(3.0), "its first axis must be the batch"),
        (IMAGES.to(torch.complex64), "no runtime takes that"),
        (IMAGES * np.nan, "NaN or infinite"),
        (IMAGES.to("meta"), "is on meta: give it on the CPU"),
        (IMAGES.to(torch.int64), "cannot run on the example inputs ((1, 4, 32, 32))"),
        (IMAGES[:, :3], "Give skip(..., gate=PooledGate(3, last=False))"),
        (["a"], "is str: give a tensor"),
        (None, "does not say what it takes"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, said: str, tmp_path: Path) -> None:
    kind, message = _refused(Net(lambda net, x: net.block(x)), tmp_path, example_inputs=inputs)
    assert kind is UsageError and said in message, message


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    network = Net(lambda net, x: net.block(x))
    torch.nn.init.constant_(network.block.module.weight, float("nan"))
    kind, message = _refused(network, tmp_path)
    assert kind is ExportError and "block.module.weight holds NaN" in message
    kind, message = _refused(network.to("meta"), tmp_path)
    assert kind is ExportError and "block.module.weight is on the meta device" in message


class Mixing(nn.Module):
    """Looks at the other images of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(0)


class Recurrent(nn.Module):
    """A recurrent layer along the rows, whose state begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(32, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.layer(x.flatten(1, 2))[0]
        return rows.reshape(x.shape)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (Mixing(), "other: what it gives for an image depends on the other images of the batch"),
        (Recurrent(), "other cannot be computed for some images of a batch only: the initial state of"),
    ],
)
def test_bodies_that_need_the_whole_batch(body: nn.Module, said: str, tmp_path: Path) -> None:
    network = Net(lambda net, x: net.other(x), other=skip(body, PooledGate(4)))
    with pytest.raises(DyndeployError, match=said):
        export_model(network, tmp_path / "bundle", ExportSettings(batch=2), example_inputs=IMAGES)
    assert list(tmp_path.iterdir()) == []
    alone = export_model(network, tmp_path / "bundle", ExportSettings(batch=1), example_inputs=IMAGES)
    assert verify_bundle(alone).passed
