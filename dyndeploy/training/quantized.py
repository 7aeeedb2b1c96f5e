"""Fine-tuning for INT8: where the scales come from, what a checkpoint keeps, and the table that deploys them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyndeploy.blocks import Gate, StagedNetwork, Tape
from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.export.graph import build
from dyndeploy.export.staged import build_stages
from dyndeploy.export.subject import make_subject
from dyndeploy.graphs.inspect import all_graphs, group_of
from dyndeploy.quantization import (
    INT8,
    CalibrationTable,
    Observer,
    calibrate,
    find_points,
    find_scale,
    standard_layers,
)
from dyndeploy.targets import load_target
from dyndeploy.training.batches import Dataset
from dyndeploy.training.evaluation import Batches, evaluating, logits_of
from dyndeploy.training.fake_quantization import FakeQuantization, StandardLayer
from dyndeploy.training.recipe import QuantizationRecipe, Recipe

CALIBRATION = "calibration.json"
"""File of a training run's folder: the scales that were trained, as a calibration table."""
DEFAULT_METHOD = "mse"
"""How ranges are found where neither the recipe nor a table says it."""


@dataclass(frozen=True)
class QuantizedResult:
    """What a run for INT8 ends with: the weights that export takes, on the held-out images.

    Attributes:
        calibration: The table with the scales that were trained.
        accuracy_fp32: Top-1 of these weights in floating point; None where the first output is no logits.
        accuracy_int8: The same in integers, as training simulates them.
        mask_bits: Mask bits of all held-out images.
        mask_flips: How many of them differ between both.
    """

    calibration: Path
    accuracy_fp32: float | None
    accuracy_int8: float | None
    mask_bits: int
    mask_flips: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "calibration": str(self.calibration)}


def freeze_gates(network: nn.Module) -> None:
    """Let every gate keep its weights and decide as in evaluation.

    What the network learns under is then what deploys: a sampled mask would show it values that no bundle computes.
    """
    for module in network.modules():
        if isinstance(module, Gate):
            module.eval().requires_grad_(False)


def require_quantizable(recipe: Recipe, iterations: int) -> None:
    """Refuse a run for INT8 that cannot end as it should.

    Args:
        recipe: With a ``quantization`` section.
        iterations: Of an epoch.

    Raises:
        UsageError: No initial weights, or scales that still move when the last epoch begins.
    """
    assert recipe.quantization is not None
    if recipe.model.initial_weights is None:
        raise UsageError(
            f"quantization: {recipe.name} fine-tunes a network that was trained, and names none: give its checkpoint "
            "(--init FILE, or model.initial_weights in the recipe)."
        )
    after, most = recipe.quantization.freeze_observers_after, (recipe.epochs - 1) * iterations
    if after > most:
        raise UsageError(
            f"quantization.freeze_observers_after: {after} is not valid: give at most {most}, so that the last of the "
            f"{recipe.epochs} epochs ({iterations} iterations each) is trained and evaluated with the scales that "
            "deploy."
        )


def starting_scales(network: nn.Module, recipe: Recipe, images: Dataset) -> dict[str, Any]:
    """Scales of the initial weights, as the state that :class:`QuantizedTraining` begins with.

    Raises:
        UsageError: The recipe's table belongs to another network or other weights, or does not fit the recipe.
        InputError: The recipe's table is missing or malformed.
    """
    quantization = recipe.quantization
    assert quantization is not None
    with _exported(network, recipe) as bundle:
        if quantization.table is None:
            table = _calibrated(bundle, recipe, quantization.method or DEFAULT_METHOD, images)
        else:
            table = CalibrationTable.load(quantization.table)
            table.check(bundle)
            _require_fitting(table, quantization)
        groups = _groups(bundle)
    nodes = convolutions_by_node(network, recipe.input_size)
    return {
        "table": table.without_histograms().to_json(),
        "groups": [known for group in groups if (known := [point for point in group if point in table.tensors])],
        "nodes": {node: path for node, path in nodes.items() if f"{node}:x" in table.tensors},
    }


def _groups(bundle: Bundle) -> list[list[str]]:
    """Points that have one scale."""
    stages = bundle.load_stages() if bundle.manifest.exits is not None else [bundle.load_model()]
    groups: dict[int, list[str]] = {}
    for point, group in sorted(find_points(stages).group_of.items()):
        groups.setdefault(group, []).append(point)
    return list(groups.values())


