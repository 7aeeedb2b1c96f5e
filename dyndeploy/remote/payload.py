"""What is sent to a board to measure a bundle there: graphs with labelled names, images and masks, plugin sources."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import REFERENCE, Bundle
from dyndeploy.bundle.device_files import DEVICE_FOLDER, PLUGINS, plugin_sources
from dyndeploy.errors import DeviceError
from dyndeploy.graphs.forced import PREFIX, forced_masks, replace_masks
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.measure.profiler import MASK_DRAWS, input_batches
from dyndeploy.remote.client import Content

if TYPE_CHECKING:
    import onnx

STATIC, DYNAMIC, FORCED = "static", "dynamic", "forced"
"""The three graphs: the twin, the graph as deployed, and the one that takes its masks from inputs."""

LIBRARY = "libdyndeploy_tensorrt.so"
PLUGIN_PROJECT = "adapters/tensorrt"
"""Folder of the CMake project, below ``plugins/``, that makes :data:`LIBRARY`."""


@dataclass(frozen=True)
class Graphs:
    """The three graphs for a runtime.

    Attributes:
        labels: By name: knows which block a layer's name belongs to.
        contents: By name: what is sent.
    """

    labels: Mapping[str, LabelledGraph]
    contents: Mapping[str, Content]


def device_graphs(bundle: Bundle, runtime: str, version: str | None) -> Graphs:
    """Prepare the graphs of a bundle for the runtime of a board.

    Args:
        bundle: With a static twin.
        runtime: ``"onnxruntime"`` or ``"tensorrt"``.
        version: Of TensorRT on the board.

    Raises:
        DeviceError: This release cannot write graphs for that runtime.
    """
    model = bundle.load_model()
    bodies = runtime == "onnxruntime"
    labels = {
        STATIC: LabelledGraph(bundle.load_static(), bodies=False),
        DYNAMIC: LabelledGraph(model, bodies=bodies),
        FORCED: LabelledGraph(replace_masks(model, bundle.manifest.masks), bodies=bodies),
    }
    models = {name: label.model for name, label in labels.items()}
    if runtime == "tensorrt":
        models = {name: _tensorrt_copy(graph, bundle, version or "") for name, graph in models.items()}
    # Equal graphs must be equal bytes: their checksum says whether a board has them already.
    contents = {name: Content.of(graph.SerializeToString(deterministic=True)) for name, graph in models.items()}
    return Graphs(labels, contents)


def _tensorrt_copy(model: onnx.ModelProto, bundle: Bundle, version: str) -> onnx.ModelProto:
    graphs: Any = _tensorrt_graphs()
    plan = graphs.precision_plan(bundle.manifest.precision, _numbers(version))
    copy: onnx.ModelProto = graphs.tensorrt_model(model, plan)
    return copy


def strongly_typed(bundle: Bundle, version: str) -> bool:
    """Whether the copy for this version of TensorRT carries its types in the graph."""
    return bool(_tensorrt_graphs().precision_plan(bundle.manifest.precision, _numbers(version)).typed)


def _tensorrt_graphs() -> Any:
    try:
        return importlib.import_module("dyndeploy.graphs.tensorrt")
    except ImportError as error:
        raise DeviceError(
            f"This release cannot write graphs for TensorRT ({error}). Export with --target cpu to measure the board's "
            "processor instead."
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    digits = [part for part in version.split(".") if part.isdigit()]
    return tuple(int(part) for part in digits) or (0,)


@dataclass(frozen=True)
class Inputs:
    """What a profile feeds.

    Attributes:
        content: The .npz that is sent.
        image: Name of the graph's input.
        batches: Image batches, each (N, 3, H, W).
        forced: Per rate and draw, the masks by name.
        source: Where the images come from.
    """

    content: Content
    image: str
    batches: list[npt.NDArray[np.float32]]
    forced: list[list[dict[str, npt.NDArray[np.float32]]]]
    source: dict[str, Any]


def device_inputs(
    bundle: Bundle,
    rates: Sequence[float],
    *,
    data: str | os.PathLike[str] | None,
    images: int,
    repeats: int | None,
    seed: int,
) -> Inputs:
    """Images and forced masks, drawn as a profile of this machine draws them."""
    manifest = bundle.manifest
    limit = images if repeats is None else min(images, repeats * manifest.batch)
    batches, source = input_batches(bundle, data, limit)
    if repeats is not None:
        batches = batches[:repeats]
    draws = MASK_DRAWS if repeats is None else min(MASK_DRAWS, repeats)
    forced = [
        [forced_masks(manifest.masks, rate, seed=seed + 1000 * position + draw) for draw in range(draws)]
        for position, rate in enumerate(rates)
    ]
    arrays: dict[str, npt.NDArray[np.float32]] = {f"image/{index}": batch for index, batch in enumerate(batches)}
    for number, drawn in enumerate(forced):
        for draw, masks in enumerate(drawn):
            arrays |= {f"{PREFIX}{number}/{draw}/{name}": mask for name, mask in masks.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return Inputs(Content.of(stream.getvalue()), manifest.inputs[0].name, batches, forced, source)


def reference_content(bundle: Bundle) -> Content:
    """The reference tensors."""
    return Content.of(bundle.path / REFERENCE)


def plugin_contents(bundle: Bundle) -> dict[str, Content]:
    """Plugin sources by path: those that the bundle carries, else those of this release."""
    folder = bundle.path / DEVICE_FOLDER / PLUGINS
    prefix = f"{DEVICE_FOLDER}/{PLUGINS}/"
    carried = {
        name.removeprefix(prefix): bundle.path / name for name in bundle.manifest.files if name.startswith(prefix)
    }
    sources = carried if folder.is_dir() and carried else plugin_sources()
    if not any(name.startswith(PLUGIN_PROJECT) for name in sources):
        raise DeviceError(
            "The sources of the TensorRT plugins are neither in the bundle nor in this installation of dyndeploy. "
            "Install it with them, and export the bundle again."
        )
    return {name: Content.of(path) for name, path in sources.items()}
