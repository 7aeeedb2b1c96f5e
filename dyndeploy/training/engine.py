"""The training loop: one recipe in, checkpoints and a log out, resumable at every epoch."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dyndeploy.errors import CheckpointError, DyndeployError, NotFiniteError, UsageError
from dyndeploy.files import locked, shown, write_json, write_text
from dyndeploy.nets import LoadReport, TrainedNetwork, load_checkpoint, save_checkpoint
from dyndeploy.nets.checkpoint_rules import listing
from dyndeploy.nets.trained import BEST, CHECKPOINT, TRAINED, checkpoint_of_run
from dyndeploy.nets.usable import unusable_state
from dyndeploy.training.augmentation import Mix, draw_mix
from dyndeploy.training.batches import (
    Batch,
    Dataset,
    ImageBatch,
    Images,
    datasets,
    held_out_batches,
    require_readable,
    training_batches,
)
from dyndeploy.training.detection import DetectionObjective
from dyndeploy.training.ema import MovingAverage
from dyndeploy.training.evaluation import Evaluation
from dyndeploy.training.logs import EpochRecord, TensorBoardLog, csv_log
from dyndeploy.training.objectives import GatedObjective, Moment, Objective, build
from dyndeploy.training.optimization import build_optimizer, clip_gradients, set_rates
from dyndeploy.training.processes import (
    Processes,
    SharedNoise,
    freeze_batch_norm,
    join_processes,
    stream_seed,
    synchronize_batch_norm,
)
from dyndeploy.training.quantized import (
    QuantizedResult,
    QuantizedTraining,
    freeze_gates,
    require_quantizable,
    starting_scales,
)
from dyndeploy.training.recipe import Recipe, differences, dump_recipe
from dyndeploy.training.scenes import Scenes

EMA = "ema.pt"
LOG = "log.csv"
RECIPE = "recipe.yaml"
RESULT = "result.json"
TENSORBOARD = "tensorboard"

_LOG = logging.getLogger("dyndeploy.training")

# Streams of random numbers beside those that the processes draw for themselves, which have their ranks.
_MASKS, _MIXING = 2**32, 2**32 + 1
_ADVICE = "Choose another output folder, or start again without resuming, which replaces that run."


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        recipe: What was trained.
        checkpoint: Weights, for :func:`dyndeploy.nets.load_checkpoint`.
        log: CSV file, one row per epoch.
        history: One record per epoch, those before a resumption included.
        evaluation: The final network on the held-out images.
        resumed_from: Epochs that an earlier run had completed; 0 for a run from the start.
        ema_evaluation: The final moving average on the held-out images, where the recipe keeps one.
        ema_checkpoint: Its weights.
        best_checkpoint: Weights of the best epoch, or of its moving average where that is better; None where
            no epoch kept the FLOPs budget.
        best_epoch: That epoch, counted from 1.
        notes: What else one has to know of the run, as sentences.
        quantized: What a run for INT8 ends with; its evaluations above are those of the integers, too.
    """

    recipe: Recipe
    checkpoint: Path
    log: Path
    history: tuple[EpochRecord, ...]
    evaluation: Evaluation
    resumed_from: int
    ema_evaluation: Evaluation | None = None
    ema_checkpoint: Path | None = None
    best_checkpoint: Path | None = None
    best_epoch: int | None = None
    notes: tuple[str, ...] = ()
    quantized: QuantizedResult | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "recipe": self.recipe.as_dict(),
            "checkpoint": str(self.checkpoint),
            "ema_checkpoint": None if self.ema_checkpoint is None else str(self.ema_checkpoint),
            "best_checkpoint": None if self.best_checkpoint is None else str(self.best_checkpoint),
            "best_epoch": self.best_epoch,
            "notes": list(self.notes),
            "log": str(self.log),
            "resumed_from": self.resumed_from,
            "seconds": sum(record.seconds for record in self.history),
            "evaluation": self.evaluation.as_dict(),
            "ema_evaluation": None if self.ema_evaluation is None else self.ema_evaluation.as_dict(),
            "quantized": None if self.quantized is None else self.quantized.as_dict(),
            "history": [asdict(record) for record in self.history],
        }


class Progress(Protocol):
    """Is told how training goes on, in the first process only."""

    def iteration(self, epoch: int, iteration: int, iterations: int, loss: float) -> None:
        """An iteration of an epoch (both counted from 1) has ended with this loss."""

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """An epoch has ended and its checkpoint is written."""


def train(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
    tensorboard: bool = False,
) -> TrainResult:
    """Train a network as its recipe says, on all processes that torchrun started.

    After every epoch the folder holds a whole checkpoint (weights, optimizer, moving average, history), the
    log and the recipe. With a ``quantization`` section it ends with ``calibration.json`` as well, the scales that were
    trained. A run that was interrupted, even killed, goes on from there, and ends, on a CPU with
    the same number of threads and processes, with the same weights to the bit as one that was not: every
    random number follows from the recipe's seed, the iteration and, for dropout, the process, so that there
    is no random state to lose.

    Args:
        recipe: The run.
        output: Folder for ``checkpoint.pt``, ``log.csv``, ``recipe.yaml``, ``best.pt``, with a moving average
            ``ema.pt``, and, at the end, ``result.json``. Only the first process reads and writes it.
        resume: Go on from the folder's checkpoint where there is one; False starts again and replaces it.
        progress: Is told about every iteration and epoch.
        device: "cpu" or "cuda"; None takes a GPU where there is one.
        tensorboard: Write the log for TensorBoard as well, into ``tensorboard``.

    Returns:
        The result; the state of torch's global random generators is as before.

    Raises:
        UsageError: The recipe cannot be carried out as it stands, or the folder holds a run of another recipe.
        InputError: Images are missing or unreadable.
        CheckpointError: The initial weights or the folder's checkpoint do not load.
        OutputError: The folder cannot be written, or another run is writing there.
        DyndeployError: The loss became infinite or NaN; the last good checkpoint is kept.
        NotFiniteError: The same of weights, batch-norm statistics, what the network gives for held-out images, or what
            is to be quantised.
    """
    with join_processes(device) as processes, contextlib.ExitStack() as stack:
        # Weights and dropout are drawn from the global generators: leave the caller's as they were.
        stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        torch.manual_seed(recipe.seed)
        if processes.rank == 0:
            stack.enter_context(locked(Path(output) / CHECKPOINT, 1.0))
        run = _Run(recipe, Path(output), processes, resume)
        completed = run.start()
        board: TensorBoardLog | None = None
        if tensorboard and processes.rank == 0:
            board = stack.enter_context(contextlib.closing(TensorBoardLog(run.output / TENSORBOARD, completed)))
        for epoch in range(completed, recipe.epochs):
            record = run.epoch(epoch, progress if processes.rank == 0 else None)
            if board is not None:
                board.write(record)
        return run.finish(completed)


def _tell(start: LoadReport) -> None:
    """Say what of the network the initial weights left fresh."""
    rest = [key for key in start.untrained if key not in start.fresh]
    if start.classes is not None:
        theirs, ours = start.classes
        _LOG.warning(
            "Note: %s: %s; a fresh one for %d.",
            start.path,
            "no classifier in it" if theirs is None else f"classifier of {theirs} classes left out",
            ours,
        )
    if rest:
        _LOG.warning("Note: %s lacks %s: fresh, to be trained.", start.path, listing(rest))
    for note in start.notes:
        _LOG.warning("Note: %s: %s.", start.path, note)


def _objective(
    recipe: Recipe, network: nn.Module, training: Images, held_out: Images, processes: Processes, noise: SharedNoise
) -> GatedObjective:
    """What the network is trained for, tried on two of the images."""
    if isinstance(training, Scenes):
        assert isinstance(held_out, Scenes)
        return DetectionObjective(recipe, network, training, held_out, processes=processes, noise=noise)
    images, labels = zip(*(training[index] for index in range(2)), strict=True)
    return Objective(
        recipe,
        network,
        torch.stack([torch.as_tensor(image) for image in images]),
        torch.as_tensor(labels),
        len(training.classes),
        processes=processes,
        noise=noise,
    )


