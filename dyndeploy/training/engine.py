"""The training loop: one recipe in, checkpoints and a log out, resumable at every epoch."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dyndeploy.data import FloatArray, ImageFolderDataset, PreprocessingLike, ShiftedImages, digits
from dyndeploy.errors import CheckpointError, DyndeployError, UsageError
from dyndeploy.files import write_json, write_text
from dyndeploy.nets import (
    DynamicOutput,
    LaudResNet,
    create_model,
    full_flops,
    load_checkpoint,
    model_info,
    save_checkpoint,
)
from dyndeploy.training.evaluation import Evaluation, evaluate
from dyndeploy.training.losses import block_bounds, distillation_loss, sparsity_loss
from dyndeploy.training.recipe import Recipe, differences, dump_recipe
from dyndeploy.training.schedules import cosine, scheduled

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
RECIPE = "recipe.yaml"
RESULT = "result.json"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Losses are means over its iterations, without their weights.

    Attributes:
        epoch: Counted from 1.
        lr: Learning rate of the last iteration.
        temperature: Gumbel-softmax temperature of the last iteration.
        loss: Weighted sum of the three losses that follow.
        cross_entropy: Against the labels.
        sparsity: See :func:`dyndeploy.training.losses.sparsity_loss`.
        distillation: See :func:`dyndeploy.training.losses.distillation_loss`; 0 without a teacher.
        train_accuracy: Top-1 on the training images, with sampled masks.
        train_flops_ratio: FLOPs ratio with sampled masks.
        accuracy: Top-1 on the held-out images.
        flops_ratio: FLOPs ratio on the held-out images.
        block_flops_ratios: The same for each block.
        block_rates: For each block the fraction of patches computed times that of channel groups computed.
        seconds: Time of the epoch, evaluation included.
    """

    epoch: int
    lr: float
    temperature: float
    loss: float
    cross_entropy: float
    sparsity: float
    distillation: float
    train_accuracy: float
    train_flops_ratio: float
    accuracy: float
    flops_ratio: float
    block_flops_ratios: tuple[float, ...]
    block_rates: tuple[float, ...]
    seconds: float


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
    """

    recipe: Recipe
    checkpoint: Path
    log: Path
    history: tuple[EpochRecord, ...]
    evaluation: Evaluation
    resumed_from: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "recipe": self.recipe.as_dict(),
            "checkpoint": str(self.checkpoint),
            "log": str(self.log),
            "resumed_from": self.resumed_from,
            "seconds": sum(record.seconds for record in self.history),
            "evaluation": self.evaluation.as_dict(),
            "history": [asdict(record) for record in self.history],
        }


class Progress(Protocol):
    """Is told how training goes on."""

    def iteration(self, epoch: int, iteration: int, iterations: int, loss: float) -> None:
        """An iteration of an epoch (both counted from 1) has ended with this loss."""

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """An epoch has ended and its checkpoint is written."""


class Dataset(Protocol):
    """Inputs (3, h, w) with their class indices, by number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Return an input and its class index."""


def train(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a network as its recipe says.

    After every epoch the folder holds a whole checkpoint (weights, optimizer, random state, history), the
    log and the recipe. A run that was interrupted, even killed, goes on from there, and ends, on a CPU with
    the same number of threads, with the same weights to the bit as one that was not.

    Args:
        recipe: The run.
        output: Folder for ``checkpoint.pt``, ``log.csv``, ``recipe.yaml`` and, at the end, ``result.json``.
        resume: Go on from the folder's checkpoint where there is one; False starts again and replaces it.
        progress: Is told about every iteration and epoch.

    Returns:
        The result; the state of torch's global random generator is as before.

    Raises:
        UsageError: The recipe cannot be carried out as it stands, or the folder holds a run of another recipe.
        InputError: Images are missing or unreadable.
        CheckpointError: The initial weights or the folder's checkpoint do not load.
        OutputError: The folder cannot be written.
        DyndeployError: The loss became infinite or NaN; the last good checkpoint is kept.
    """
    # Gumbel noise and weights are drawn from the global generator: leave the caller's as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        run = _Run(recipe, Path(output))
        completed = run.resume() if resume else 0
        for epoch in range(completed, recipe.epochs):
            run.epoch(epoch, progress)
        return run.finish(completed)


