"""Small networks with masks that vary, and bundles of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dyndeploy import Bundle, ExportSettings, create_model, export_model
from dyndeploy.nets import LaudResNet

MODES = ("spatial", "channel", "layer", "both")


def lively_network(mode: str | tuple[str, ...], seed: int = 0, **options: Any) -> LaudResNet:
    """A small network with random batch norm statistics and maskers whose decisions differ between images."""
    torch.manual_seed(seed)
    network = create_model("laud_resnet14_small", mode=mode, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.2)
            module.bias.data.normal_(0, 0.2)
    for name, parameter in network.named_parameters():
        if "masker" in name:
            parameter.data.normal_(0, 0.3 if name.endswith("weight") else 0.05)
    return network


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Export once per worker for each (mode, settings)."""
    made: dict[Any, Bundle] = {}

    def make(mode: str = "spatial", **settings: Any) -> Bundle:
        key = (mode, tuple(sorted(settings.items())))
        if key not in made:
            folder: Path = tmp_path_factory.mktemp("bundle") / "b"
            made[key] = export_model(lively_network(mode), folder, ExportSettings(**settings))
        return made[key]

    return make
