"""Tiny networks in INT8, for tests: calibrated on random images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dyndeploy import ExportSettings, export_model
from dyndeploy.bundle import Bundle
from dyndeploy.graphs.forced import PREFIX, forced_masks, replace_masks
from dyndeploy.quantization import CalibrationTable, calibrate
from tests.export.conftest import lively_network

IMAGES = 16


def samples(model: onnx.ModelProto, seed: int = 5) -> Iterator[Mapping[str, np.ndarray]]:
    """Random batches of what a graph takes."""
    random = np.random.default_rng(seed)
    for _ in range(IMAGES):
        yield {
            value.name: random.standard_normal([dim.dim_value for dim in value.type.tensor_type.shape.dim]).astype("f4")
            for value in model.graph.input
        }


def table_of(bundle: Bundle, **options: Any) -> CalibrationTable:
    """A calibration table of a bundle that is one graph; half of all masks' bits are set, so that every block runs."""
    model, masks = bundle.load_model(), bundle.manifest.masks
    feeds = (
        {**sample, **{f"{PREFIX}{name}": mask for name, mask in forced_masks(masks, 0.5, seed).items()}}
        for seed, sample in enumerate(samples(model))
    )
    table = calibrate(replace_masks(model, masks), feeds, method="minmax", **options)
    network = bundle.manifest.network
    return replace(
        table,
        network=network.name,
        mode=network.mode,
        granularity=network.granularity,
        channel_granularity=network.channel_granularity,
    )


def exported(folder: Path, *, mode: str = "spatial", **settings: Any) -> tuple[Bundle, Bundle, CalibrationTable]:
    """A small network with random weights as bundles in FP32 and in INT8, and the table between them."""
    network = lively_network(mode)
    single = export_model(network, folder / "fp32", ExportSettings(**settings))
    table = table_of(single)
    integers = ExportSettings(**settings, precision="int8", calibration=table)
    return single, export_model(network, folder / "int8", integers), table


def with_scales(table: CalibrationTable, **scales: float) -> CalibrationTable:
    """The table with other scales of some points, ``layer1_0__x`` standing for ``layer1.0/x``."""
    named = {name.replace("__", "/").replace("_", "."): scale for name, scale in scales.items()}
    tensors = {
        point: replace(item, scale=named[point]) if point in named else item for point, item in table.tensors.items()
    }
    assert set(named) <= set(tensors)
    return replace(table, tensors=tensors)
