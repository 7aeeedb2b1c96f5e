"""Which network is exported, and all that its checkpoint remembers of it, so that no option is typed twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dyndeploy.errors import InputError, UsageError
from dyndeploy.export.subject import HasFacts
from dyndeploy.nets import LoadReport, TrainedNetwork, model_info, model_names, read_trained
from dyndeploy.nets.checkpoint_rules import joined, listing
from dyndeploy.nets.trained import BEST, CHECKPOINT, checkpoint_of_run


@dataclass(frozen=True)
class Source:
    """A network to export.

    Attributes:
        name: Registered name, or a function or class of ``imported``.
        imported: A ``.py`` file or a module; None for networks that come with dyndeploy.
        checkpoint: File of its weights; None leaves them random.
        trained: What that file remembers; nothing where there is none.
        note: What was chosen of a run's folder, where it is not what one expects: a sentence, else "".
    """

    name: str
    imported: str | None
    checkpoint: Path | None
    trained: TrainedNetwork
    note: str = ""

    def options(self, typed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options to build the network with: remembered ones, and typed ones in their place."""
        return {**self.trained.options, **typed}


def find_source(
    network: str | None,
    *,
    imported: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | None = None,
) -> Source:
    """Find out what is meant by a network's name, a training run's folder, a checkpoint, or two of them.

    Args:
        network: A registered name, with ``imported`` a function or class in it, or the folder of a training run; None
            where the checkpoint tells.
        imported: A ``.py`` file or a module; None for the one that the checkpoint remembers.
        checkpoint: File of the weights; None for the best epoch of a run's folder, else none.
        weights: Name of a set of weights in the file.

    Raises:
        UsageError: Nothing tells which network is meant, a folder is no run, or the checkpoint is of another network.
        InputError: There is no such folder of a run.
        CheckpointError: The checkpoint cannot be read.
    """
    file = None if checkpoint is None else Path(checkpoint)
    note = ""
    if network is not None and imported is None and os.sep in network and not Path(network).exists():
        raise InputError(
            f"There is no training run {network}: check the path of the folder that 'dyndeploy train' wrote."
        )
    if network is not None and imported is None and network not in model_names() and Path(network).is_dir():
        if file is None:
            file = checkpoint_of_run(network, weights)
            if file.name == CHECKPOINT and weights is None:
                note = (
                    f"{network} has no {BEST} (no epoch kept the FLOPs target): {CHECKPOINT}, the last epoch, is taken."
                )
        network = None
    trained = TrainedNetwork() if file is None else read_trained(file)
    name = network or trained.name
    if name is None:
        raise UsageError(
            "Which network? Give its name, or the folder of a training run."
            if file is None
            else f"{file} does not tell which network it is of: give its name, as in 'dyndeploy export NETWORK "
            f"--checkpoint {file}'."
        )
    if network is not None and imported is None and trained.imported is None and trained.name not in (None, network):
        model_info(network)  # A name that nobody knows is the nearer mistake.
        raise UsageError(f"{file} is of {trained.name}, not of {network}: leave the name out.")
    return Source(name, imported or trained.imported, file, trained, note)


def require_told(report: LoadReport, options: Mapping[str, Any]) -> None:
    """Refuse weights whose meaning neither their file nor the user tells.

    Args:
        report: Of the loaded file.
        options: That the network was built with because somebody said so.

    Raises:
        UsageError: Naming the options and their choices.
    """
    asked = [option for option in report.untold if option not in options]
    if asked:
        how = " and ".join(_CHOICES.get(option, f"-O {option}=...") for option in asked)
        raise UsageError(
            f"{report.path} does not tell its {' and '.join(asked)}, and its weights load with any: give {how}, as it "
            "was trained."
        )


_CHOICES = {
    "mode": "--mode (spatial or layer)",
    "granularity": "--granularity (side of a patch in each stage, e.g. 4-4-2-1)",
}


def weight_notes(report: LoadReport, network: nn.Module) -> tuple[str, ...]:
    """Return what a bundle says of weights that were not all trained, or not all told: phrases.

    Args:
        report: Of the loaded file.
        network: That has them.
    """
    options = network.facts().options if isinstance(network, HasFacts) else {}
    notes = []
    if report.untrained:
        notes.append(
            f"{report.path.name} lacks {listing(report.untrained)}: these weights are random and were never trained, "
            "so that results mean nothing. Train first (dyndeploy train RECIPE --init FILE)"
        )
    notes += [f"{report.path.name}: {note}" for note in report.notes]
    notes += [
        f"{report.path.name} does not tell {option}: {joined(options[option])} is assumed"
        for option in report.assumed
        if option in options
    ]
    return tuple(notes)
