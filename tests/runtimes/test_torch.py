from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.nets import LaudResNet, create_model
from dyndeploy.runtimes.torch import TorchSession


def network(mode: str) -> LaudResNet:
    torch.manual_seed(0)
    model = create_model("laud_resnet14_small", mode=mode, num_classes=5)
    assert isinstance(model, LaudResNet)
    return model


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("spatial", ["mask/layer1.0/spatial"]),
        ("layer", ["mask/layer1.0/layer"]),
        ("channel", ["mask/layer1.0/channel"]),
        ("both", ["mask/layer1.0/spatial", "mask/layer1.0/channel"]),
    ],
)
def test_outputs_are_named_as_in_the_bundle(mode: str, names: list[str]) -> None:
    with TorchSession(network(mode), batch=2, input_size=(32, 48)) as session:
        assert session.inputs[0].shape == (2, 3, 32, 48)
        listed = [info.name for info in session.outputs]
        assert listed[0] == "logits"
        assert listed[1 : 1 + len(names)] == names
        x = np.random.default_rng(0).standard_normal((2, 3, 32, 48)).astype(np.float32)
        result = session.run({"input": x})
        assert {info.name: info.shape for info in session.outputs} == {k: v.shape for k, v in result.items()}
        for name in listed[1:]:
            assert set(np.unique(result[name])) <= {0.0, 1.0}


def test_it_computes_the_network_and_leaves_torch_alone() -> None:
    model = network("spatial")
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with TorchSession(model) as session:
        logits = session.run({"input": x.numpy()}, ["logits"])["logits"]
        session.bind({"input": x.numpy()})()
        assert session.info.threads == threads
    with torch.no_grad():
        np.testing.assert_array_equal(logits, model(x).logits.numpy())
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, gradients)


def test_bad_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        TorchSession(network("spatial"), batch=0)
    with TorchSession(network("spatial")) as session, pytest.raises(InputError, match="float64"):
        session.run({"input": np.zeros((1, 3, 32, 32))})
    with pytest.raises(DyndeployError, match="closed"):
        session.run({"input": np.zeros((1, 3, 32, 32), np.float32)})