def datasets(recipe: Recipe) -> tuple[Dataset, Dataset]:
    """Return a recipe's training images and its held-out images.

    Raises:
        UsageError: The recipe names no folder, or its network has another number of classes than the images.
        InputError: Images are missing.
    """
    preprocessing: PreprocessingLike = model_info(recipe.model.name).preprocessing
    training: Dataset
    held_out: Dataset
    if recipe.data.dataset == "digits":
        split = digits(preprocessing, recipe.input_size, recipe.seed)
        # A sixteenth of the side is half a pixel of the original 8x8 images.
        distance = min(recipe.input_size) // 16
        training = ShiftedImages(split.train, distance, recipe.seed) if recipe.data.augment else split.train
        held_out = split.held_out
    else:
        if recipe.data.folder is None:
            raise UsageError(
                f"The recipe {recipe.name} names no images: give a folder that holds 'train' and 'val', each "
                "with one sub-folder of images per class (--data DIR, or data.folder in the recipe)."
            )
        folder = Path(recipe.data.folder)
        training = ImageFolderDataset(
            folder / "train", preprocessing, recipe.input_size, augment=recipe.data.augment, seed=recipe.seed
        )
        held_out = ImageFolderDataset(folder / "val", preprocessing, recipe.input_size, classes=training.classes)
    if len(training) < recipe.batch_size:
        raise UsageError(
            f"batch_size: {recipe.batch_size} is more than the {len(training)} training images: give less."
        )
    return training, held_out


class _Run:
    """The state of a training run between epochs."""

    def __init__(self, recipe: Recipe, output: Path) -> None:
        self.recipe = recipe
        self.output = output
        self.training, self.held_out = datasets(recipe)
        self.model = _build(recipe, static=False)
        classes = self.model.fc.out_features
        if classes != len(self.training.classes):
            raise UsageError(
                f"The images have {len(self.training.classes)} classes and the network has {classes}: set "
                f"model.options.num_classes to {len(self.training.classes)}."
            )
        self.teacher = _teacher(recipe)
        self.full_flops = full_flops(self.model, recipe.input_size)
        # On CPUs the convolutions of both passes are half as fast again with channels last.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.optimizer.lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            nesterov=True,
        )
        self.history: list[EpochRecord] = []

    def resume(self) -> int:
        """Take over the folder's checkpoint; return the number of completed epochs."""
        path = self.output / CHECKPOINT
        if not path.exists():
            return 0
        advice = "Choose another output folder, or start again without resuming, which replaces that run."
        try:
            report = load_checkpoint(self.model, path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.output} holds a checkpoint that cannot be resumed. {error} {advice}"
            ) from error
        try:
            saved = report.extra["training"]
            other = Recipe.from_dict(saved["recipe"])
            changed = differences(other, self.recipe)
            if not changed:
                self.optimizer.load_state_dict(saved["optimizer"])
                torch.set_rng_state(saved["rng_state"])
                self.history = [_record(row) for row in saved["history"]]
        except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            raise CheckpointError(
                f"{path} is not a checkpoint of a training run, or of another release ({error}). {advice}"
            ) from error
        if changed:
            raise UsageError(
                f"{self.output} holds a run of another recipe (it differs in {', '.join(changed)}). {advice}"
            )
        return len(self.history)

    def epoch(self, epoch: int, progress: Progress | None) -> None:
        """Train one epoch (counted from 0), evaluate, and write everything."""
        started = time.perf_counter()
        recipe = self.recipe
        bounds = block_bounds(recipe.sparsity.target, epoch / recipe.epochs, recipe.sparsity.bounds_until)
        iterations = len(self.training) // recipe.batch_size
        lr = temperature = 0.0
        sums = np.zeros(6)
        self.model.train()
        for i, (inputs, labels) in enumerate(self._training_batches(epoch, iterations)):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            done = (epoch * iterations + i) / (recipe.epochs * iterations)
            lr = cosine(recipe.optimizer.lr, 0.0, done)
            temperature = scheduled(recipe.temperature.schedule, recipe.temperature.start, recipe.temperature.end, done)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            output: DynamicOutput = self.model(inputs, temperature)
            cross_entropy = F.cross_entropy(output.logits, labels)
            sparsity = sparsity_loss(output.flops, self.full_flops, output.flops_ratio, recipe.sparsity.target, bounds)
            loss = cross_entropy + recipe.sparsity.weight * sparsity
            distillation = torch.zeros(())
            if self.teacher is not None and recipe.distillation is not None:
                with torch.no_grad():
                    taught = self.teacher(inputs).logits
                distillation = distillation_loss(output.logits, taught, recipe.distillation.temperature)
                loss = loss + recipe.distillation.weight * distillation
            if not math.isfinite(loss.item()):
                raise DyndeployError(
                    f"Training diverged: the loss is {loss.item()} in epoch {epoch + 1}, iteration {i + 1}. "
                    f"Lower optimizer.lr ({recipe.optimizer.lr}) or sparsity.weight ({recipe.sparsity.weight})."
                )
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            accuracy = (output.logits.argmax(1) == labels).double().mean()
            ratio = output.flops / self.full_flops
            sums += [v.item() for v in (loss, cross_entropy, sparsity, distillation, accuracy, ratio)]
            if progress is not None:
                progress.iteration(epoch + 1, i + 1, iterations, loss.item())
        evaluation = self.evaluate()
        means = sums / iterations
        record = EpochRecord(
            epoch=epoch + 1,
            lr=lr,
            temperature=temperature,
            loss=float(means[0]),
            cross_entropy=float(means[1]),
            sparsity=float(means[2]),
            distillation=float(means[3]),
            train_accuracy=float(means[4]),
            train_flops_ratio=float(means[5]),
            accuracy=evaluation.accuracy,
            flops_ratio=evaluation.flops_ratio,
            block_flops_ratios=tuple(block.flops_ratio for block in evaluation.blocks),
            block_rates=tuple(block.conv3 * block.channel for block in evaluation.blocks),
            seconds=time.perf_counter() - started,
        )
        self.history.append(record)
        self._write()
        if progress is not None:
            progress.epoch(record, recipe.epochs)

    def evaluate(self) -> Evaluation:
        """Evaluate on the held-out images."""
        order = list(range(len(self.held_out)))
        size = self.recipe.batch_size
        batches = _load(self.held_out, [order[i : i + size] for i in range(0, len(order), size)], self._workers())
        return evaluate(self.model, batches, self.full_flops)

    def finish(self, resumed_from: int) -> TrainResult:
        """Evaluate the final network and write the result."""
        result = TrainResult(
            recipe=self.recipe,
            checkpoint=self.output / CHECKPOINT,
            log=self.output / LOG,
            history=tuple(self.history),
            evaluation=self.evaluate(),
            resumed_from=resumed_from,
        )
        write_json(self.output / RESULT, result.as_dict())
        return result

    def _workers(self) -> int:
        return self.recipe.data.workers

    def _training_batches(self, epoch: int, iterations: int) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(self.training, (ImageFolderDataset, ShiftedImages)):
            self.training.set_epoch(epoch)
        # A generator of its own: the order follows from seed and epoch, whatever else draws random numbers.
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.training)).tolist()
        size = self.recipe.batch_size
        return _load(self.training, [order[i * size : (i + 1) * size] for i in range(iterations)], self._workers())

    def _write(self) -> None:
        history = [asdict(record) for record in self.history]
        # The checkpoint last: it is what a later run trusts.
        write_text(self.output / RECIPE, dump_recipe(self.recipe))
        write_text(self.output / LOG, _csv(self.history, [name for name, _ in self.model.named_blocks()]))
        save_checkpoint(
            self.model,
            self.output / CHECKPOINT,
            epoch=len(self.history),
            training={
                "recipe": self.recipe.as_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng_state": torch.get_rng_state(),
                "history": history,
            },
        )