class _Run:
    """The state of a training run between epochs."""

    def __init__(self, recipe: Recipe, output: Path, processes: Processes, resume: bool) -> None:
        self.training, self.held_out = datasets(recipe)
        self.recipe = recipe = recipe.for_classes(len(self.training.classes))
        self.output = output
        self.processes = processes
        self.parts = processes.parts(recipe.batch_size, recipe.compute.accumulation, pairs=recipe.mixing is not None)
        self.resumed = processes.from_first(lambda: resume and (output / CHECKPOINT).exists())
        if not self.resumed:
            require_readable((self.training, self.held_out), recipe.data.workers, processes)
        self.iterations = len(self.training) // recipe.batch_size
        self.network, start = build(recipe, len(self.training.classes))
        if start is not None and not self.resumed and processes.rank == 0:
            _tell(start)
        self.quantized: QuantizedTraining | None = None
        if recipe.quantization is not None:
            require_quantizable(recipe, self.iterations)
            freeze_gates(self.network)
        self.precision: torch.dtype = getattr(torch, recipe.compute.precision)
        self.dtype = torch.float64 if self.precision == torch.float64 else torch.float32
        self.noise = SharedNoise(processes.device)
        self.objective = _objective(recipe, self.network, self.training, self.held_out, processes, self.noise)
        self.objective.to(processes.device, self.dtype)
        if recipe.compute.batch_norm == "synchronized":
            synchronize_batch_norm(self.network, processes)
        # On CPUs the convolutions of both passes are half as fast again with channels last; GPUs like it too.
        self.network.to(processes.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.replica = self.network
        self.optimizer = build_optimizer(self.network, recipe.optimizer)
        self.ema = None if recipe.ema is None else MovingAverage(self.network, recipe.ema.decay)
        self.history: list[EpochRecord] = []
        self.best: dict[str, Any] | None = None
        self.evaluations: tuple[Evaluation, Evaluation | None] | None = None

    def start(self) -> int:
        """Take over the folder's checkpoint if wanted, and join the processes; return the completed epochs."""
        path = self.output / CHECKPOINT
        extra = self.processes.from_first(lambda: self._load(path) if self.resumed else None)
        if self.recipe.quantization is not None and not self.resumed:
            start = self.processes.from_first(lambda: starting_scales(self.network, self.recipe, self._classified()))
            self.quantized = self._quantized_from(start)
        if extra is not None:
            self._take_over(extra, path)
        if self.processes.size > 1:
            self.replica = DistributedDataParallel(self.network, find_unused_parameters=self.objective.unused)
            self.processes.share_buffers(self.network)
        return len(self.history)

    def _load(self, path: Path) -> dict[str, Any]:
        """Load the network from a checkpoint; return what else it holds."""
        try:
            return dict(load_checkpoint(self.network, path).extra)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.output} holds a checkpoint that cannot be resumed. {error} {_ADVICE}"
            ) from error

    def _take_over(self, extra: dict[str, Any], path: Path) -> None:
        try:
            saved = extra["training"]
            changed = differences(Recipe.from_dict(saved["recipe"]), self.recipe)
            if not changed:
                self.optimizer.load_state_dict(saved["optimizer"])
                if self.ema is not None:
                    self.ema.load(saved["ema"])
                self.history = [EpochRecord(**row) for row in saved["history"]]
                self.best = saved["best"]
                if self.recipe.quantization is not None:
                    self.quantized = self._quantized_from(saved["quantization"])
        except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of a training run, or of another release ({error}). {_ADVICE}"
            ) from error
        if changed:
            raise UsageError(
                f"{self.output} holds a run of another recipe (it differs in {', '.join(changed)}). {_ADVICE}"
            )

    def _quantized_from(self, state: dict[str, Any]) -> QuantizedTraining:
        assert self.recipe.quantization is not None
        training = self._classified()
        images = torch.stack([torch.as_tensor(training[index][0]) for index in range(2)])
        images = images.to(self.processes.device, self.dtype)
        return QuantizedTraining(self.network, state, images, self.recipe.quantization, self.processes.average)

    def epoch(self, epoch: int, progress: Progress | None) -> EpochRecord:
        """Train one epoch (counted from 0), evaluate, and write everything."""
        started = time.perf_counter()
        recipe = self.recipe
        self.network.train()
        if recipe.compute.batch_norm == "frozen":
            freeze_batch_norm(self.network)
        if recipe.quantization is not None:
            freeze_gates(self.network)
        batches = training_batches(self.training, recipe, epoch, self.parts)
        sums: dict[str, float] = {}
        set_now: dict[str, float] = {}
        for i in range(self.iterations):
            iteration = epoch * self.iterations + i
            moment = Moment(epoch, recipe.epochs, iteration / (recipe.epochs * self.iterations))
            lr = set_rates(self.optimizer, recipe.optimizer, iteration, self.iterations, recipe.epochs)
            set_now = {"lr": lr, **self.objective.settings(moment)}
            values = self._iteration(batches, iteration, moment)
            if not math.isfinite(values["loss"]):
                raise DyndeployError(
                    f"Training diverged: the loss is {values['loss']} in epoch {epoch + 1}, iteration {i + 1}. "
                    f"{self._slower()}"
                )
            try:
                self._step()
            except NotFiniteError as error:
                raise NotFiniteError(
                    f"Training diverged in epoch {epoch + 1}, iteration {i + 1}: {error} {self._slower()}"
                ) from error
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
            if progress is not None:
                progress.iteration(epoch + 1, i + 1, self.iterations, values["loss"])
        self._require_usable(epoch + 1)
        try:
            self.evaluations = held_out, ema = self._evaluate()
        except NotFiniteError as error:
            raise NotFiniteError(f"Training diverged in epoch {epoch + 1}: {error} {self._slower()}") from error
        record = EpochRecord(
            epoch=epoch + 1,
            training={**{name: value / self.iterations for name, value in sums.items()}, **set_now},
            held_out=held_out.measures(),
            ema={} if ema is None else ema.measures(),
            seconds=time.perf_counter() - started,
        )
        self.history.append(record)
        self._note_best(held_out, averaged=False)
        if self.ema is not None and ema is not None:
            with self.ema.applied(self.network):
                self._note_best(ema, averaged=True)
                if self.processes.rank == 0:
                    save_checkpoint(self.network, self.output / EMA, epoch=epoch + 1, **self._trained())
        self._write()
        if progress is not None:
            progress.epoch(record, recipe.epochs)
        return record

    def _slower(self) -> str:
        return f"Lower optimizer.lr ({self.recipe.optimizer.lr}), or set optimizer.clip_norm."

    def _require_usable(self, epoch: int) -> None:
        """Refuse weights that no later run could load, before they replace the last good checkpoint."""
        averages = {} if self.ema is None else self.ema.state
        for where, state in (("", self.network.state_dict()), ("the moving average of ", averages)):
            problem = unusable_state(self.network, state)
            if problem:
                raise NotFiniteError(
                    f"Training diverged in epoch {epoch}: {where}{problem}. {self._slower()} The checkpoint of the "
                    "epoch before is kept."
                )

    def _iteration(self, batches: Iterator[Batch], iteration: int, moment: Moment) -> dict[str, float]:
        """Compute the gradient of one batch; return its loss, the loss's terms and the accuracy."""
        seed = self.recipe.seed
        torch.manual_seed(stream_seed(seed, iteration, self.processes.rank))
        mix: Mix | None = None
        if self.recipe.mixing is not None:
            rng = np.random.default_rng(stream_seed(seed, iteration, _MIXING))
            mix = draw_mix(self.recipe.mixing, self.recipe.input_size, rng)
        self.optimizer.zero_grad()
        names: list[str] = []
        sums = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for number, part in enumerate(self.parts):
            batch = self._to_device(next(batches))
            if mix is not None and isinstance(batch, ImageBatch):
                batch = batch.mixed(mix, len(self.training.classes))
            self.noise.begin(part, stream_seed(seed, iteration, _MASKS))
            with self._gradients_shared(number == len(self.parts) - 1):
                with self._integers(observed=True):
                    loss = self.objective.of_batch(self.replica, batch, moment, self.precision)
                (loss.total / len(self.parts)).backward()  # type: ignore[no-untyped-call]
            values = {"loss": loss.total, **loss.terms}
            names = list(values)
            sums = sums + torch.stack([value.detach().double() for value in values.values()])
        means = self.processes.average(sums / len(self.parts))
        return dict(zip(names, means.tolist(), strict=True))

    def _to_device(self, batch: Batch) -> Batch:
        return batch.to(self.processes.device, self.dtype)

    def _integers(self, *, observed: bool = False) -> contextlib.AbstractContextManager[Any]:
        """Let the network compute in the integers that deploy, where the run is for INT8."""
        return contextlib.nullcontext() if self.quantized is None else self.quantized.applied(observed=observed)

    def _gradients_shared(self, shared: bool) -> contextlib.AbstractContextManager[None]:
        """Let the processes average their gradients only at the end of a batch."""
        if shared or not isinstance(self.replica, DistributedDataParallel):
            return contextlib.nullcontext()
        unshared: contextlib.AbstractContextManager[None] = self.replica.no_sync()
        return unshared

    def _step(self) -> None:
        if self.quantized is not None:
            self.quantized.update()
        clip_gradients(self.network.parameters(), self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.network)

    def _evaluate(self) -> tuple[Evaluation, Evaluation | None]:
        """Evaluate the network and its moving average on the held-out images."""
        self.processes.share_buffers(self.network)
        own = self._evaluate_network()
        if self.ema is None:
            return own, None
        with self.ema.applied(self.network):
            self.processes.share_buffers(self.network)
            return own, self._evaluate_network()

    def _evaluate_network(self) -> Evaluation:
        batches = held_out_batches(self.held_out, self.recipe, self.processes.rank, self.processes.size)
        on_device = (self._to_device(batch) for batch in batches)
        with self._integers():
            return self.objective.evaluate(on_device, self.processes.gather)

    def finish(self, resumed_from: int) -> TrainResult:
        """Write and return the result."""
        evaluation, ema_evaluation = self.evaluations or self._evaluate()
        result = TrainResult(
            recipe=self.recipe,
            checkpoint=self.output / CHECKPOINT,
            log=self.output / LOG,
            history=tuple(self.history),
            evaluation=evaluation,
            resumed_from=resumed_from,
            ema_evaluation=ema_evaluation,
            ema_checkpoint=None if self.ema is None else self.output / EMA,
            best_checkpoint=None if self.best is None else self.output / BEST,
            best_epoch=None if self.best is None else self.best["epoch"],
            notes=self._notes(),
            quantized=self._finish_quantized() if self.processes.rank == 0 else None,
        )
        if self.processes.rank == 0:
            write_json(self.output / RESULT, result.as_dict())
        return result

    def _finish_quantized(self) -> QuantizedResult | None:
        """Write the table of the weights that export takes, and compare them in floats and in integers."""
        if self.quantized is None:
            return None
        network = copy.deepcopy(self.network)
        load_checkpoint(network, checkpoint_of_run(self.output))
        batches = held_out_batches(self.held_out, self.recipe, 0, 1)
        on_device = (batch for batch in map(self._to_device, batches) if isinstance(batch, ImageBatch))
        return self.quantized.finish(network, self.output, self.recipe, self._classified(), on_device)

    def _classified(self) -> Dataset:
        """The training images of a run whose images have classes."""
        assert not isinstance(self.training, Scenes)
        return self.training

    def _notes(self) -> tuple[str, ...]:
        if self.best is not None or self.recipe.sparsity is None:
            return self.objective.notes
        target, last = self.recipe.sparsity.target, self.history[-1].held_out["flops_ratio"]
        return (
            *self.objective.notes,
            f"There is no {BEST}: no epoch kept the FLOPs target of {target:g} (the last one computes {last:.3f}). "
            f"Train longer, or raise sparsity.weight; {CHECKPOINT} holds the last epoch.",
        )

    def _trained(self) -> dict[str, Any]:
        """What every checkpoint remembers of the network, beside its weights."""
        recipe, (name, options) = self.recipe, (self.recipe.model.name, self.recipe.model.options)
        trained = TrainedNetwork(
            name=name,
            imported=recipe.model.imported,
            options=options,
            input_size=recipe.input_size,
            preprocessing=recipe.preprocessing,
            class_names=tuple(map(shown, self.training.classes)),
            category_ids=self.training.source.category_ids if isinstance(self.training, Scenes) else (),
        )
        return {TRAINED: trained.as_dict()}

    def _write(self) -> None:
        if self.processes.rank != 0:
            return
        write_text(self.output / RECIPE, dump_recipe(self.recipe))
        write_text(self.output / LOG, csv_log(self.history))
        if self.best is None:
            (self.output / BEST).unlink(missing_ok=True)
        # The checkpoint last: it is what a later run trusts.
        save_checkpoint(
            self.network,
            self.output / CHECKPOINT,
            epoch=len(self.history),
            training={
                "recipe": self.recipe.as_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": None if self.ema is None else self.ema.state,
                "history": [asdict(record) for record in self.history],
                "best": self.best,
                "quantization": None if self.quantized is None else self.quantized.state(),
            },
            **self._trained(),
        )

    def _note_best(self, evaluation: Evaluation, *, averaged: bool) -> None:
        """Keep the network, or the moving average that it has at present, if it is the best so far."""
        if self.quantized is not None and not self.quantized.frozen:
            return  # Its scales are not those that are written in the end.
        score = self.objective.score(evaluation)
        if score is None or (self.best is not None and score <= self.best["score"]):
            return
        self.best = {"epoch": len(self.history), "score": score, "averaged": averaged}
        if self.processes.rank == 0:
            save_checkpoint(self.network, self.output / BEST, **self.best, **self._trained())
