"""Networks of other people's kinds, written as exporters write them: sizes open, and computed inside the graph."""

from __future__ import annotations

import io
import itertools
import warnings

import onnx
import torch
from torch import nn
from torch.nn import functional as F


class Detector(nn.Module):
    """Three levels joined from coarse to fine, and boxes around anchor points that follow from the sizes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 12, 16)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.levels = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise((8, *widths)))
        self.join = nn.ModuleList(nn.Conv2d(a + b, a, 1) for a, b in itertools.pairwise(widths))
        self.heads = nn.ModuleList(nn.Conv2d(width, 4 * 4 + 5, 1) for width in widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps, x = [], torch.relu(self.stem(x))
        for level in self.levels:
            x = torch.relu(level(x))
            maps.append(x)
        for at in (1, 0):
            up = F.interpolate(maps[at + 1], size=maps[at].shape[-2:], mode="nearest")
            maps[at] = torch.relu(self.join[at](torch.cat([maps[at], up], 1)))
        points, strides, found = [], [], []
        for number, (head, level) in enumerate(zip(self.heads, maps, strict=True)):
            y = head(level)
            height, width = y.shape[-2:]
            rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
            grid = torch.meshgrid(rows, columns, indexing="ij")
            points.append(torch.stack((grid[1], grid[0]), -1).view(-1, 2))
            strides.append(torch.full((height * width, 1), 4.0 * 2**number))
            found.append(y.view(y.shape[0], 21, -1))
        anchors, stride = torch.cat(points).transpose(0, 1), torch.cat(strides).transpose(0, 1)
        boxes, classes = torch.cat(found, 2).split((16, 5), 1)
        sides = boxes.view(boxes.shape[0], 4, 4, -1).softmax(2).mean(2)
        near, far = sides.chunk(2, 1)
        return torch.cat((torch.cat((anchors - near, anchors + far), 1) * stride, classes.sigmoid()), 1)


class TextDetector(nn.Module):
    """A map of probabilities as large as the image; its inner maps are scaled to each other's sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 3, 1)
        self.gate, self.out = nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(16, 1, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = F.hardswish(self.fine(x))
        coarse = self.coarse(fine)
        coarse = coarse * F.hardsigmoid(self.gate(coarse.mean((2, 3), keepdim=True)))
        height, width = fine.shape[2], fine.shape[3]
        coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        probability = self.out(torch.cat([fine, coarse], 1)).sigmoid()
        return F.interpolate(probability, size=(x.shape[2], x.shape[3]))


class TextReader(nn.Module):
    """Attention over the columns of a line of text, in float64 where it divides; then a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 16, 3, (4, 2), 1), nn.Linear(16, 48)
        self.read, self.out = nn.LSTM(16, 8, bidirectional=True), nn.Linear(16, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(batch, -1, 3, 4, channels // 4).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-2, -1) / (channels // 4) ** 0.5).softmax(-1)
        tokens = (shares @ v).transpose(1, 2).reshape(batch, -1, channels)
        tokens = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        columns = F.adaptive_avg_pool2d(tokens, (1, None)) if height > 99 else tokens.mean(2)
        read, _ = self.read(columns.permute(2, 0, 1))
        steps = torch.arange(read.shape[0], dtype=torch.float64) / read.shape[0]
        return (self.out(read) + steps.to(torch.float32)[:, None, None]).softmax(-1)


LOOKALIKES = {"detector": Detector, "text detector": TextDetector, "text reader": TextReader}


def exported(name: str, opset: int = 17) -> onnx.ModelProto:
    """A network with open batch, height and width, by the exporter that most files in use come from."""
    torch.manual_seed(0)
    network, file = LOOKALIKES[name]().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 48, 64),),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}},
        )
    return onnx.load_from_string(file.getvalue())