def _require_fitting(table: CalibrationTable, quantization: QuantizationRecipe) -> None:
    if table.weight_bits != quantization.weight_bits:
        raise UsageError(
            f"quantization.table: {quantization.table} is for weights of {table.weight_bits} bits, and "
            f"quantization.weight_bits is {quantization.weight_bits}: make them equal."
        )
    if not table.per_channel:
        raise UsageError(
            f"quantization.table: {quantization.table} has one scale for all channels of a weight, and training rounds "
            "each channel apart: calibrate without --per-tensor."
        )


@contextlib.contextmanager
def _exported(network: nn.Module, recipe: Recipe) -> Iterator[Bundle]:
    """A bundle in FP32 of the network as it is, for as long as it is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ExportSettings(input_size=recipe.input_size)
        yield export_model(network, Path(folder) / "fp32", settings, preprocessing=recipe.preprocessing)


def _calibrated(bundle: Bundle, recipe: Recipe, method: str, images: Dataset) -> CalibrationTable:
    """Calibrate on training images that are spread over all of them."""
    assert recipe.quantization is not None
    count = min(recipe.quantization.images, len(images))
    chosen = np.random.default_rng((recipe.seed, count)).permutation(len(images))[:count].tolist()
    name = bundle.manifest.inputs[0].name
    samples = ({name: np.asarray(images[index][0], np.float32)[None]} for index in chosen)
    table = calibrate(bundle, samples, method=method, weight_bits=recipe.quantization.weight_bits)
    return dataclasses.replace(table, data=f"{count} training images of the recipe {recipe.name}")


class QuantizedTraining:
    """A network that is fine-tuned in the integers that deploy.

    Args:
        network: What is trained.
        state: From :func:`starting_scales`, or from :meth:`state`.
        images: A few of its inputs.
        recipe: The section.
        average: Mean over the processes that train.

    Raises:
        UsageError: The scales do not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        state: Mapping[str, Any],
        images: Tensor,
        recipe: QuantizationRecipe,
        average: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self._start = {key: state[key] for key in ("table", "groups", "nodes")}
        self._table = CalibrationTable.from_json(state["table"])
        self._images, self._recipe, self._average = images, recipe, average
        self._method = recipe.method or self._table.method
        self._fake = self._around(network)
        if "ranges" in state:
            self._fake.load(state)

    def _around(self, network: nn.Module) -> FakeQuantization:
        nodes = {
            node: path
            for node, path in self._start["nodes"].items()
            if self._table.precision_of(group_of(node)) == INT8
        }
        return FakeQuantization(
            network,
            _standard_layers(network, nodes, self._images),
            self._table,
            self._start["groups"],
            self._images,
            find_range=self._find_range,
            momentum=self._recipe.momentum,
            freeze_after=self._recipe.freeze_observers_after,
            average=self._average,
        )

    def _find_range(self, values: Tensor) -> tuple[float, int] | None:
        observed = Observer()
        observed.add(values.numpy())
        if not observed.max > observed.min and not observed.max:
            return None  # Zeros alone tell no scale.
        found = find_scale(observed, self._method)
        return found.scale, found.zero_point

    @property
    def frozen(self) -> bool:
        """Whether the scales stay as they are from now on."""
        return self._fake.frozen

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {**self._start, **self._fake.state()}

    @contextlib.contextmanager
    def applied(self, *, observed: bool = False) -> Iterator[None]:
        """Let the network compute in integers; ``observed``: as a part of an iteration's batch."""
        with self._fake:
            if observed:
                self._fake.observe()
            yield
        if observed:
            self._fake.end_part()

    def update(self) -> None:
        """End an iteration; see :meth:`FakeQuantization.update`."""
        self._fake.update()

    def finish(
        self, network: nn.Module, folder: Path, recipe: Recipe, images: Dataset, held_out: Batches
    ) -> QuantizedResult:
        """Write the table that deploys the network, and compare it in floats and in integers.

        Args:
            network: With the weights that export takes.
            folder: Of the run.
            recipe: The run's.
            images: Training images, for the histograms.
            held_out: Images with their classes.
        """
        ranges = self._fake.ranges
        with _exported(network, recipe) as bundle:
            table = _calibrated(bundle, recipe, self._method, images)
        tensors = {
            point: dataclasses.replace(item, scale=ranges[point][0], zero_point=ranges[point][1])
            for point, item in table.tensors.items()
        }
        table = dataclasses.replace(table, tensors=tensors, precision=self._table.precision)
        table.save(folder / CALIBRATION)
        fake = self._around(network)
        fake.load(self._fake.state())
        exits = recipe.model.traits.exits
        images_seen, right, bits, flips = 0, {"fp32": 0, "int8": 0}, 0, 0
        with torch.no_grad(), evaluating(network):
            for inputs, labels in held_out:
                masks = {}
                for name, context in (("fp32", contextlib.nullcontext()), ("int8", fake)):
                    with context, Tape(network) as tape:
                        logits = logits_of(network(inputs), exits)
                    masks[name] = tape.masks
                    right[name] += int((logits[-1].argmax(1) == labels).sum()) if logits else 0
                images_seen += len(labels)
                bits += sum(mask.numel() for mask in masks["fp32"].values())
                flips += sum(int((mask != masks["int8"][name]).sum()) for name, mask in masks["fp32"].items())
        known = {name: count / images_seen if logits else None for name, count in right.items()}
        return QuantizedResult(folder / CALIBRATION, known["fp32"], known["int8"], bits, flips)


