"""A pooling to one pixel behind a block that computes channels-last leaves no view by strides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from dyndeploy.export.capture import capture
from dyndeploy.graphs.passes import Context, reshape_strides, run_pipeline
from tests.graphs.passes.helpers import CONTEXT, kinds, model_of, normal, run


class Net(nn.Module):
    """Computes channels-last between two changes of layout, as an exported block does."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.fc = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.inside(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_captured_pooling_is_one_product(batch: int) -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(batch, 6, 5, 4)
    model = capture(net, (x,))
    run_pipeline(model, Context({}, ["y"], 17, 8, None, "cpu", inputs=["x"]))
    assert kinds(model).count("Transpose") == 1
    assert not {"Gather", "ReduceMean"} & set(kinds(model))
    assert kinds(model)[-4:] == ["Reshape", "MatMul", "Reshape", "Gemm"]
    np.testing.assert_allclose(run(model, x.numpy()), net(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_other_gathers_stay() -> None:
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["f"]), helper.make_node("Gather", ["f", "indices"], ["y"])]
    model = model_of(nodes, (2, 2), rank=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    for indices in ([0, 1, 3, 2], [0, 1, 2]):
        del model.graph.initializer[1:]
        model.graph.initializer.append(numpy_helper.from_array(np.array(indices), "indices"))
        x = normal(2, 2)
        reshape_strides(model, CONTEXT)
        assert kinds(model) == ["Reshape", "Gather"]
        np.testing.assert_array_equal(run(model, x), x.ravel()[indices])
