"""A network that computes what is not finite is not exported, and the message says where that begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import EarlyExits
from dyndeploy.errors import ExportError
from tests.training.own_networks import SmallCnn, three_exits

IMAGES = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def refused(network: nn.Module, folder: Path, pattern: str, inputs: Tensor | None = IMAGES) -> None:
    with pytest.raises(ExportError, match=pattern):
        dyndeploy.export_model(network, folder / "b", example_inputs=inputs)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["bn1", "layer2.0.bn2", "layer2.0.downsample.1"])
@pytest.mark.parametrize("mode", ["spatial", "channel", "layer"])
def test_a_negative_variance_is_named(tmp_path: Path, name: str, mode: str) -> None:
    network = dyndeploy.create_model("laud_resnet14_small", mode=mode)
    network.get_submodule(name).running_var[2] = -1.0  # type: ignore[index, operator]
    refused(network, tmp_path, rf"^{name}\.running_var holds variances that are not positive \(1 of", None)


def test_a_variance_that_eps_makes_positive_is_fine(tmp_path: Path) -> None:
    network = dyndeploy.create_model("laud_resnet14_small", mode="spatial")
    network.bn1.running_var[0] = 0.0  # type: ignore[index, operator]
    dyndeploy.export_model(network, tmp_path / "b")


class Square(nn.Module):
    """Finite weights whose results overflow; in a block, to see which."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1e30) * 1e30


def test_the_module_where_an_overflow_begins_is_named(tmp_path: Path) -> None:
    network = SmallCnn()
    network.blocks[1] = nn.Sequential(nn.Identity(), Square())
    refused(network, tmp_path, r"'logits' holds .* of 40 values.*It begins in blocks\.1\.1 \(Square\)")


def test_what_begins_in_a_forward_of_ones_own_is_told(tmp_path: Path) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.log(self.body(x).mean((2, 3)) * 0))
            return y

    refused(Late(), tmp_path, r"It begins before head \(Linear\)")


def test_what_skipped_blocks_would_compute_counts(tmp_path: Path) -> None:
    network = SmallCnn().eval()
    block = network.blocks[2]
    block.module = nn.Sequential(nn.Identity(), Square())
    # The gate never computes it on these images.
    for parameter in block.gate.parameters():
        parameter.data.zero_()
    biases = [value for name, value in block.gate.named_parameters() if name.endswith("bias")]
    biases[-1].data[:] = torch.tensor([-5.0, 5.0]) if biases[-1].numel() == 2 else -5.0
    refused(network, tmp_path, r"holds .*blocks\.2\.module\.1 \(Square\)")


def test_a_gate_that_decides_on_nan_is_named(tmp_path: Path) -> None:
    network = SmallCnn()
    parameter = next(network.blocks[0].gate.parameters())
    parameter.data.fill_(3e38)
    refused(network, tmp_path, r"margin/mask/blocks\.0/layer|'logits'")


@pytest.mark.parametrize("exit", [1, 2, 3])
def test_a_broken_exit_is_named(tmp_path: Path, exit: int) -> None:
    network = three_exits()
    assert isinstance(network, EarlyExits)
    heads = [module for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    heads[exit - 1].weight.data.fill_(3e38)
    with pytest.raises(ExportError, match="holds"):
        dyndeploy.export_model(network, tmp_path / "b", dyndeploy.ExportSettings(input_size=(32, 32)))
    assert not list(tmp_path.iterdir())
