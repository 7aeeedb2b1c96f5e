"""Networks with skipped blocks, captured as the exporter captures them: placeholders, and a body for each block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from dyndeploy.export.capture import capture
from dyndeploy.graphs.branches import insert_branches
from dyndeploy.graphs.passes import Context, run_pipeline
from dyndeploy.ops import operator


class Record:
    """Masks by name. No dictionary, because torch.export copies those that modules hold."""

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}


class Skip(nn.Module):
    """``module(x)`` where the gate computes, ``x`` where not; its masks, and those inside, are noted in ``record``."""

    def __init__(self, name: str, module: nn.Module, record: Record, channels: int) -> None:
        super().__init__()
        self.name, self.module, self.record = name, module, record
        self.gate = nn.Linear(channels, 1)
        # Half of the weights are negative, so that bright and dark images decide differently.
        nn.init.normal_(self.gate.weight)
        self.gate.weight.data -= self.gate.weight.data.mean()
        nn.init.zeros_(self.gate.bias)
        self.inside: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.size: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        mask = (self.gate(x.mean((2, 3))) > 0).float()
        mine = f"mask/{self.name}/block"
        if torch.onnx.is_in_onnx_export():
            result, *inner = torch.onnx.ops.symbolic_multi_out(
                "dyndeploy.conditional::Call",
                (x, mask),
                attrs={"block": self.name},
                dtypes=[torch.float32] * (1 + len(self.inside)),
                shapes=[tuple(x.shape), *self.shapes],
            )
            self.record.masks |= {mine: mask, **dict(zip(self.inside, inner, strict=True))}
            return result
        before = set(self.record.masks)
        y = self.module(x)
        self.size = tuple(x.shape)
        self.inside = [name for name in self.record.masks if name not in before]
        self.shapes = [tuple(self.record.masks[name].shape) for name in self.inside]
        for name in self.inside:
            value = self.record.masks.pop(name)
            self.record.masks[name] = value * mask.reshape(-1, *[1] * (value.ndim - 1))
        self.record.masks[mine] = mask
        return torch.where(mask[:, :, None, None] > 0.5, y, x)


class Spatial(nn.Module):
    """A dynamic bottleneck with its masker, channels-last inside."""

    def __init__(self, name: str, channels: int, record: Record) -> None:
        super().__init__()
        self.name, self.record = name, record
        hidden = channels // 2
        shapes = {
            "w1": (hidden, channels),
            "b1": (hidden,),
            "w2": (hidden, hidden, 3, 3),
            "b2": (hidden,),
            "w3": (channels, hidden),
            "b3": (channels,),
            "mw": (1, channels),
            "mb": (1,),
        }
        for key, shape in shapes.items():
            self.register_buffer(key, torch.randn(shape) * 0.4)
        self.mb.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        mask = operator("SpatialMasker").emit((x, self.mw, self.mb), {"mask_height": 4, "mask_width": 4})
        self.record.masks[f"mask/{self.name}/spatial"] = mask
        weights = (self.w1, self.b1, self.w2, self.b2, self.w3, self.b3)
        attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "group": 1}
        return operator("SpatialBottleneck").emit((x, mask, *weights), attributes).permute(0, 3, 1, 2)


class Plain(nn.Module):
    """Convolutions, a batch norm, and a squeeze whose Reshape holds the batch size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.squeeze = nn.Linear(channels, channels)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        gate = torch.sigmoid(self.squeeze(y.mean((2, 3)).reshape(x.shape[0], -1)))
        rows = (y * gate.reshape(x.shape[0], -1, 1, 1)).reshape(x.shape[0] * x.shape[1], -1)
        return torch.relu(rows.reshape(x.shape))


@dataclass
class Net:
    """A network of skipped blocks, and what it decided in its last run."""

    module: nn.Module
    skips: Mapping[str, Skip]
    record: Record

    def run(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.record.masks.clear()
        with torch.no_grad():
            return self.module(x), dict(self.record.masks)


def make_net(channels: int = 8, seed: int = 0) -> Net:
    """A stem; ``a``, convolutions; ``b``, around convolutions, ``b.inner`` and a dynamic bottleneck; a head."""
    torch.manual_seed(seed)
    record = Record()
    a = Skip("a", Plain(channels), record, channels)
    inner = Skip("b.inner", nn.Sequential(Plain(channels), Spatial("b.inner.deep", channels, record)), record, channels)
    b = Skip("b", nn.Sequential(Plain(channels), inner, Spatial("b.last", channels, record)), record, channels)
    stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    module = nn.Sequential(stem, a, b, head).eval()
    return Net(module, {"a": a, "b": b, "b.inner": inner}, record)


class _Wrapped(nn.Module):
    def __init__(self, net: nn.Module, record: Record, names: list[str]) -> None:
        super().__init__()
        self.net, self.record, self.names = net, record, names

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.record.masks.clear()
        y = self.net(x)
        return y, *(self.record.masks[name] for name in self.names)


def _graph(
    net: nn.Module, x: Tensor, net_: Net, names: list[str], scopes: dict[str, str], opset: int
) -> onnx.ModelProto:
    model = capture(_Wrapped(net, net_.record, names).eval(), (x,))
    run_pipeline(model, Context(scopes, ["y", *names], opset, 8, None, "cpu"))
    return model


def captured(net: Net, x: Tensor, opset: int = 17) -> tuple[onnx.ModelProto, dict[str, onnx.ModelProto]]:
    """The network with placeholders, and the bodies of its blocks."""
    _, masks = net.run(x)
    scopes = {f"net.{path}": module.name for path, module in net.module.named_modules() if isinstance(module, Skip)}
    model = _graph(net.module, x, net, list(masks), scopes, opset)
    bodies = {}
    for name, skip in net.skips.items():
        path = next(key for key, value in scopes.items() if value == name)
        within = {
            key.replace(path, "net", 1): value for key, value in scopes.items() if key.startswith(f"{path}.module")
        }
        within = {key.replace("net.module", "net", 1): value for key, value in within.items()}
        body = _graph(skip.module, torch.zeros(skip.size), net, skip.inside, {"net": name, **within}, opset)
        bodies[name] = body
    return model, bodies


def exported(net: Net, x: Tensor, *, lazy: bool, opset: int = 17) -> onnx.ModelProto:
    """The network with its blocks inserted."""
    model, bodies = captured(net, x, opset)
    insert_branches(model, bodies, lazy=lazy)
    return model
