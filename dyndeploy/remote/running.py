"""Running images on a board: read and preprocessed here, run there by the engines and the code that profiles them."""

from __future__ import annotations

import base64
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.data import load_image, with_folders
from dyndeploy.errors import DeviceError, DyndeployError, InputError, NotFiniteError, UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.finite import require_finite
from dyndeploy.inference import Classification, Failure, Result, classified
from dyndeploy.remote.client import Content, DeviceClient, Progress
from dyndeploy.remote.devices import DeviceEntry
from dyndeploy.remote.exits import chain_stages
from dyndeploy.remote.payload import module_contents, plugin_contents, run_graphs
from dyndeploy.remote.profiling import BoardWork, ask_board, require_runnable, require_space, sent_and_run
from dyndeploy.runtimes.base import Array
from dyndeploy.runtimes.native import operator_code
from dyndeploy.runtimes.staged import chosen_thresholds

CHUNK_BYTES = 32 << 20
"""Inputs that are sent at a time: about fifty images of 224 x 224 pixels."""

_ADVICE = "'dyndeploy verify BUNDLE' tells whether the bundle is right on this machine."


def run_on_device(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    images: Iterable[str | os.PathLike[str]],
    *,
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    progress: Progress = lambda message, fraction: None,
) -> Iterator[Classification | Result | Failure]:
    """Run image files on a board, as :func:`dyndeploy.inference.classify_images` and ``run_images`` do here.

    Images become inputs on this machine, so that they are the same to the bit; the board gets those. They are sent some
    dozens at a time, and results come as soon as such a part is done. Engines are built there once and kept; what
    :func:`~dyndeploy.remote.profile_on_device` has built is used, and the other way round.

    Args:
        bundle: For the board's target; it needs no static twin.
        client: Connected to the board.
        entry: The board.
        images: Files and folders of images.
        threads: How many threads a processor's sessions compute with; on a GPU it means nothing.
        thresholds: Of a network that exits early: least confidence of every exit but the last; None for the bundle's
            of the precision that the board computes in.
        progress: Called with what is being done and the fraction done of that step.

    Yields:
        One result per image in their order; ``ms`` is the wall-clock time there from the inputs in memory to the
        outputs in memory.

    Raises:
        UsageError: The request is impossible: another board, no TensorRT, too little disk, thresholds that are missing
            or do not fit.
        DeviceError: The board, or the connection to it, failed.
    """
    manifest = bundle.manifest
    preprocessing, size = manifest.images()
    if manifest.exits is None and thresholds is not None:
        raise UsageError(f"{manifest.network.name} has no exits: leave the thresholds out.")
    files = list(with_folders(images))
    target, facts, versions = ask_board(bundle, client, entry, progress, require=require_runnable)
    progress("preparing graphs", 0.0)
    graphs = run_graphs(bundle, target.runtime, versions.get("tensorrt"))
    modules = module_contents()
    sources = plugin_contents(bundle) if target.runtime == "tensorrt" else {}
    kept = [*graphs.contents.values(), *modules.values(), *sources.values()]
    require_space(client, kept, graphs.contents, facts)
    work = BoardWork(bundle, client, target, versions, threads, modules, progress)
    chain = _chain(bundle, thresholds, work.precision)
    batch = manifest.batch if manifest.exits is None else 1
    keep = [LOGITS] if manifest.exits is not None else _graph_outputs(bundle)

    def run(batches: Sequence[Array]) -> list[tuple[dict[str, Array], int | None, float] | DyndeployError]:
        name = manifest.inputs[0].name
        content = _packed({f"input/{index}/{name}": value for index, value in enumerate(batches)})

        def steps() -> Any:
            built = work.build(graphs.contents, graphs.plans, sources)
            spec = {**built, **chain, "batches": len(batches), "inputs": [name], "keep": keep}
            return work.run("run", "run", {**spec, "content": content.sha256})

        result = sent_and_run(client, [*kept, content], progress, steps)
        client.forget(result.key)
        return _results(bundle, result.value, len(batches), keep, facts["model"] or "the board")

    def each() -> Iterator[Result | Failure]:
        waiting: list[str] = []
        read: list[Array] = []
        for path in files:
            try:
                image = load_image(path, preprocessing, size)
            except InputError as error:
                # The order of the images stays that of the results.
                yield from _rows(waiting, read, batch, run, bundle, work)
                waiting, read = [], []
                yield Failure(os.fspath(path), error)
                continue
            waiting.append(os.fspath(path))
            read.append(image)
            if len(read) % batch == 0 and sum(value.nbytes for value in read) >= CHUNK_BYTES:
                yield from _rows(waiting, read, batch, run, bundle, work)
                waiting, read = [], []
        yield from _rows(waiting, read, batch, run, bundle, work)

    if LOGITS in {info.name for info in manifest.outputs}:
        yield from classified(each(), manifest.network)
    else:
        yield from each()


