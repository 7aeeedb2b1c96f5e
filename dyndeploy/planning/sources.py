"""What a plan is made from: the user's calibrations and the accuracies that recipes know."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.planning.plan import Plan
from dyndeploy.planning.search import Price
from dyndeploy.prediction import Estimator, StagedNodes, bundle_nodes, load_device_model
from dyndeploy.prediction.calibrated import (
    CalibratedModel,
    find_calibrations,
    load_calibration,
)
from dyndeploy.prediction.integers import IntegerModel
from dyndeploy.prediction.zoo import lacking_operators, require_registered, zoo_network
from dyndeploy.targets import load_target, target_names
from dyndeploy.targets.devices import device_names, load_device

_CALIBRATED = {"fp32": CalibratedModel, "int8": IntegerModel}
"""What prices by a calibration, by precision."""


@dataclass(frozen=True)
class DevicePrices:
    """How kernels are priced on a device, and what that rests on.

    Attributes:
        by_threads: Prices by number of threads; a GPU has one entry, under None.
        runtime: Whose fusions apply.
        precision: Of activations and weights.
        basis: What the prices rest on, for a reader.
        warnings: Why a calibration may not fit this machine.
        calibrations: Files that were given.
    """

    by_threads: Mapping[int | None, Price]
    runtime: str
    precision: str
    basis: str
    warnings: tuple[str, ...] = ()
    calibrations: tuple[Path, ...] = ()


def device_prices(
    device: str, *, threads: int | None = None, calibrations: Sequence[Path] = (), precision: str = "fp32"
) -> DevicePrices:
    """Prices of a device: of its calibrations where there are some, else of the model made from its data sheet.

    Args:
        device: Its name.
        threads: Only this number, of a CPU; None takes every calibration.
        calibrations: Calibration files; none looks in the user's configuration folder.
        precision: Of activations and weights; calibrations are for fp32, and int8 is modelled from them.

    Raises:
        UsageError: Unknown device, threads of a GPU, a precision that the device or its calibration has not, or a CPU
            that is not calibrated.
        InputError: A calibration file is missing, foreign or damaged.
    """
    if calibrations or device not in device_names() or load_device(device).is_local:
        if precision not in _CALIBRATED:
            raise UsageError(
                f"The calibration of {device} is for fp32 (int8 is modelled from it): plan for one of these."
            )
        found, warnings = calibrated_prices(device, threads, calibrations, precision)
        if threads is not None and threads not in found:
            known = ", ".join(map(str, found))
            raise UsageError(f"'{device}' is not calibrated with {threads} threads, but with {known}.")
        basis = f"calibration of {device} ({', '.join(map(str, found))} threads)"
        if precision == "int8":
            basis += ", in fp32: int8 is modelled from it, not measured"
        return DevicePrices(
            {count: found[count] for count in found},
            "onnxruntime",
            precision,
            basis,
            tuple(warnings),
            tuple(calibrations),
        )
    if threads is not None:
        raise UsageError(f"{device} is a GPU: threads mean nothing there. Leave --threads out.")
    if device in target_names():
        load_target(device).require_precision(precision)
    runtime = Estimator(device, precision=precision).runtime
    model = load_device_model(device, precision, runtime=runtime)
    basis = model.basis if isinstance(model, CalibratedModel) else f"device model, not calibrated: {model.basis}"
    return DevicePrices({None: model.price}, runtime, precision, basis)


def staged_network(
    network: str, device: str, *, precision: str = "fp32", input_size: tuple[int, int] | None = None
) -> StagedNodes | None:
    """Stages of a registered network, or of a bundle's folder, that exits early; None for a network without exits.

    Args:
        network: Name or folder.
        device: It is planned for: export writes other graphs for other devices.
        precision: Of activations and weights.
        input_size: (height, width); None takes the network's own.

    Raises:
        UsageError: No registered network, or a bundle without exits.
        BundleError: The folder is no bundle.
    """
    if os.sep in network or os.path.isdir(network):
        bundle = Bundle.open(network)
        found = bundle_nodes(bundle, 1, input_size)
        if not isinstance(found, StagedNodes):
            name, size = bundle.manifest.network.name, bundle.manifest.input_size
            size_option = "" if size is None else f" --input-size {size[0]}x{size[1]}"
            raise UsageError(
                f"{network} has no exits to choose from. Modes and granularities are chosen before training, for a "
                f"network by its name: dyndeploy plan {name}{size_option}."
            )
        return found
    require_registered(network)
    from dyndeploy.nets import model_info

    if "mode" in model_info(network).defaults:
        return None
    named = zoo_network(network, {}, input_size=input_size, lacks=lacking_operators(device))
    return named if isinstance(named, StagedNodes) else None


def calibrated_prices(
    device: str, threads: int | None, given: Sequence[Path] = (), precision: str = "fp32"
) -> tuple[dict[int, Price], list[str]]:
    """Prices by number of threads, and what a user should know about them.

    Args:
        device: Its name.
        threads: Only this number; None takes every calibration of the device.
        given: Calibration files; none looks in the user's configuration folder.
        precision: ``"fp32"``, or ``"int8"``, which is modelled.

    Raises:
        UsageError: The device is not calibrated.
        InputError: A file is missing, foreign or damaged.
    """
    calibrations = [load_calibration(path) for path in given or find_calibrations(device)]
    if threads is not None and any(item.threads == threads for item in calibrations):
        calibrations = [item for item in calibrations if item.threads == threads]
    if not calibrations:
        raise UsageError(
            f"'{device}' is not calibrated: run 'dyndeploy calibrate-device --device {device}' there (ten minutes), or "
            "name a file with --calibration."
        )
    prices: dict[int, Price] = {item.threads: _CALIBRATED[precision](item).price for item in calibrations}
    return prices, [warning for item in calibrations for warning in item.warnings()] if device == "cpu" else []


def recipe_accuracy(plan: Plan) -> float | None:
    """Accuracy that a recipe states for exactly these settings; None where none does."""
    from dyndeploy.training.recipe import load_recipe, recipe_names

    if plan.dense:
        return None  # Another function than the one that was trained.
    for name in recipe_names():
        recipe = load_recipe(name)
        accuracy, sparsity = recipe.checkpoint.accuracy, recipe.sparsity
        if accuracy is None or sparsity is None or recipe.model.name != plan.network:
            continue
        if abs(sparsity.target - plan.rate) > 0.01:
            continue
        options = recipe.model.options
        wanted = {"mode": plan.mode, "granularity": plan.granularity, "channel_granularity": plan.channel_granularity}
        if all(_stages(options.get(key, value)) == _stages(value) for key, value in wanted.items()):
            return float(accuracy)
    return None


def _stages(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 4