def _build(recipe: Recipe, *, static: bool) -> LaudResNet:
    options = recipe.model.options | ({"mode": "static"} if static else {})
    model = create_model(recipe.model.name, **options)
    assert isinstance(model, LaudResNet)
    if recipe.model.initial_weights is not None:
        load_checkpoint(model, recipe.model.initial_weights)
    return model


def _teacher(recipe: Recipe) -> nn.Module | None:
    if recipe.distillation is None:
        return None
    if recipe.model.initial_weights is None:
        raise UsageError(
            f"The recipe {recipe.name} learns from the static network of its initial weights, but names none: "
            "give a checkpoint of the static network (--init FILE, or model.initial_weights in the recipe)"
            + (f". {recipe.checkpoint.note}" if recipe.checkpoint.note else ".")
        )
    return _build(recipe, static=True).eval().requires_grad_(False)


def _load(dataset: Dataset, batches: list[list[int]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    # The loader draws a seed for its workers, which have no use for it, from the generator given here instead
    # of the global one: the number of workers changes nothing.
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        generator=torch.Generator(),
    )
    return iter(loader)


def _record(row: dict[str, Any]) -> EpochRecord:
    return EpochRecord(
        **{
            **row,
            "block_flops_ratios": tuple(row["block_flops_ratios"]),
            "block_rates": tuple(row["block_rates"]),
        }
    )


def _csv(history: list[EpochRecord], blocks: list[str]) -> str:
    stream = io.StringIO()
    scalars = [name for name in EpochRecord.__dataclass_fields__ if not name.startswith("block_")]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*scalars, *(f"{b}.flops_ratio" for b in blocks), *(f"{b}.rate" for b in blocks)])
    for record in history:
        writer.writerow([*(getattr(record, name) for name in scalars), *record.block_flops_ratios, *record.block_rates])
    return stream.getvalue()
