"""Names follow blocks, however deep they are nested."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyndeploy.export.capture import capture
from dyndeploy.graphs.passes import Context, name_nodes, name_tensors
from dyndeploy.graphs.rules import check_rules


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masker, self.inner = nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.masker(x)) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"a": Block(), "b": Block()})
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body["b"](torch.tanh(self.body["a"](torch.relu(x))))
        return self.fc(x.mean((2, 3))), x


class Captured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x)


def named(module: nn.Module, scopes: dict[str, str]) -> tuple[list[str], set[str]]:
    model = capture(module.eval(), (torch.zeros(1, 8, 4, 4),))
    context = Context(scopes, ["logits", "input"], 18, 10, None, "cpu", inputs=["mean"])
    name_nodes(model, context)
    name_tensors(model, context)
    check_rules(model, context, ["names::nodes", "names::tensors"])
    return [node.name for node in model.graph.node], {item.name for item in model.graph.initializer}


def test_dotted_scopes() -> None:
    nodes, weights = named(Captured(), {"net.body.a": "body.a", "net.body.b": "body.b", "net.body.b.inner": "deep"})
    assert nodes == [
        "stem/Relu",
        "body.a/masker",
        "body.a/inner",
        "body.a/inner_1",
        "body.a/Add",
        "stem/Tanh",
        "body.b/masker",
        "deep/Conv",
        "deep/Relu",
        "body.b/Add",
        "head/ReduceMean",
        "head/Gemm",
    ]
    assert {"body.a/masker.weight", "body.a/inner.0.bias", "deep/0.weight", "body.b/masker.bias"} <= weights
    assert "net.fc.weight" in weights


def test_scopes_without_dots_are_first_components() -> None:
    nodes, weights = named(Net(), {"body": "block", "fc": "head/classifier"})
    assert nodes[1:3] == ["block/masker", "block/inner"]
    assert nodes[-1] == "head/classifier/Gemm"
    assert {"block/a.masker.weight", "head/classifier/weight"} <= weights
