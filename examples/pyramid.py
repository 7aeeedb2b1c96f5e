"""A detector-shaped network: dynamic bottlenecks, a feature pyramid, two outputs, images of 96 x 64."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.nets import LaudBottleneck, LaudResNetConfig


def bottleneck(name: str, mode: str, channels: int, planes: int, stride: int) -> LaudBottleneck:
    """A block of LAUDNet that skips patches, or patches and channels."""
    stage = LaudResNetConfig(mode=mode, granularity=4).stages()[0]
    return LaudBottleneck(name, channels, planes, stage, stride=stride)


class PyramidNet(nn.Module):
    """Two levels of features, merged from coarse to fine; scores and boxes at every position of the finer one."""

    input_size = (96, 64)

    def __init__(self, classes: int = 9) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.body = nn.ModuleDict(
            {"fine": bottleneck("fine", "spatial", 64, 16, 1), "coarse": bottleneck("coarse", "both", 64, 32, 2)}
        )
        self.lateral = nn.ModuleDict({"fine": nn.Conv2d(64, 32, 1), "coarse": nn.Conv2d(128, 32, 1)})
        self.scores = nn.Conv2d(32, classes, 3, padding=1)
        self.boxes = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine, _ = self.body["fine"](self.stem(images))
        coarse, _ = self.body["coarse"](fine)
        up = nn.functional.interpolate(self.lateral["coarse"](coarse), scale_factor=2.0, mode="nearest")
        merged = self.lateral["fine"](fine) + up
        return {"scores": self.scores(merged), "boxes": self.boxes(merged)}


def main(folder: Path) -> None:
    """Export, verify, and predict for a board."""
    torch.manual_seed(0)
    network = PyramidNet().eval()
    with torch.no_grad():
        for block in network.body.values():  # untrained gates compute everything: let these decide
            block.masker_spatial.conv.weight.normal_()
            block.masker_spatial.conv.bias.zero_()
    bundle = dyndeploy.export_model(network, folder / "bundle", dyndeploy.ExportSettings(static=True))
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, report
    print([f"{info.name} {info.shape}" for info in bundle.manifest.outputs])
    for rate in (1.0, 0.5):
        prediction = dyndeploy.predict(bundle, "nano", rate=rate)
        print(f"nano at rate {rate:g}: {prediction.latency_ms:.2f} ms (predicted)")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pyramid"))
