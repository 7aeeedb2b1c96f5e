"""Model cards: what every registered network is, counted from the network itself, and what was published of it."""

from __future__ import annotations

import csv
import functools
import io
import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from dyndeploy import files
from dyndeploy.blocks import StagedNetwork
from dyndeploy.blocks.macs import dense_macs, exit_macs
from dyndeploy.errors import UsageError
from dyndeploy.nets.detector import Detector
from dyndeploy.nets.registry import ModelInfo, create_model, model_info, model_names

STATIC = "static"
COUNTS = "counts.json"
"""File among the recipes with what is counted of every network."""
_FAMILY_PREFIXES = ("laud_", "ada_")


@dataclass(frozen=True)
class PublishedResult:
    """One published point of a network.

    Attributes:
        network: Its name.
        mode: What it skips, or ``static``, or the exit.
        granularity: As it was published; None where that has no meaning.
        top1_percent: Top-1 accuracy on ImageNet.
        gmacs: Multiply-accumulates per image in billions; None where they were not published.
        source: Where it was published.
    """

    network: str
    mode: str
    granularity: str | None
    top1_percent: float
    gmacs: float | None
    source: str


@dataclass(frozen=True)
class ModelCard:
    """A registered network with its default options.

    Attributes:
        info: What the registry knows.
        modes: What it may skip, word by word; ``("static",)`` where it skips nothing.
        exits: Number of exits; 1 where it has one result.
        parameters: Of the network as created by default.
        macs: Multiply-accumulates per image of convolutions and matrix products with everything computed and every
            exit taken, without gates.
        exit_macs: The same up to and with each exit; empty where there is one.
        published: Of this network, and of its static twin.
    """

    info: ModelInfo
    modes: tuple[str, ...]
    exits: int
    parameters: int
    macs: int
    exit_macs: tuple[int, ...]
    published: tuple[PublishedResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        info = self.info
        return {
            "name": info.name,
            "family": info.family,
            "description": info.description,
            "input_size": list(info.input_size),
            "options": {key: list(v) if isinstance(v, tuple) else v for key, v in info.defaults.items()},
            "modes": list(self.modes),
            "exits": self.exits,
            "parameters": self.parameters,
            "macs": self.macs,
            "exit_macs": list(self.exit_macs),
            "published": [
                {key: value for key, value in asdict(each).items() if key != "network"} for each in self.published
            ],
        }


class Counts(NamedTuple):
    """What is counted of a network: see :class:`ModelCard`."""

    parameters: int
    macs: int
    exit_macs: tuple[int, ...]


def model_card(name: str) -> ModelCard:
    """Return the card of a registered network.

    Its figures are those of ``models/counts.json`` where it stands there (a test counts them again), else counted.

    Raises:
        UsageError: Unknown name.
    """
    info = model_info(name)
    counts = _stored().get(name) or count(name)
    return ModelCard(
        info=info,
        modes=tuple(getattr(info.config_type, "modes", (STATIC,))),
        exits=len(counts.exit_macs) or 1,
        parameters=counts.parameters,
        macs=counts.macs,
        exit_macs=counts.exit_macs,
        published=tuple(each for each in published_results() if _is_of(each, name)),
    )


def counts_text() -> str:
    """Count every network that comes with dyndeploy, for ``models/counts.json``: one line each.

    Raises:
        UsageError: A network needs a package that is missing, and has not been counted before.
    """
    lines = [f'  "{name}": {json.dumps(_counted(name)._asdict())}' for name in model_names()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _counted(name: str) -> Counts:
    try:
        return count(name)
    except UsageError:
        # Detectors need torchvision, which fits few releases of torch: their figures stay as they are without it.
        if name not in _stored():
            raise
        return _stored()[name]


@functools.lru_cache(maxsize=1)
def _stored() -> dict[str, Counts]:
    content = json.loads(files.read_text(files.shipped_folder("models") / COUNTS))
    return {name: Counts(each["parameters"], each["macs"], tuple(each["exit_macs"])) for name, each in content.items()}


def count(name: str) -> Counts:
    """Build a network without weights and count it.

    Raises:
        UsageError: Unknown name.
    """
    info = model_info(name)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = create_model(name)
    stages: tuple[int, ...] = ()
    if isinstance(network, StagedNetwork) and network.exits > 1:
        stages = exit_macs(network, info.input_size)
        macs = stages[-1]
    else:
        inputs = [torch.zeros(1, 3, *info.input_size)]
        if isinstance(network, Detector):
            inputs.append(torch.tensor([info.input_size], dtype=torch.float32))
        macs = dense_macs(network.eval(), inputs).total
    return Counts(sum(parameter.numel() for parameter in network.parameters()), macs, stages)


def _is_of(result: PublishedResult, name: str) -> bool:
    twins = [name.removeprefix(prefix) for prefix in _FAMILY_PREFIXES if name.startswith(prefix)]
    return result.network == name or (result.mode == STATIC and result.network in twins)


@functools.lru_cache(maxsize=1)
def published_results() -> tuple[PublishedResult, ...]:
    """Read ``models/published.csv``: what was published, with its source."""
    text = files.read_text(files.shipped_folder("models") / "published.csv")
    return tuple(
        PublishedResult(
            row["network"],
            row["mode"],
            row["granularity"] or None,
            float(row["top1_percent"]),
            float(row["gmacs"]) if row["gmacs"] else None,
            row["source"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )
