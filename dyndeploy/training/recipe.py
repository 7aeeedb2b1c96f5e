"""Recipes: everything that a training run depends on, read from YAML and checked before any work begins."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from dyndeploy import files
from dyndeploy.data import INTERPOLATIONS
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.files import shipped_folder
from dyndeploy.nets import Preprocessing, model_info
from dyndeploy.nets.detection_losses import LOSSES, MMDETECTION
from dyndeploy.nets.factories import default_options, file_of
from dyndeploy.prediction.zoo import predicted_only
from dyndeploy.quantization.table import METHODS, WEIGHT_BITS
from dyndeploy.training.schedules import SCHEDULES
from dyndeploy.training.traits import Traits, network_traits

CLASSIFIED = ("digits", "imagefolder", "digit_scenes")
"""Images with a class each; scenes have one digit each then."""
ANNOTATED = ("digit_scenes", "coco")
"""Images with objects in them."""
DATASETS = tuple(dict.fromkeys((*CLASSIFIED, *ANNOTATED)))
OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("all", "matrices")
PRECISIONS = ("float32", "bfloat16", "float64")
BATCH_NORMS = ("local", "synchronized", "frozen")
BEST_EXITS = ("all", "reference")
LR_SCHEDULES = ("cosine", "steps")

_SCENES = ("scenes", "digits_per_image", "digit_size")
"""Keys for scenes of digits."""
_CLASSES = "num_classes"
"""What a network calls the number of its classes, if the images are to say it."""
_SUFFIXES = (".yaml", ".yml")
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class ModelRecipe:
    """The network.

    Attributes:
        name: A registered model, or a function or class of ``imported`` that gives a network.
        options: Keywords of the model, the function or the class. Where ``num_classes`` is one of them and is left
            out, the images say how many classes there are.
        input_size: (height, width) in pixels; None for the network's own.
        initial_weights: Checkpoint to start from; None for random weights.
        weights: Which of the weights in that file, as for :func:`dyndeploy.nets.load_checkpoint`; None for the usual.
        imported: ``import`` in files: a ``.py`` file, relative to the recipe's folder, or a module; None takes the
            networks that come with dyndeploy.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    initial_weights: str | None = None
    weights: str | None = None
    imported: str | None = field(default=None, metadata={"key": "import"})

    @property
    def traits(self) -> Traits:
        """What the network has use for."""
        return network_traits(self.name, self.options, self.imported, self.input_size)