def _graph_outputs(bundle: Bundle) -> list[str]:
    return [info.name for info in bundle.manifest.outputs] + [mask.name for mask in bundle.manifest.masks]


def _chain(bundle: Bundle, thresholds: Sequence[float] | None, precision: str) -> dict[str, Any]:
    """What the board is told of stages; nothing for a network without exits."""
    if bundle.manifest.exits is None:
        return {}
    if not bundle.exits.dynamic_batch and bundle.manifest.batch != 1:
        raise UsageError(f"The bundle runs batches of {bundle.manifest.batch}; exits run image by image on a board.")
    limits = chosen_thresholds(bundle, thresholds, precision)
    if limits is None:
        raise UsageError(
            f"The bundle {bundle.path} holds no exit thresholds for {precision}. Find them with 'dyndeploy calibrate', "
            "or give --thresholds."
        )
    # Confidences are float32: so is what they are compared with, here and there.
    return {"stages": chain_stages(bundle), "thresholds": [float(np.float32(limit)) for limit in limits[:-1]]}


def _packed(arrays: Mapping[str, Array]) -> Content:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return Content.of(stream.getvalue())


def _rows(
    names: Sequence[str], images: Sequence[Array], batch: int, run: Any, bundle: Bundle, work: BoardWork
) -> Iterator[Result | Failure]:
    """Results of some images, whose last batch is filled up with its last image."""
    if not images:
        return
    filled = [*images, *[images[-1]] * (-len(images) % batch)]
    batches = [np.stack(filled[start : start + batch]) for start in range(0, len(filled), batch)]
    code = None
    for number, found in enumerate(run(batches)):
        own = names[number * batch : (number + 1) * batch]
        if isinstance(found, DyndeployError):
            yield from (Failure(name, found) for name in own)
            continue
        code = code or operator_code(bundle.manifest.operator_types, work.native())
        outputs, taken, ms = found
        for row, name in enumerate(own):
            values = {
                key: value[row : row + 1] if value.shape[:1] == (batch,) else value for key, value in outputs.items()
            }
            masks = [mask.name for mask in bundle.manifest.masks if mask.name in values]
            rates = {mask: float(values.pop(mask).mean()) for mask in masks}
            yield Result(values, ms / len(own), taken, rates, name, code)


def _results(
    bundle: Bundle, value: object, count: int, keep: Sequence[str], where: str
) -> list[tuple[dict[str, Array], int | None, float] | DyndeployError]:
    """What the board sent, checked: outputs, exit and milliseconds of every batch, or why there are none."""
    root = Document(f"The result of {where}", "Run once more.", DeviceError).root(value)
    exits = None if bundle.manifest.exits is None else [stage.exit for stage in bundle.exits.stages]
    runs = root["runs"].sequence(lambda item: item, length=count)
    try:
        with np.load(io.BytesIO(base64.b64decode(root["results"].text(), validate=True)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DeviceError(f"The result of {where} is malformed: {error}. Run once more.") from error
    found: list[tuple[dict[str, Array], int | None, float] | DyndeployError] = []
    for index, item in enumerate(runs):
        if "error" in item.value:
            found.append(NotFiniteError(f"{item['error'].label()}. {_ADVICE}"))
            continue
        left = item["exit"].optional(Field.tally)
        fits = (left is None) == (exits is None) and (left is None or left < len(exits or ()))
        item["exit"].require(fits, "the index of a stage, or null without stages")
        outputs = {name: arrays.get(f"{index}/{name}") for name in keep}
        lacking = [name for name, array in outputs.items() if array is None]
        root["results"].require(not lacking, f"an array of {', '.join(lacking)}")
        named = {name: array for name, array in outputs.items() if array is not None}
        try:
            require_finite(named, _ADVICE)
        except NotFiniteError as error:
            found.append(error)
            continue
        found.append((named, None if left is None or exits is None else exits[left], item["ms"].positive()))
    return found
