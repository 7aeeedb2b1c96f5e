"""What is sent to a board to run or measure a bundle there: labelled graphs with their build plans, inputs, plugins."""

from __future__ import annotations

import base64
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.bundle import REFERENCE, Bundle, PartInfo
from dyndeploy.bundle.device_files import (
    DEVICE_FOLDER,
    PLUGIN_FOLDERS,
    PLUGIN_PROJECT,
    PLUGINS,
    board_modules,
    plugin_sources,
)
from dyndeploy.errors import DeviceError, UsageError
from dyndeploy.fields import Field
from dyndeploy.graphs.forced import PREFIX, replace_masks
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.measure.exits import every_exit_model
from dyndeploy.measure.inputs import Configuration, Feeds, Schedule, forced_configurations
from dyndeploy.measure.runners.engine import DYNAMIC, FORCED, STATIC, labelled_graphs
from dyndeploy.remote.client import Content
from dyndeploy.runtimes.tensorrt_plan import BuildPlan, plan_build


@dataclass(frozen=True)
class Graphs:
    """The three graphs for a runtime; of a network in parts all graphs of the three chains.

    Attributes:
        labels: Labelled graphs by name: they know which block a layer's name belongs to.
        contents: What is sent of them, by name.
        plans: How an engine is built from what is sent, by name; empty for ONNX Runtime.
        chains: Of a network in parts, by ``"static"``, ``"dynamic"`` and ``"forced"``, what the agent is told of each
            part: ``inputs``, ``outputs``, and ``engine`` or ``program``.
        programs: The host programs that are sent.
    """

    labels: Mapping[str, LabelledGraph]
    contents: Mapping[str, Content]
    plans: Mapping[str, BuildPlan]
    chains: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    programs: Sequence[Content] = ()


def device_graphs(bundle: Bundle, runtime: str, version: str | None) -> Graphs:
    """Prepare the graphs of a bundle for the runtime of a board.

    Args:
        bundle: With a static twin.
        runtime: ``"onnxruntime"`` or ``"tensorrt"``.
        version: Version of TensorRT on the board; None for ONNX Runtime.

    Raises:
        UsageError: There is no plan for the bundle's precision with this TensorRT.
    """
    if bundle.parts:
        return _chain_graphs(bundle, version, (STATIC, DYNAMIC, FORCED))
    labels = labelled_graphs(bundle, bodies=runtime == "onnxruntime")
    return Graphs(labels, *_sent(bundle, {name: label.model for name, label in labels.items()}, runtime, version))


def require_static_parts(bundle: Bundle) -> None:
    """Raise ``UsageError`` for a bundle in parts whose static twin is one graph only, as releases before wrote it."""
    if bundle.parts and not bundle.static_parts:
        raise UsageError(
            f"The static twin of {bundle.path} was not written in parts, as {bundle.manifest.target} runs it: there is "
            "nothing to compare with. Export the bundle again with --static."
        )


def _chain_graphs(bundle: Bundle, version: str | None, names: Sequence[str]) -> Graphs:
    """The engines and host programs of some of the three chains of a network in parts."""
    labels: dict[str, LabelledGraph] = {}
    chains: dict[str, list[dict[str, Any]]] = {}
    programs: dict[str, Content] = {}
    for name in names:
        static = name == STATIC
        graphs = {part.file: model for part, model in bundle.load_engine_parts(static=static)}
        chains[name] = []
        for part in bundle.static_parts if static else bundle.parts:
            entry = _told(part)
            if part.host:
                programs[part.file] = Content.of(bundle.path / part.file)
                entry["program"] = programs[part.file].sha256
            else:
                model, engine = graphs[part.file], Path(part.file).stem
                made = {info.name for info in part.outputs}
                masks = [mask for mask in bundle.manifest.masks if name == FORCED and mask.name in made]
                if masks:
                    model, engine = replace_masks(model, masks), f"{FORCED} {engine}"
                    entry["inputs"] += [PREFIX + mask.name for mask in masks]
                labels[engine] = labels.get(engine) or LabelledGraph(model, bodies=False)
                entry["engine"] = engine
            chains[name].append(entry)
    sent = _sent(bundle, {name: label.model for name, label in labels.items()}, "tensorrt", version)
    return Graphs(labels, *sent, chains, list(programs.values()))


def _told(part: PartInfo) -> dict[str, Any]:
    return {"inputs": [info.name for info in part.inputs], "outputs": [info.name for info in part.outputs]}


@dataclass(frozen=True)
class StageGraphs:
    """The graphs of a network that exits early, for a runtime.

    Attributes:
        contents: What is sent, by name: ``stage0``, ..., ``forced0``, ... where a stage has masks, ``static``,
            ``every`` and, where the bundle has one and the runtime takes it, ``branched``.
        plans: As of :class:`Graphs`.
        forced: Name of the graph whose masks come from outside, per stage: the stage's own where it has none.
    """

    contents: Mapping[str, Content]
    plans: Mapping[str, BuildPlan]
    forced: tuple[str, ...]


