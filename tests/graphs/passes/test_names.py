"""Names follow blocks, however deep they are nested."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyndeploy.export.capture import capture
from dyndeploy.graphs.parts import part_of
from dyndeploy.graphs.passes import Context, name_nodes, name_tensors
from dyndeploy.graphs.rules import check_rules
from dyndeploy.graphs.tensorrt import in_head


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


class Detects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck, self.fc = Net(), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, x = self.backbone(x)
        x = torch.relu(self.neck(torch.sigmoid(x)))
        return self.fc(x.mean((2, 3))).exp(), x


def test_parts_name_what_stands_in_no_block() -> None:
    model = capture(Detects().eval(), (torch.zeros(1, 8, 4, 4),))
    parts = {"backbone": "backbone", "neck": "neck", "fc": "heads"}
    scopes = {"backbone.body.a": "body.a", "backbone.body.b": "body.b"}
    context = Context(scopes, ["logits", "map"], 18, 10, None, "cpu", inputs=["x"], parts=parts)
    for node in model.graph.node:
        if node.op_type == "Exp":
            del node.metadata_props[:]  # Belongs where what it reads is made.
    name_nodes(model, context)
    named = {node.op_type: node.name for node in model.graph.node}
    assert model.graph.node[0].name == "stem/Relu"
    assert named["Tanh"] == "stem/Tanh"
    assert named["Sigmoid"] == "post-processing/Sigmoid"
    assert [node.name for node in model.graph.node if node.name.startswith("neck/")] == ["neck/Conv"]
    assert (named["Gemm"], named["Exp"]) == ("heads/Gemm", "heads/Exp")
    assert [part_of(name) for name in ("stem/Relu", "body.b/Add", "heads/Gemm", "head/copied", "other")] == [
        "backbone",
        "backbone",
        "heads",
        "post-processing",
        "other",
    ]
    assert in_head("neck/Conv")
    assert not in_head("body.neck/Conv")


def test_without_blocks_the_backbone_has_its_own_name() -> None:
    model = capture(Detects().eval(), (torch.zeros(1, 8, 4, 4),))
    name_nodes(model, Context({}, ["logits", "map"], 18, 10, None, "cpu", parts={"backbone": "backbone"}))
    assert {node.name.split("/")[0] for node in model.graph.node} == {"backbone", "post-processing"}
