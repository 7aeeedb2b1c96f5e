"""What export does for detectors only: sizes of inputs, reference images, and what a bundle says of boxes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dyndeploy.blocks.boxes import torchvision
from dyndeploy.bundle import IMAGE_SIZE, INPUT, BucketInfo, DetectionInfo, PartInfo
from dyndeploy.data import DIGITS, ByteArray, read_image, sample_photographs, with_folders
from dyndeploy.errors import UsageError
from dyndeploy.files import shown
from dyndeploy.graphs.passes.boxes import lacking
from dyndeploy.precisions import precision_of
from dyndeploy.targets import Target
from dyndeploy.tasks.detection import DetectionTask

if TYPE_CHECKING:
    from dyndeploy.export.subject import Subject

SAMPLES = 2
"""Reference images of a detector at batch size 1: each costs several passes at full size."""

COCO = "coco"
"""Stands for the names of COCO's 80 classes wherever a file of names can be given."""


def check_size(name: str, task: DetectionTask, size: tuple[int, int]) -> None:
    """Raise ``UsageError`` unless a detector takes inputs of (H, W); the message has the next size that it takes."""
    padded = task.padded(*size)
    if size != padded:
        raise UsageError(
            f"Input size {size[0]}x{size[1]} does not fit {name}, whose pyramid halves maps: both sides must be "
            f"multiples of {task.divisor}. The next one is {padded[0]}x{padded[1]}."
        )


def check_target(name: str, target: Target, precision: str) -> None:
    """Raise ``UsageError`` unless detectors can be exported for a target in a precision."""
    lacks = lacking(target.runtime)
    if lacks:
        raise UsageError(f"{name} cannot be exported for {target.name}. {lacks} Use --target cpu.")
    if precision_of(precision).detections is None:
        raise UsageError(
            f"{name} cannot be exported in {precision}: how far that moves boxes was never measured in this release. "
            "Use fp32, or fp16 for a GPU."
        )


def inputs_of(size: tuple[int, int], batch: int) -> dict[str, Tensor]:
    """Example inputs of a detector: images that fill inputs of (H, W)."""
    return {
        INPUT: torch.zeros(batch, 3, *size),
        IMAGE_SIZE: torch.tensor([size] * batch, dtype=torch.float32),
    }


def reference_inputs(
    data: str | os.PathLike[str] | None, task: DetectionTask, size: tuple[int, int], batch: int
) -> tuple[dict[str, Tensor], str]:
    """Return whole batches of images as inputs (n, ...), and where they come from.

    Args:
        data: As :attr:`dyndeploy.export.ExportSettings.data`.
        task: How images become inputs.
        size: (H, W) of the inputs.
        batch: Images per run.
    """
    wanted = -(-SAMPLES // batch) * batch
    pixels, source = _images(data, size, wanted)
    feeds = [task.prepare(image, bucket=size)[0] for image in pixels]
    stacked = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in stacked.items()}, source


def _images(data: str | os.PathLike[str] | None, size: tuple[int, int], wanted: int) -> tuple[list[ByteArray], str]:
    if data is not None and os.fspath(data) == DIGITS:
        from dyndeploy.tasks.scenes import digit_scenes

        scenes = digit_scenes(wanted, size=size)
        return [scenes[index].image for index in range(wanted)], f"{wanted} scenes of scikit-learn's digits"
    if data is None:
        paths, source = list(sample_photographs()), "scikit-learn's sample photographs china.jpg and flower.jpg"
    else:
        paths = list(with_folders([data]))[:wanted]
        source = f"{len(paths)} images of the folder {shown(os.path.basename(os.fspath(data)))}"
    pixels = [read_image(path) for path in paths[:wanted]]
    distinct = len(pixels)
    copies = list(_copies(pixels, wanted - distinct))
    if copies:
        source += f", {len(copies)} of {wanted} mirrored copies"
    return [*pixels, *copies], source


def _copies(pixels: Sequence[ByteArray], count: int) -> Iterator[ByteArray]:
    """Mirrored and shifted copies: real image content with masks of their own."""
    for index in range(count):
        repeat, source = divmod(index, len(pixels))
        yield np.ascontiguousarray(np.roll(pixels[source], 13 * repeat, axis=1)[:, :: 1 if repeat % 2 else -1])


def detection_info(
    subject: Subject,
    names: Sequence[str],
    buckets: Sequence[BucketInfo],
    categories: Sequence[int],
    parts: Sequence[PartInfo],
    static_parts: Sequence[PartInfo],
    target: Target,
) -> DetectionInfo:
    """Return what a bundle says of a detector.

    Args:
        subject: The detector.
        names: Of its classes, empty where they are not known.
        buckets: Sizes that it is exported at, this bundle's first.
        categories: COCO's of the classes.
        parts: What the target runs in the place of one graph.
        static_parts: The same of the static twin.
        target: It is exported for.
    """
    task, config = subject.task, _config(subject)
    assert task is not None
    return DetectionInfo(
        classes=tuple(names),
        category_ids=tuple(categories),
        size=task.size,
        divisor=task.divisor,
        mean=task.mean,
        std=task.std,
        detections=config.detections,
        score_threshold=getattr(config, "score_threshold", 0.0),
        masks=task.masks,
        rounding=task.rounding,
        decoding=task.decoding,
        mask_stride=task.mask_stride,
        host=task.host,
        buckets=tuple(buckets),
        parts=tuple(parts),
        static_parts=tuple(static_parts),
        places=tuple(f"{name}: {place.runs}; {place.why}" for name, place in target.detection.items()) if parts else (),
    )


def classes_of(subject: Subject) -> int:
    """Return how many classes a detector tells apart."""
    return int(_config(subject).num_classes)


def _config(subject: Subject) -> Any:
    return subject.network.config


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """Return the categories of classes: COCO's own where their names are COCO's, else counted from 1."""
    if len(names) == 80:
        coco, ids = coco_classes()
        if tuple(names) == coco:
            return ids
    return tuple(range(1, len(names) + 1))


def coco_classes() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of COCO's 80 classes and their category numbers; raises ``UsageError`` without torchvision."""
    torchvision()
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    categories = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    known = {number: name for number, name in enumerate(categories) if name not in ("__background__", "N/A")}
    return tuple(known.values()), tuple(known)
