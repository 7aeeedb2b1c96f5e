"""Published points, the rates they were reached at, and what this project predicts for the same device.

The table has no rates. A rate is solved from the published GMACs: the one rate, the same for every block, at which this
project counts as many multiply-accumulates. A network that is not in the zoo yet gets no figures, and gets them by
itself as soon as :func:`dyndeploy.create_model` knows its name.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.optimize import brentq

from dyndeploy import create_model
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.nets import exit_macs, model_info, model_names
from dyndeploy.ops import OPERATORS
from dyndeploy.prediction import Configuration, Estimator, Prediction
from dyndeploy.prediction.architectures import static_name
from dyndeploy.prediction.zoo import zoo_nodes

ROWS = Path(__file__).with_name("published_accuracy.csv")
DEVICES = {"v100": 128, "tx2": 1, "nano": 1}
"""Devices of the paper's simulator and the images per run that it assumed."""
RUNTIME, PRECISION = "tensorrt", "fp32"
"""Of every prediction here: a dynamic network is only comparable with a twin in the same runtime."""
STATIC_MODE, EXIT = "static", "exit "
TORCHVISION = {"regnety_400mf": "regnet_y_400mf", "regnety_800mf": "regnet_y_800mf"}
"""Static networks that the papers call by another name."""


@dataclass(frozen=True)
class Point:
    """One published point.

    Attributes:
        network: Name in the registry, or the one it will have.
        mode: Mode, ``"static"``, or ``"exit N"``.
        granularity: ``"a-b-c-d"`` (patches), ``"g2"`` (channels of a group), ``"block"``, or empty.
        top1: Accuracy in percent.
        gmacs: Published multiply-accumulates of an image in units of 1e9; None where there are none.
        published_ms: Milliseconds of an image by device, from the paper's simulator.
        source: Where it is published.
    """

    network: str
    mode: str
    granularity: str
    top1: float
    gmacs: float | None
    published_ms: Mapping[str, float]
    source: str

    @property
    def is_static(self) -> bool:
        """Whether this is a network without decisions."""
        return self.mode == STATIC_MODE

    @property
    def exit(self) -> int | None:
        """Number of the exit; None for a network without exits."""
        return int(self.mode.removeprefix(EXIT)) if self.mode.startswith(EXIT) else None

    @property
    def twin(self) -> str:
        """Published name of the static network that it was made from."""
        return self.network.removeprefix("laud_").removeprefix("ada_")

    @property
    def known(self) -> bool:
        """Whether this release has the network."""
        names = model_names()
        if self.is_static:
            return static_of(self.network) is not None or f"laud_{self.network}" in names
        return self.network in names

    def options(self) -> dict[str, Any]:
        """Keywords of :func:`dyndeploy.create_model` that give this network."""
        options: dict[str, Any] = {"mode": self.mode} if "mode" in model_info(self.network).defaults else {}
        if self.granularity.startswith("g"):
            options["channel_granularity"] = int(self.granularity[1:])
        elif "-" in self.granularity:
            options["granularity"] = tuple(int(side) for side in self.granularity.split("-"))
        return options


def read_points(path: Path = ROWS) -> list[Point]:
    """The published table, in its order."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Point(
            network=row["network"],
            mode=row["mode"],
            granularity=row["granularity"],
            top1=float(row["top1_percent"]),
            gmacs=float(row["gmacs"]) if row["gmacs"] else None,
            published_ms={name: float(text) for name in DEVICES if (text := row[f"{name}_ms_paper"])},
            source=row["source"],
        )
        for row in rows
    ]


def static_of(name: str) -> str | None:
    """The name under which a static network is predicted; None where it is not known."""
    return static_name(TORCHVISION.get(name, name))


@functools.lru_cache
def _estimator(device: str, batch: int) -> Estimator:
    return Estimator(device, precision=PRECISION, runtime=RUNTIME, batch=batch)


def _configuration(point: Point, rate: float) -> Configuration:
    return Configuration(rate=rate, **point.options())


def macs_of(prediction: Prediction) -> float:
    """Multiply-accumulates of an image that a prediction counts."""
    return sum(operator.macs or 0.0 for block in prediction.blocks for operator in block.operators)


def counted_gmacs(point: Point, rate: float) -> float:
    """What this project counts for a point's network at one rate of every block, in units of 1e9.

    Of patches in front of a squeeze-and-excitation as the paper's code counts them, which leaves skipped positions out
    of all three convolutions although the mean behind the second one reads them.
    """
    if "se" not in model_info(point.network).defaults:
        return macs_of(_estimator("nano", 1).predict(point.network, _configuration(point, rate))) / 1e9
    nodes = zoo_nodes(point.network, {**point.options(), "se": "active"})
    return macs_of(_estimator("nano", 1).predict(nodes, Configuration(rate=rate))) / 1e9


@functools.lru_cache
def _has_plugins(network: str, mode: str) -> bool:
    options = {"mode": mode} if "mode" in model_info(network).defaults else {}
    if not options:
        return True
    operators = {node.op_type for node in zoo_nodes(network, options).nodes} & set(OPERATORS)
    return all(RUNTIME in OPERATORS[name].kernels for name in operators)


def runs_there(point: Point) -> bool:
    """Whether there is a plugin for every dynamic operator of a point's network; True for static networks."""
    return point.is_static or not point.known or _has_plugins(point.network, point.mode)


def solved_rate(point: Point) -> float | None:
    """The rate at which the counted GMACs are the published ones.

    Returns:
        A rate in [0, 1]; None without published GMACs, for static networks and exits, or where no rate gives them.
    """
    if point.gmacs is None or point.is_static or point.exit is not None:
        return None
    try:
        low, high = counted_gmacs(point, 0.0), counted_gmacs(point, 1.0)
    except DyndeployError:  # A network whose decisions take other words than these.
        return None
    if not low <= point.gmacs <= high:
        return None
    rate: float = brentq(lambda rate: counted_gmacs(point, rate) - point.gmacs, 0.0, 1.0, xtol=1e-4)
    return rate


def predicted_ms(point: Point, device: str, rate: float | None) -> float | None:
    """Milliseconds of an image on a device; None where that cannot be predicted, or where no plugin computes it."""
    if not runs_there(point):
        return None  # What no kernel computes has no time.
    estimator = _estimator(device, DEVICES[device])
    try:
        if point.is_static:
            name = static_of(point.network)
            return estimator.predict(name).latency_ms if name else None
        if point.exit is not None:
            exits = estimator.predict(point.network).exits
            return next((entry.latency_ms for entry in exits if entry.exit == point.exit), None)
        return None if rate is None else estimator.predict(point.network, _configuration(point, rate)).latency_ms
    except UsageError:
        return None


def predicted_twin_ms(point: Point, device: str) -> float | None:
    """Milliseconds of an image of the static twin on a device, in the same runtime."""
    twin = Point(point.twin, STATIC_MODE, "", 0.0, None, {}, "")
    return predicted_ms(twin, device, None)


@functools.lru_cache
def counted_exits(network: str) -> tuple[int, ...]:
    """Multiply-accumulates of an image up to and with each exit."""
    return tuple(exit_macs(create_model(network), model_info(network).input_size))