@dataclass(frozen=True)
class DataRecipe:
    """The images.

    Attributes:
        dataset: "digits" (scikit-learn's, nothing to download) or "imagefolder"; of detectors "digit_scenes"
            (scikit-learn's digits on its photographs, nothing to download) or "coco". Classifiers learn from
            "digit_scenes" as well: of one digit each, so that a detector's backbone can start from them.
        folder: For "imagefolder": a folder with ``train`` and ``val`` in it, each with one sub-folder of
            images per class; or with the sub-folders of the classes alone, of which a fifth of the images is then held
            out. For "coco": the folder that holds images and annotations; see :func:`dyndeploy.training.coco_files`.
        images: For "coco", within the folder: the folders of the training images and of the held-out ones, or one
            folder for both; None looks for the usual names.
        annotations: For "coco", within the folder: the annotation files of both, or one of which a fifth of the images
            is then held out; None looks for the usual names.
        scenes: For "digit_scenes": how many scenes an epoch has, and how many are held out; None for 2000 and 200.
        digits_per_image: For "digit_scenes" of detectors: fewest and most digits of a scene; None for 1 and 5.
        digit_size: For "digit_scenes": smallest and largest size of a digit in pixels, at most the image's; None for 14
            and 40.
        contrast: For "digit_scenes": least difference of brightness, from 0 to 127, between a digit and what lies under
            it; None for 70.
        augment: Vary the training images: random crops and mirroring for "imagefolder", shifts by up to a
            sixteenth of the side for "digits", mirroring and scaling as the section ``detection`` says for images with
            objects.
        rand_augment: For "imagefolder", on top of ``augment``: a RandAugment policy in timm's words, e.g.
            "rand-m9-mstd0.5-inc1". Needs timm.
        random_erasing: For "imagefolder", on top of ``augment``: probability that a rectangle is replaced by
            noise, in [0, 1]. Needs timm where it is above 0.
        workers: Processes that read images, for each training process; 0 reads in the training process.
        mean: Mean per RGB channel of values in [0, 1]; None for the network's own. This and the next three make inputs
            of images, in training and wherever the trained network is deployed.
        std: Standard deviation per RGB channel, above 0; None for the network's own.
        resize: Length of the shorter side in pixels before the centre is cropped; None for the network's own.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos"; None for the network's own.
    """

    dataset: str
    folder: str | None = None
    images: tuple[str, ...] | None = None
    annotations: tuple[str, ...] | None = None
    scenes: tuple[int, int] | None = None
    digits_per_image: tuple[int, int] | None = None
    digit_size: tuple[int, int] | None = None
    contrast: int | None = None
    augment: bool = True
    rand_augment: str | None = None
    random_erasing: float = 0.0
    workers: int = 0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class MixingRecipe:
    """Mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019) of every batch: images and labels in pairs.

    Attributes:
        mixup: Parameter of mixup's beta distribution; 0 for no mixup.
        cutmix: Parameter of CutMix's beta distribution; 0 for no CutMix.
        probability: That a batch is mixed at all.
        switch_probability: That it is mixed by CutMix, where both are on.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5


@dataclass(frozen=True)
class LayerRecipe:
    """Settings of some of the parameters, in place of the network's.

    Attributes:
        lr_mult: Factor of the learning rate.
        weight_decay_mult: Factor of the weight decay.
    """

    lr_mult: float = 1.0
    weight_decay_mult: float = 1.0


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimizer. The learning rate changes every iteration: a linear warm-up, then half a cosine or steps.

    Attributes:
        lr: Learning rate after the warm-up. It is for the recipe's batch size: nothing scales it.
        name: "sgd" or "adamw".
        momentum: For "sgd", between 0 and 1; 0.9 where it is left out.
        nesterov: For "sgd": Nesterov's momentum, or the plain one.
        betas: For "adamw"; [0.9, 0.999] where it is left out.
        weight_decay: At the start.
        weight_decay_end: At the end, reached along half a cosine; None keeps it.
        decay: What decays: "all" parameters, batch norm and biases included (LAUDNet), or "matrices",
            those of two and more dimensions that are no biases (Dyn-Perceiver).
        schedule: "cosine", or "steps".
        steps: For "steps": epochs after which the learning rate is multiplied by ``step_factor``.
        step_factor: Above 0 and below 1.
        lr_end: Learning rate at the end of the cosine.
        warmup_epochs: Epochs in which the learning rate rises from 0.
        warmup_iterations: Instead, iterations in which it rises from ``warmup_start`` times its value.
        warmup_start: From 0 to 1.
        clip_norm: Largest norm of the gradient of all parameters together; None does not clip.
        layers: Settings of single layers, by patterns of parameter names (``*`` and ``?`` as in file names,
            e.g. "*.masker_*"). The first pattern that fits a name counts.
    """

    lr: float
    name: str = "sgd"
    momentum: float | None = None
    nesterov: bool = True
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    decay: str = "all"
    schedule: str = "cosine"
    steps: tuple[int, ...] | None = None
    step_factor: float = 0.1
    lr_end: float = 0.0
    warmup_epochs: int = 0
    warmup_iterations: int = 0
    warmup_start: float = 0.0
    clip_norm: float | None = None
    layers: dict[str, LayerRecipe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put the optimizer's own settings where none are given."""
        if self.name == "sgd" and self.momentum is None:
            object.__setattr__(self, "momentum", 0.9)
        if self.name == "adamw" and self.betas is None:
            object.__setattr__(self, "betas", (0.9, 0.999))


@dataclass(frozen=True)
class EmaRecipe:
    """An exponential moving average of all weights and batch-norm statistics, evaluated beside the network.

    Attributes:
        decay: Share of the average that stays at each iteration, in [0, 1).
    """

    decay: float = 0.9999


@dataclass(frozen=True)
class ComputeRecipe:
    """How a batch is computed.

    Attributes:
        precision: "float32"; "bfloat16" for the network's matrix products, weights and losses staying float32;
            or "float64", in which rounding does not add up to anything visible: to compare runs.
        accumulation: Parts that every batch is computed in, one after the other, to save memory.
        batch_norm: What batch norm takes its statistics from: "local" (the images that a process computes at
            once), "synchronized" (those of all processes: the number of processes changes nothing), "frozen"
            (the initial weights' running statistics, which stay as they are).
    """

    precision: str = "float32"
    accumulation: int = 1
    batch_norm: str = "local"


@dataclass(frozen=True)
class SparsityRecipe:
    """The FLOPs budget.

    Attributes:
        target: FLOPs of the network over those of its static twin, in (0, 1].
        weight: Factor of the sparsity loss.
        bounds_until: Fraction of training, above 0, after which single blocks are free; above 1 they stay
            bounded to the end; None never bounds them.
    """

    target: float = 0.5
    weight: float = 10.0
    bounds_until: float | None = 0.33


@dataclass(frozen=True)
class UsageTermsRecipe:
    """How much of one kind of decision is to be computed.

    Attributes:
        target: Share that is to be computed, in [0, 1].
        weight: Factor of the whole term.
        diverse: Factor of the mean distance of the single units (heads of a block; blocks) from the target.
        entropy: Factor of the mean entropy of the probabilities, which is rewarded.
        minimal: Share that every single unit is to reach, in [0, 1].
        minimal_weight: Factor of the sum of what the units lack of it.
    """

    target: float = 0.5
    weight: float = 2.0
    diverse: float = 0.0
    entropy: float = 0.0
    minimal: float = 0.0
    minimal_weight: float = 0.0


@dataclass(frozen=True)
class UsageRecipe:
    """Targets for each kind of decision, as AdaViT has them, beside or (``sparsity.weight`` 0) instead of the budget.

    Attributes:
        token: Tokens: the squared distance of the mean from the target. None leaves them alone.
        head: Attention heads: the distance of the mean, over blocks that compute anything. None leaves them alone.
        layer: Sublayers or whole blocks: the distance of the mean. None leaves them alone.
    """

    token: UsageTermsRecipe | None = None
    head: UsageTermsRecipe | None = None
    layer: UsageTermsRecipe | None = None


@dataclass(frozen=True)
class TemperatureRecipe:
    """Temperature of the Gumbel-softmax, changed every iteration, and how long decisions are sampled at all.

    Attributes:
        schedule: "exp", "linear" or "cosine".
        start: First value, above 0.
        end: Last value, above 0.
        noise_until: Fraction of training, in [0, 1], after which no noise is added to the logits: the network then
            learns with the decisions of evaluation, and keeps the FLOPs target with these. 1 samples to the end, as
            LAUDNet does; Verelst and Tuytelaars (CVPR 2020) sample until 0.8.
    """

    schedule: str = "exp"
    start: float = 5.0
    end: float = 0.1
    noise_until: float = 1.0


@dataclass(frozen=True)
class ExitsRecipe:
    """The exits of a network that may stop early.

    Attributes:
        weights: Factor of each exit's cross entropy, in the order of the exits; None is 0.5 for the first half of them
            and 1 for the others. Not used where a loss function is named.
        thresholds: Least confidences, by the network's own measure, of all exits but the last, for evaluating
            early exit while training goes on; None evaluates whole passes only. Deployment needs thresholds
            that are calibrated on the bundle: see ``dyndeploy calibrate``.
        best: What the best epoch is best in: "all", the mean accuracy of all exits, or "reference", the best
            single exit but the first, as in the Dyn-Perceiver reference code.
    """

    weights: tuple[float, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    best: str = "all"


@dataclass(frozen=True)
class DistillationRecipe:
    """Learning from a teacher: with several exits the last one of the same pass, else the static network of the same
    initial weights, whose gates compute everything.

    Attributes:
        weight: Factor of the distillation loss.
        temperature: Of both softmaxes, above 0.
    """

    weight: float = 0.5
    temperature: float = 4.0


@dataclass(frozen=True)
class DetectionRecipe:
    """How detectors are trained.

    Attributes:
        losses: Whose: "mmdetection", as LAUDNet's detectors were trained, or "torchvision"; what they do in different
            ways is in :mod:`dyndeploy.nets.detection_losses`.
        flip: Probability, in [0, 1], that a training image is mirrored.
        scale: Training images are resized to so many times the size that the network has them resized to, drawn between
            the two numbers.
        proposal_samples: Anchors of an image that proposals are learned from, where there are any.
        region_samples: Regions of an image that the heads which look at regions are trained on.
    """

    losses: str = MMDETECTION.name
    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    proposal_samples: int = 256
    region_samples: int = 512


@dataclass(frozen=True)
class QuantizationRecipe:
    """Fine-tuning for INT8: what deploys as integers is rounded in training as it will be, with straight-through
    gradients (Jacob et al., CVPR 2018). Gates keep their weights and decide as in evaluation.

    Attributes:
        weight_bits: 7 (exact on every CPU) or 8.
        table: Calibration table of the initial weights, whose scales the run starts from; None calibrates at the start,
            on training images.
        method: How a range is found: "minmax", "percentile", "entropy" or "mse"; None is the table's, else "mse".
        images: Training images that are calibrated on: at the start where there is no table, and at the end for the
            histograms of the table that is written.
        momentum: Share of a scale that an iteration's own range replaces, above 0 and at most 1.
        freeze_observers_after: Iterations after which the scales stay as they are; 0 keeps those of the start.
    """

    weight_bits: int = 7
    table: str | None = None
    method: str | None = None
    images: int = 256
    momentum: float = 0.05
    freeze_observers_after: int = 100


@dataclass(frozen=True)
class CheckpointRecipe:
    """Published weights of this recipe.

    Attributes:
        url: Where they can be downloaded; None where there is no address that a program can read.
        note: What else one has to know about them.
        accuracy: Published top-1 accuracy, a fraction; None where it is not known.
    """

    url: str | None = None
    note: str | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        name: Its name; output folders are named after it.
        description: One sentence.
        model: The network.
        data: The images.
        epochs: Passes over the training images.
        batch_size: Images per iteration, over all processes and parts; an incomplete last batch is dropped.
        optimizer: Optimizer, learning rate, weight decay.
        sparsity: FLOPs budget, of networks whose gates decide.
        usage: Targets for each kind of decision; None has the FLOPs budget alone.
        temperature: Gumbel-softmax temperature of the gates.
        exits: Early exits, of networks that have several.
        distillation: None trains on labels alone.
        loss: ``module:function`` or ``file.py:function`` (relative to the recipe's folder): takes what the network
            returns and the targets, and gives a scalar tensor. None is the cross entropy of the logits.
        mixing: None trains on single images.
        label_smoothing: Probability that the targets spread evenly over all classes.
        ema: None keeps no moving average.
        compute: Precision, parts of a batch, batch norm.
        quantization: Fine-tuning for INT8; None trains what deploys as floating point.
        detection: How detectors are trained.
        seed: Seed of weights, order, augmentation, sampling and split.
        checkpoint: Published weights.
    """

    name: str
    description: str
    model: ModelRecipe
    data: DataRecipe
    epochs: int
    batch_size: int
    optimizer: OptimizerRecipe
    sparsity: SparsityRecipe | None = None
    usage: UsageRecipe | None = None
    temperature: TemperatureRecipe | None = None
    exits: ExitsRecipe | None = None
    distillation: DistillationRecipe | None = None
    loss: str | None = None
    mixing: MixingRecipe | None = None
    label_smoothing: float = 0.0
    ema: EmaRecipe | None = None
    compute: ComputeRecipe = ComputeRecipe()
    quantization: QuantizationRecipe | None = None
    detection: DetectionRecipe | None = None
    seed: int = 0
    checkpoint: CheckpointRecipe = CheckpointRecipe()

    def __post_init__(self) -> None:
        """Check the values that a type does not settle; give the sections that the network has use for defaults.

        Raises:
            UsageError: Naming the key, its value and what is valid.
            InputError: What the model imports is missing, or raises.
        """
        if self.model.imported is None:
            reason = predicted_only(self.model.name)
            if reason is not None:
                raise UsageError(reason)
            info = model_info(self.model.name)
            for option in self.model.options:
                if option not in info.defaults:
                    raise unknown_name(f"argument of {self.model.name}", option, info.defaults)
            info.config_type(**{**info.defaults, **self.model.options})
        if self.model.weights is not None and self.model.initial_weights is None:
            raise UsageError(
                f"model.weights: {self.model.weights} chooses among the weights of a file: give "
                "model.initial_weights (--init FILE) as well."
            )
        _require("epochs", self.epochs, self.epochs >= 1, "at least 1")
        # Batch norm cannot learn from one image on a map of one pixel.
        _require("batch_size", self.batch_size, self.batch_size >= 2, "at least 2")
        _require("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")
        if self.model.input_size is not None:
            _require("model.input_size", self.model.input_size, min(self.model.input_size) >= 1, "at least 1 each")
        elif self.model.traits.input_size is None:
            raise UsageError(
                f"model.input_size: {self.model.name} does not say what it takes: give [height, width], or give the "
                "network an attribute input_size."
            )
        self._settle_sections(self.model.traits)
        smoothing = self.label_smoothing
        _require("label_smoothing", smoothing, 0 <= smoothing < 1, "from 0 to below 1")
        _check_data(self.data, detects=self.model.traits.detects)
        _check_optimizer(self.optimizer, self.epochs)
        _check_compute(self.compute, self.batch_size)
        if self.quantization is not None:
            _check_quantization(self.quantization, self.compute)
        if self.mixing is not None:
            _check_mixing(self.mixing)
        if self.ema is not None:
            _require("ema.decay", self.ema.decay, 0 <= self.ema.decay < 1, "from 0 to below 1")
        if self.detection is not None:
            _check_detection(self)
        if self.sparsity is not None:
            _check_sparsity(self.sparsity)
        if self.usage is not None:
            _check_usage(self.usage)
        if self.temperature is not None:
            _check_temperature(self.temperature)
        if self.exits is not None:
            _check_exits(self.exits, self.model.traits.exits)
        if self.distillation is not None:
            _require("distillation.weight", self.distillation.weight, self.distillation.weight >= 0, "at least 0")
            kd = self.distillation.temperature
            _require("distillation.temperature", kd, kd > 0, "above 0")
        accuracy = self.checkpoint.accuracy
        if accuracy is not None:
            _require("checkpoint.accuracy", accuracy, 0 < accuracy <= 1, "a fraction above 0 and at most 1")

    def _settle_sections(self, traits: Traits) -> None:
        uses = {
            "sparsity": traits.budget,
            "temperature": traits.budget,
            "exits": traits.exits > 1,
            "detection": traits.detects,
        }
        sections: dict[str, Callable[[], Any]] = {
            "sparsity": SparsityRecipe,
            "temperature": TemperatureRecipe,
            "exits": ExitsRecipe,
            "detection": DetectionRecipe,
        }
        if traits.detects:
            # As LAUDNet's detectors are trained.
            sections["sparsity"] = functools.partial(SparsityRecipe, weight=1.0, bounds_until=None)
            sections["temperature"] = functools.partial(TemperatureRecipe, start=0.1, end=0.1)
        for section, used in uses.items():
            if not used and getattr(self, section) is not None:
                why = {"exits": "has one exit", "detection": "finds no objects"}.get(section, "has no gates")
                own = ", ".join(name for name, used in uses.items() if used) or "none"
                raise UsageError(
                    f"{section}: {self.model.name} {why} and no use for this section: leave it out. Sections of its "
                    f"own: {own}."
                )
            if used and getattr(self, section) is None:
                object.__setattr__(self, section, sections[section]())
        if self.usage is not None and not traits.budget:
            raise UsageError(f"usage: {self.model.name} has no gates and no use for this section: leave it out.")
        if self.exits is not None:
            object.__setattr__(self, "exits", self._settled_exits(self.exits, traits.exits))

    def _settled_exits(self, exits: ExitsRecipe, count: int) -> ExitsRecipe:
        if self.loss is not None:
            if exits.weights is not None:
                raise UsageError(
                    "exits.weights: the loss function that is named weighs the exits itself: leave it out."
                )
            return exits
        if exits.weights is None:
            return dataclasses.replace(exits, weights=tuple(0.5 if i < count // 2 else 1.0 for i in range(count)))
        if len(exits.weights) != count:
            raise UsageError(
                f"exits.weights has {len(exits.weights)} entries and {self.model.name} has {count} exits: give one for "
                "each."
            )
        return exits

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that the network is trained at."""
        size = self.model.input_size or self.model.traits.input_size
        assert size is not None
        return size

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become inputs: as the network has it, unless the recipe says otherwise."""
        keys = ("mean", "std", "resize", "interpolation")
        said = {key: getattr(self.data, key) for key in keys if getattr(self.data, key) is not None}
        return dataclasses.replace(self.model.traits.preprocessing, **said)

    def for_classes(self, classes: int) -> Recipe:
        """Return a copy whose network has as many classes as the images, unless the recipe gives a number."""
        model = self.model
        known = default_options(model.name, model.imported)
        if _CLASSES not in known or _CLASSES in model.options or known[_CLASSES] == classes:
            return self
        options = {**model.options, _CLASSES: classes}
        return dataclasses.replace(self, model=dataclasses.replace(model, options=options))

    def with_changes(
        self,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        folder: str | None = None,
        initial_weights: str | None = None,
        weights: str | None = None,
    ) -> Recipe:
        """Return a copy with what a user may say beside the recipe; None leaves a value alone.

        Args:
            epochs: Passes over the training images.
            batch_size: Images per iteration.
            folder: Folder with the images; see :class:`DataRecipe`.
            initial_weights: Checkpoint to start from.
            weights: Which of its weights.

        Raises:
            UsageError: A value that is not valid.
        """
        recipe = self
        if epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=epochs)
        if batch_size is not None:
            recipe = dataclasses.replace(recipe, batch_size=batch_size)
        if folder is not None:
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, folder=folder))
        if initial_weights is not None or weights is not None:
            start = initial_weights or recipe.model.initial_weights
            model = dataclasses.replace(recipe.model, initial_weights=start, weights=weights)
            recipe = dataclasses.replace(recipe, model=model)
        return recipe

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON types; :meth:`from_dict` rebuilds it."""
        plain: dict[str, Any] = _plain(self)
        return plain

    @classmethod
    def from_dict(cls, value: Any, source: str = "recipe") -> Recipe:
        """Build a recipe from plain data.

        Args:
            value: Nested dicts, as YAML or JSON give them.
            source: What to call it in messages.

        Raises:
            UsageError: An unknown or missing key, or a value of the wrong type or range.
        """
        try:
            return _parse(cls, value, "")
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with dyndeploy."""
    return shipped_folder("models")


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with dyndeploy, sorted."""
    return tuple(sorted(path.stem for path in recipe_folder().glob("*.yaml")))


def recipes_by_network() -> dict[str, tuple[str, ...]]:
    """Return the names of the recipes that come with dyndeploy by the name of their network; none is checked."""
    found: dict[str, tuple[str, ...]] = {}
    for name in recipe_names():
        network = yaml.safe_load(files.read_text(recipe_folder() / f"{name}.yaml"))["model"]["name"]
        found[network] = (*found.get(network, ()), name)
    return found


def load_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Args:
        recipe: One of :func:`recipe_names`, or the path of a YAML file (ending in .yaml or .yml).

    Raises:
        UsageError: An unknown name, an unknown or missing key, or a bad value; the key is named.
        InputError: The file is missing or is not YAML.
    """
    path = Path(recipe)
    if path.suffix.lower() not in _SUFFIXES:
        name = os.fspath(recipe)
        if name not in recipe_names():
            raise unknown_name("recipe", name, recipe_names())
        path = recipe_folder() / f"{name}.yaml"
    try:
        if not path.exists():
            raise InputError(
                f"There is no recipe {path}. Check the path, or name one that comes with dyndeploy: "
                f"{', '.join(recipe_names())}."
            )
        content = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    return Recipe.from_dict(_beside(content, path.parent), path.name)


def _beside(content: Any, folder: Path) -> Any:
    """Recipe content whose imported files are given by absolute paths, so that it means the same everywhere."""
    if not isinstance(content, dict):
        return content
    model, loss, quantization = (content.get(key) for key in ("model", "loss", "quantization"))
    if isinstance(model, dict) and isinstance(model.get("import"), str):
        file = file_of(model["import"], folder)
        content = {**content, "model": {**model, "import": model["import"] if file is None else str(file)}}
    if isinstance(loss, str):
        source, colon, name = loss.rpartition(":")
        file = file_of(source, folder)
        content = {**content, "loss": loss if file is None else f"{file}{colon}{name}"}
    if isinstance(quantization, dict) and isinstance(quantization.get("table"), str):
        table = str(Path(os.path.abspath(folder)) / quantization["table"])
        content = {**content, "quantization": {**quantization, "table": table}}
    return content


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that :func:`load_recipe` reads back equal."""
    return yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)


def differences(one: Recipe, other: Recipe) -> tuple[str, ...]:
    """Return the dotted keys in which two recipes differ."""
    a, b = _flat(one.as_dict()), _flat(other.as_dict())
    return tuple(key for key in {**a, **b} if a.get(key) != b.get(key))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}{key}.") if isinstance(entry, dict) else {f"{prefix}{key}": entry}
    return flat


def _key(declared: dataclasses.Field[Any]) -> str:
    """Name of a field in files: some are words that Python keeps for itself."""
    key: str = declared.metadata.get("key", declared.name)
    return key


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {_key(each): _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _require(key: str, value: Any, valid: bool, wanted: str) -> None:
    if not valid:
        shown = list(value) if isinstance(value, tuple) else value
        raise UsageError(f"{key}: {shown} is not valid: give a value {wanted}.")


def _check_data(data: DataRecipe, *, detects: bool) -> None:
    if data.dataset not in DATASETS:
        raise unknown_name("dataset", data.dataset, DATASETS)
    known = ANNOTATED if detects else CLASSIFIED
    if data.dataset not in known:
        what = "detectors learn from images with objects" if detects else "classifiers learn from images with classes"
        raise UsageError(f"data.dataset: {data.dataset} does not fit the network: {what}: give {' or '.join(known)}.")
    owners = dict.fromkeys(("images", "annotations"), "coco")
    owners |= dict.fromkeys((*_SCENES, "contrast"), "digit_scenes")
    for key, dataset in owners.items():
        if getattr(data, key) is not None and data.dataset != dataset:
            raise UsageError(f"data.{key} is for the dataset {dataset}: leave it out.")
    for key in ("images", "annotations"):
        paths = getattr(data, key)
        if paths is not None:
            _require(f"data.{key}", paths, len(paths) <= 2, "of one or two paths within data.folder")
    if data.contrast is not None:
        _require("data.contrast", data.contrast, 0 <= data.contrast <= 127, "from 0 to 127")
    for key in _SCENES:
        pair = getattr(data, key)
        if pair is not None:
            rising = key == "scenes" or pair[0] <= pair[1]
            _require(f"data.{key}", pair, min(pair) >= 1 and rising, "of two numbers of at least 1, rising")
    if detects:
        for key in ("mean", "std", "resize", "interpolation"):
            if getattr(data, key) is not None:
                raise UsageError(
                    f"data.{key}: a detector says itself how images become its inputs: leave it out (their size is its "
                    "option size, model.options.size)."
                )
    if data.std is not None:
        _require("data.std", data.std, min(data.std) > 0, "above 0 for each channel")
    if data.resize is not None:
        _require("data.resize", data.resize, data.resize >= 1, "of at least 1 pixel")
    if data.interpolation is not None and data.interpolation not in INTERPOLATIONS:
        raise unknown_name("data.interpolation", data.interpolation, INTERPOLATIONS)
    _require("data.workers", data.workers, data.workers >= 0, "at least 0")
    _require("data.random_erasing", data.random_erasing, 0 <= data.random_erasing <= 1, "from 0 to 1")
    if data.rand_augment is not None or data.random_erasing:
        key = "data.rand_augment" if data.rand_augment is not None else "data.random_erasing"
        if data.dataset != "imagefolder" or not data.augment:
            raise UsageError(
                f"{key} adds to the augmentation of image folders: give dataset imagefolder and augment true."
            )


def _check_optimizer(optimizer: OptimizerRecipe, epochs: int) -> None:
    if optimizer.name not in OPTIMIZERS:
        raise unknown_name("optimizer.name", optimizer.name, OPTIMIZERS)
    if optimizer.decay not in DECAYS:
        raise unknown_name("optimizer.decay", optimizer.decay, DECAYS)
    foreign, value = ("betas", optimizer.betas) if optimizer.name == "sgd" else ("momentum", optimizer.momentum)
    if value is not None:
        raise UsageError(f"optimizer.{foreign} means nothing to {optimizer.name}: leave it out.")
    if optimizer.name != "sgd" and not optimizer.nesterov:
        raise UsageError(f"optimizer.nesterov means nothing to {optimizer.name}: leave it out.")
    _check_schedule(optimizer)
    _require("optimizer.lr", optimizer.lr, optimizer.lr > 0, "above 0")
    if optimizer.momentum is not None:
        # Nesterov's momentum is not defined at 0.
        _require("optimizer.momentum", optimizer.momentum, 0 < optimizer.momentum < 1, "between 0 and 1")
    if optimizer.betas is not None:
        _require("optimizer.betas", optimizer.betas, all(0 <= b < 1 for b in optimizer.betas), "from 0 to below 1")
    for key in ("weight_decay", "weight_decay_end", "lr_end"):
        number = getattr(optimizer, key)
        _require(f"optimizer.{key}", number, number is None or number >= 0, "at least 0")
    warmup = optimizer.warmup_epochs
    _require("optimizer.warmup_epochs", warmup, 0 <= warmup < epochs, f"at least 0 and below the {epochs} epochs")
    clip = optimizer.clip_norm
    _require("optimizer.clip_norm", clip, clip is None or clip > 0, "above 0")
    for pattern, layer in optimizer.layers.items():
        for key in ("lr_mult", "weight_decay_mult"):
            factor = getattr(layer, key)
            _require(f"optimizer.layers.{pattern}.{key}", factor, factor >= 0, "at least 0")


def _check_schedule(optimizer: OptimizerRecipe) -> None:
    if optimizer.schedule not in LR_SCHEDULES:
        raise unknown_name("optimizer.schedule", optimizer.schedule, LR_SCHEDULES)
    steps = optimizer.steps
    if (steps is not None) != (optimizer.schedule == "steps"):
        raise UsageError("optimizer.steps belongs to the schedule steps: give both, or neither.")
    if steps is not None:
        rising = all(one < other for one, other in itertools.pairwise(steps))
        _require("optimizer.steps", steps, steps[0] >= 1 and rising, "of rising numbers of epochs, from 1")
        factor, last = optimizer.step_factor, optimizer.lr_end
        _require("optimizer.step_factor", factor, 0 < factor < 1, "above 0 and below 1")
        _require("optimizer.lr_end", last, last == 0, "of the schedule cosine only")
    iterations, start = optimizer.warmup_iterations, optimizer.warmup_start
    _require("optimizer.warmup_iterations", iterations, iterations >= 0, "at least 0")
    _require("optimizer.warmup_start", start, 0 <= start <= 1, "from 0 to 1")
    if iterations and optimizer.warmup_epochs:
        raise UsageError("optimizer: give either warmup_epochs or warmup_iterations.")


def _check_compute(compute: ComputeRecipe, batch_size: int) -> None:
    if compute.precision not in PRECISIONS:
        raise unknown_name("compute.precision", compute.precision, PRECISIONS)
    if compute.batch_norm not in BATCH_NORMS:
        raise unknown_name("compute.batch_norm", compute.batch_norm, BATCH_NORMS)
    parts = compute.accumulation
    _require(
        "compute.accumulation",
        parts,
        parts >= 1 and batch_size % parts == 0,
        f"that divides the batch of {batch_size}",
    )


def _check_quantization(quantization: QuantizationRecipe, compute: ComputeRecipe) -> None:
    bits, images, momentum = quantization.weight_bits, quantization.images, quantization.momentum
    _require("quantization.weight_bits", bits, bits in WEIGHT_BITS, f"of {' or '.join(map(str, WEIGHT_BITS))}")
    if quantization.method is not None and quantization.method not in METHODS:
        raise unknown_name("quantization.method", quantization.method, METHODS)
    _require("quantization.images", images, images >= 1, "at least 1")
    _require("quantization.momentum", momentum, 0 < momentum <= 1, "above 0 and at most 1")
    after = quantization.freeze_observers_after
    _require("quantization.freeze_observers_after", after, after >= 0, "at least 0")
    for key, found, wanted, why in (
        ("batch_norm", compute.batch_norm, "frozen", "what deploys has the batch norms folded into its weights"),
        ("precision", compute.precision, "float32", "rounding to integers begins with float32"),
    ):
        if found != wanted:
            raise UsageError(f"quantization: {why}: set compute.{key} to {wanted} (it is {found}).")


def _check_mixing(mixing: MixingRecipe) -> None:
    for key in ("mixup", "cutmix"):
        _require(f"mixing.{key}", getattr(mixing, key), getattr(mixing, key) >= 0, "at least 0")
    if not (mixing.mixup or mixing.cutmix):
        raise UsageError("mixing: mixup and cutmix are both 0: leave the section out.")
    for key in ("probability", "switch_probability"):
        _require(f"mixing.{key}", getattr(mixing, key), 0 <= getattr(mixing, key) <= 1, "from 0 to 1")


def _check_detection(recipe: Recipe) -> None:
    detection = recipe.detection
    assert detection is not None
    if detection.losses not in LOSSES:
        raise unknown_name("detection.losses", detection.losses, LOSSES)
    _require("detection.flip", detection.flip, 0 <= detection.flip <= 1, "from 0 to 1")
    low, high = detection.scale
    _require("detection.scale", detection.scale, 0 < low <= high, "of two numbers above 0, the lower one first")
    for key in ("proposal_samples", "region_samples"):
        _require(f"detection.{key}", getattr(detection, key), getattr(detection, key) >= 1, "at least 1")
    for key in ("mixing", "distillation", "loss", "quantization", "label_smoothing"):
        if getattr(recipe, key):
            raise UsageError(f"{key}: detectors are not trained with that yet: leave it out.")
    if recipe.compute.batch_norm == "synchronized":
        raise UsageError("compute.batch_norm: the batch norms of a detector's backbone stay as they are: leave it out.")


def _check_sparsity(sparsity: SparsityRecipe) -> None:
    _require("sparsity.target", sparsity.target, 0 < sparsity.target <= 1, "above 0 and at most 1")
    _require("sparsity.weight", sparsity.weight, sparsity.weight >= 0, "at least 0")
    until = sparsity.bounds_until
    _require("sparsity.bounds_until", until, until is None or until > 0, "above 0")


def _check_usage(usage: UsageRecipe) -> None:
    kinds = {declared.name: getattr(usage, declared.name) for declared in dataclasses.fields(usage)}
    if not any(kinds.values()):
        raise UsageError(f"usage: no kind of decision is named: give {', '.join(kinds)}, or leave the section out.")
    for name, terms in kinds.items():
        for key in () if terms is None else ("target", "minimal"):
            share = getattr(terms, key)
            _require(f"usage.{name}.{key}", share, 0 <= share <= 1, "from 0 to 1")
        for key in () if terms is None else ("weight", "diverse", "entropy", "minimal_weight"):
            factor = getattr(terms, key)
            _require(f"usage.{name}.{key}", factor, factor >= 0, "at least 0")


def _check_temperature(temperature: TemperatureRecipe) -> None:
    if temperature.schedule not in SCHEDULES:
        raise unknown_name("temperature.schedule", temperature.schedule, SCHEDULES)
    _require("temperature.start", temperature.start, temperature.start > 0, "above 0")
    _require("temperature.end", temperature.end, temperature.end > 0, "above 0")
    _require("temperature.noise_until", temperature.noise_until, 0 <= temperature.noise_until <= 1, "from 0 to 1")


def _check_exits(exits: ExitsRecipe, count: int) -> None:
    if exits.best not in BEST_EXITS:
        raise unknown_name("exits.best", exits.best, BEST_EXITS)
    if exits.weights is not None:
        valid = min(exits.weights) >= 0 and max(exits.weights) > 0
        _require("exits.weights", exits.weights, valid, "of at least 0 for each exit, one of them above 0")
    if exits.thresholds is not None:
        count -= 1
        valid = len(exits.thresholds) == count and all(0 <= t <= 1 for t in exits.thresholds)
        _require("exits.thresholds", exits.thresholds, valid, f"from 0 to 1 for each of the first {count} exits")


def _parse(section: type[_Section], value: Any, prefix: str) -> _Section:
    """Build a dataclass from a dict, going down into the dataclasses among its fields."""
    where = prefix.rstrip(".") or "the file"
    if not isinstance(value, dict):
        raise UsageError(f"{where} is not a mapping of keys to values but {value!r}.")
    types = get_type_hints(section)
    known = {_key(f): f for f in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise unknown_name(f"key in {where}", str(key), known)
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(prefix + name for name in missing)}.")
    given = {key: _value(types[known[key].name], entry, prefix + key) for key, entry in value.items()}
    return section(**{known[key].name: entry for key, entry in given.items()})


def _value(declared: Any, value: Any, key: str) -> Any:
    choices = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    if value is None and type(None) in choices:
        return None
    wanted = next(choice for choice in choices if choice is not type(None))
    if dataclasses.is_dataclass(wanted):
        assert isinstance(wanted, type)
        return _parse(wanted, value, f"{key}.")
    if get_origin(wanted) is dict and dataclasses.is_dataclass(get_args(wanted)[1]):
        entries = _value(dict[str, Any], value, key)
        return {name: _parse(get_args(wanted)[1], entry, f"{key}.{name}.") for name, entry in entries.items()}
    convert, description = _TYPES[wanted]
    converted = convert(value)
    if converted is None:
        raise UsageError(f"{key}: {value!r} is not valid: give {description}.{_hint(wanted, value)}")
    return converted


def _hint(wanted: Any, value: Any) -> str:
    # YAML 1.1 reads 5e-5, without a decimal point, as text.
    if wanted is float and isinstance(value, str):
        with contextlib.suppress(InvalidOperation):
            return f" YAML takes {value} for text: write {Decimal(value):f}."
    return ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def _pair(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    first, second = _whole(value[0]), _whole(value[1])
    return None if first is None or second is None else (first, second)


def _numbers(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    numbers = [_number(entry) for entry in value]
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def _texts(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    texts = [_text(entry) for entry in value]
    return None if None in texts else tuple(text for text in texts if text is not None)


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, (list, tuple)) or not value:
        return None
    numbers = [_whole(entry) for entry in value]
    return None if None in numbers else tuple(number for number in numbers if number is not None)


def _number_pair(value: Any) -> tuple[float, float] | None:
    numbers = _numbers(value)
    return None if numbers is None or len(numbers) != 2 else (numbers[0], numbers[1])


def _channels(value: Any) -> tuple[float, float, float] | None:
    numbers = _numbers(value)
    return None if numbers is None or len(numbers) != 3 else (numbers[0], numbers[1], numbers[2])


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


# How the fields' types are read: a converter that returns None for what it does not take, and words for it.
_TYPES: Mapping[Any, tuple[Callable[[Any], Any], str]] = MappingProxyType(
    {
        str: (_text, "a text"),
        bool: (_flag, "true or false"),
        int: (_whole, "a whole number"),
        float: (_number, "a number"),
        tuple[int, int]: (_pair, "two whole numbers, [height, width]"),
        tuple[float, float]: (_number_pair, "two numbers"),
        tuple[float, float, float]: (_channels, "three numbers, for red, green and blue"),
        tuple[float, ...]: (_numbers, "a list of numbers"),
        tuple[int, ...]: (_whole_numbers, "a list of whole numbers"),
        tuple[str, ...]: (_texts, "a list of texts"),
        dict[str, Any]: (_mapping, "a mapping of keys to values"),
    }
)