def stage_graphs(bundle: Bundle, runtime: str, version: str | None) -> StageGraphs:
    """Prepare the stages of a bundle for the runtime of a board; arguments and errors as of :func:`device_graphs`."""
    models: dict[str, onnx.ModelProto] = {}
    forced = []
    for index, (stage, model) in enumerate(zip(bundle.exits.stages, bundle.load_stages(), strict=True)):
        models[f"stage{index}"] = model
        masks = bundle.stage_masks(stage)
        forced.append(f"forced{index}" if masks else f"stage{index}")
        if masks:
            models[forced[-1]] = replace_masks(model, masks)
    models |= {"static": bundle.load_static(), "every": every_exit_model(bundle)}
    if runtime == "onnxruntime" and bundle.branched is not None:
        models["branched"] = bundle.load_branched()
    return StageGraphs(*_sent(bundle, models, runtime, version), tuple(forced))


@dataclass(frozen=True)
class RunGraphs:
    """What a bundle runs with on a board, without what it is measured against.

    Attributes:
        contents: What is sent, by name: ``dynamic``, or ``stage0``, ..., or ``part0``, ...
        plans: As of :class:`Graphs`, like all that follow.
        chains: Of a network in parts.
        programs: The host programs.
    """

    contents: Mapping[str, Content]
    plans: Mapping[str, BuildPlan]
    chains: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    programs: Sequence[Content] = ()


def run_graphs(bundle: Bundle, runtime: str, version: str | None) -> RunGraphs:
    """Those of :func:`device_graphs` or :func:`stage_graphs` that run as deployed; equal bytes, equal engines."""
    models: dict[str, onnx.ModelProto]
    if bundle.parts:
        graphs = _chain_graphs(bundle, version, (DYNAMIC,))
        return RunGraphs(graphs.contents, graphs.plans, graphs.chains, graphs.programs)
    if bundle.manifest.exits is not None:
        models = {f"stage{index}": model for index, model in enumerate(bundle.load_stages())}
    else:
        models = {DYNAMIC: LabelledGraph(bundle.load_model(), bodies=runtime == "onnxruntime").model}
    return RunGraphs(*_sent(bundle, models, runtime, version))


def _sent(
    bundle: Bundle, models: Mapping[str, onnx.ModelProto], runtime: str, version: str | None
) -> tuple[dict[str, Content], dict[str, BuildPlan]]:
    """What is sent of graphs, and how engines are built from it."""
    plans, sent = {}, dict(models)
    if runtime == "tensorrt":
        for name, model in models.items():
            plans[name], sent[name] = plan_build(
                model, bundle.manifest.precision, version or "", rates=bundle.manifest.reference.rates
            )
    # Equal graphs must be equal bytes: their checksum says whether a board has them already.
    return {name: Content.of(model.SerializeToString(deterministic=True)) for name, model in sent.items()}, plans


@dataclass(frozen=True)
class Inputs:
    """What a profile feeds.

    Attributes:
        content: The .npz that is sent: ``input/<batch>/<name>`` and ``forced/<configuration>/<draw>/<mask>``.
        batches: Inputs of the network by name, batch by batch.
        forced: The configurations with forced masks.
        source: Where the inputs come from.
    """

    content: Content
    batches: list[Feeds]
    forced: list[Configuration]
    source: dict[str, Any]


def device_inputs(bundle: Bundle, schedule: Schedule, data: str | os.PathLike[str] | None) -> Inputs:
    """Inputs and forced masks, drawn as a profile of this machine draws them."""
    batches, source = schedule.batches(bundle, data)
    forced = forced_configurations(bundle.manifest.masks, batches, schedule)
    arrays = {f"input/{index}/{name}": array for index, batch in enumerate(batches) for name, array in batch.items()}
    for number, configuration in enumerate(forced):
        for draw, masks in enumerate(configuration.masks):
            arrays |= {f"{PREFIX}{number}/{draw}/{name}": mask for name, mask in masks.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return Inputs(Content.of(stream.getvalue()), batches, forced, source)


def module_contents(bundle: Bundle) -> dict[str, Content]:
    """The files that the agent's jobs run, by module name."""
    return {name: Content.of(source) for name, source in board_modules(parts=bool(bundle.parts)).items()}


def reference_content(bundle: Bundle) -> Content:
    """The reference tensors."""
    return Content.of(bundle.path / REFERENCE)


def unpacked_arrays(item: Field) -> dict[str, npt.NDArray[Any]]:
    """Arrays by name that a job sent as an .npz in base64; raises the document's error where it is none."""
    try:
        content = io.BytesIO(base64.b64decode(item.text(), validate=True))
        with np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        item.require(False, f"an .npz in base64 ({error})")
        raise


def plugin_contents(bundle: Bundle) -> dict[str, Content]:
    """Plugin sources by path: those that the bundle carries, else those of this release."""
    folder = bundle.path / DEVICE_FOLDER / PLUGINS
    prefix = f"{DEVICE_FOLDER}/{PLUGINS}/"
    folders = tuple(f"{prefix}{name}/" for name in PLUGIN_FOLDERS)  # The runtime's sources are no part of it.
    carried = {
        name.removeprefix(prefix): bundle.path / name for name in bundle.manifest.files if name.startswith(folders)
    }
    sources = carried if folder.is_dir() and carried else plugin_sources()
    if not any(name.startswith(PLUGIN_PROJECT) for name in sources):
        raise DeviceError(
            "The sources of the TensorRT plugins are neither in the bundle nor in this installation of dyndeploy. "
            "Install it with them, and export the bundle again."
        )
    return {name: Content.of(path) for name, path in sources.items()}
