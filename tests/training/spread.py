"""A training process for tests, started alone or by torchrun: ``spread.py FOLDER [EPOCH]``.

Trains FOLDER/*.json, each into a folder of its own. With EPOCH it is killed in the middle of that epoch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from dyndeploy.training import EpochRecord, Recipe, train
from dyndeploy.training.processes import join_processes


class Killer:
    """Ends its process without any chance to clean up."""

    def __init__(self, epoch: int) -> None:
        self.stop = epoch

    def iteration(self, epoch: int, iteration: int, iterations: int, loss: float) -> None:
        if (epoch, iteration) == (self.stop, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    killer = Killer(int(sys.argv[2])) if len(sys.argv) > 2 else None
    with join_processes("cpu"):
        for path in sorted(Path(sys.argv[1]).glob("*.json")):
            recipe = Recipe.from_dict(json.loads(path.read_text()))
            train(recipe, path.with_suffix(""), device="cpu", progress=killer)