# ---------------------------------------------------------------- which modules are which nodes

_STEP = 2.0**-20


def convolutions_by_node(network: nn.Module, input_size: tuple[int, int]) -> dict[str, str]:
    """Dotted path of the module by the name of its node, of the convolutions that are quantised, of all stages.

    Every convolution of a copy gets its own number for its weights, and the copy is captured: that tells which is which
    whatever the passes rename, fold or move into a branch.

    Args:
        network: In any mode; it is not changed.
        input_size: (height, width).

    Raises:
        UsageError: Export refuses the network, or one of its convolutions is used twice in one pass.
    """
    twin = copy.deepcopy(network)
    convolutions = [(path, module) for path, module in twin.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        for number, (_, convolution) in enumerate(convolutions, 1):
            convolution.weight.fill_(number * _STEP)
        for module in twin.modules():
            if isinstance(module, _BatchNorm):
                _neutral(module)
    found: dict[str, str] = {}
    for model in _graphs(twin, input_size):
        constants = {item.name: item for part in all_graphs(model.graph) for item in part.initializer}
        for node, _, _ in standard_layers(model):
            number = round(float(numpy_helper.to_array(constants[node.input[1]]).mean()) / _STEP)
            if 1 <= number <= len(convolutions):
                found[node.name] = convolutions[number - 1][0]
    twice = sorted({path for path in found.values() if list(found.values()).count(path) > 1})
    if twice:
        raise UsageError(
            f"quantization: {', '.join(twice)} is used more than once in one pass, and would need scales for each use: "
            "make one instance for each (copy.deepcopy gives one with equal weights)."
        )
    return found


def _neutral(norm: _BatchNorm) -> None:
    """Let a batch norm give what it takes."""
    for tensor, value in ((norm.weight, 1.0), (norm.bias, 0.0), (norm.running_mean, 0.0)):
        if tensor is not None:
            tensor.fill_(value)
    if norm.running_var is not None:
        norm.running_var.fill_(1.0 - norm.eps)


def _graphs(network: nn.Module, input_size: tuple[int, int]) -> list[onnx.ModelProto]:
    subject, target = make_subject(network, batch=1, input_size=input_size), load_target("cpu")
    if isinstance(subject.network, StagedNetwork):
        return [stage.model for stage in build_stages(subject.network, target, None, None, input_size)]
    return [build(subject.network, subject.inputs, target).model]


@torch.no_grad()
def _standard_layers(network: nn.Module, paths: Mapping[str, str], images: Tensor) -> dict[str, StandardLayer]:
    """Modules of convolutions, with the batch norms that read nothing but what they give, by node."""
    modules = dict(network.named_modules())
    made: dict[int, tuple[Tensor, nn.Module]] = {}
    last: dict[nn.Module, nn.Module] = {}

    def behind(module: nn.Module, inputs: Any, output: Any) -> None:
        made[id(output)] = (output, module)

    def before(module: nn.Module, inputs: Any) -> None:
        if id(inputs[0]) in made:
            last[made[id(inputs[0])][1]] = module

    convolutions = {path: modules[path] for path in paths.values()}
    handles = [module.register_forward_hook(behind) for module in convolutions.values()]
    handles += [m.register_forward_pre_hook(before) for m in modules.values() if isinstance(m, nn.BatchNorm2d)]
    try:
        with evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    layers = {}
    for node, path in paths.items():
        convolution = convolutions[path]
        assert isinstance(convolution, nn.Conv2d)
        norm = last.get(convolution)
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        layers[node] = StandardLayer(convolution, norm)
    return layers
