"""The tiny network with decisions that differ from image to image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dyndeploy.bundle import MODEL, Bundle
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import SIZE, resealed, tiny_bundle, tiny_models


def pictures(count: int = 20, seed: int = 3) -> np.ndarray:
    """Images (count, 3, SIZE, SIZE) in [-1, 1] whose contrast and brightness differ."""
    generator = np.random.default_rng(seed)
    contrast, brightness = generator.uniform(0.1, 0.7, (count, 1, 1, 1)), generator.normal(0, 0.4, (count, 3, 1, 1))
    noise = generator.standard_normal((count, 3, SIZE, SIZE))
    return (noise * contrast + brightness).clip(-1, 1).astype(np.float32)


def samples(images: np.ndarray, name: str = "input") -> Iterator[dict[str, np.ndarray]]:
    """The images one by one."""
    return ({name: image[None]} for image in images)


def run(model: onnx.ModelProto, images: np.ndarray, *names: str) -> list[dict[str, np.ndarray]]:
    """Outputs and further tensors of a graph, image by image."""
    asked = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name for value in asked.graph.output}
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    with OnnxRuntimeSession(asked) as session:
        return [session.run({"input": image[None]}) for image in images]


def edited(model: onnx.ModelProto, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The graph with other constants, by name."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for item in copy.graph.initializer:
        if item.name in constants:
            item.CopyFrom(numpy_helper.from_array(constants[item.name].astype(np.float32), item.name))
    return copy


def balanced(mode: str, batch: int = 1) -> onnx.ModelProto:
    """The network in a mode, its maskers' biases such that about half of all decisions are to compute."""
    model = tiny_models(mode)[0]
    images = pictures()
    for index, block in enumerate(("layer1.0", "layer2.0")):
        constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        maps = np.concatenate([result[f"y{index}"] for result in run(model, images, f"y{index}")])
        biases = {}
        for gate in ("spatial", "channel"):
            if f"{block}.{gate}.w" in constants:
                side = 4 if gate == "spatial" and mode != "layer" else 1
                n, height, width, channels = maps.shape
                pooled = maps.reshape(n, side, height // side, side, width // side, channels).mean((2, 4))
                logits = pooled @ constants[f"{block}.{gate}.w"].T
                biases[f"{block}.{gate}.b"] = -np.median(logits.reshape(-1, logits.shape[-1]), axis=0)
        model = edited(model, biases)
    found = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    return edited(tiny_models(mode, batch)[0], {name: value for name, value in found.items() if name.endswith(".b")})


def balanced_bundle(folder: Path, mode: str = "spatial", batch: int = 1) -> Bundle:
    """A bundle of it."""
    bundle = tiny_bundle(folder, mode=mode, batch=batch)
    onnx.save(balanced(mode, batch), folder / MODEL)
    return resealed(bundle)
