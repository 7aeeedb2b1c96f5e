"""Object detection: from an image to a detector's inputs, from its outputs to boxes and masks in the image.

Every step is that of mmdetection 2.21, whose detectors LAUDNet's are: resizing, normalising, padding, and the pasting
of masks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dyndeploy.data import ByteArray, FloatArray, LabelArray, rgb_pixels
from dyndeploy.errors import BundleError, UsageError, unknown_name
from dyndeploy.finite import require_finite
from dyndeploy.tasks.annotations import BoolArray
from dyndeploy.tasks.packages import required

if TYPE_CHECKING:
    from PIL import Image

Pixels = ByteArray | FloatArray
_Kind = TypeVar("_Kind", bound=Pixels)

DECODINGS = ("boxes", "queries")

_FAR = 1e9
"""Cost of pairing what must not be paired; above that of all other pairs together."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, the surest first.

    Attributes:
        boxes: Shape (n, 4), float32: x1, y1, x2, y2 in pixels of the image, from its top left corner.
        scores: Shape (n,), float32, in [0, 1], descending. Other orders are sorted; equal scores keep theirs.
        labels: Shape (n,), int64: index of each class, from 0.
        masks: Shape (n, height, width), bool: which pixels of the image belong to each; None where the detector finds
            boxes only.

    Raises:
        UsageError: Shapes that do not belong together.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: LabelArray
    masks: BoolArray | None = None

    def __post_init__(self) -> None:
        """Check the shapes and sort."""
        scores = np.asarray(self.scores, np.float32)
        boxes, labels = np.asarray(self.boxes, np.float32), np.asarray(self.labels, np.int64)
        masks = None if self.masks is None else np.asarray(self.masks, np.bool_)
        count = len(scores) if scores.ndim == 1 else -1
        boxes = boxes.reshape(0, 4) if count == 0 and boxes.size == 0 else boxes
        if boxes.shape != (count, 4) or labels.shape != (count,):
            raise UsageError(
                f"Detections need boxes (n, 4), scores (n,) and labels (n,), not {boxes.shape}, {scores.shape} and "
                f"{labels.shape}."
            )
        if masks is not None and (masks.ndim != 3 or len(masks) != count):
            raise UsageError(f"Masks of {count} detections need the shape ({count}, height, width), not {masks.shape}.")
        if np.any(scores[1:] > scores[:-1]):
            order = np.argsort(-scores, kind="stable")
            boxes, scores, labels = boxes[order], scores[order], labels[order]
            masks = None if masks is None else masks[order]
        for name, value in (("boxes", boxes), ("scores", scores), ("labels", labels), ("masks", masks)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def select(self, score: float = 0.0, labels: Collection[int] | None = None) -> Detections:
        """Return those with at least a score, and with one of some labels; None for all labels."""
        kept = self.scores >= score
        if labels is not None:
            kept &= np.isin(self.labels, np.asarray(sorted(labels), np.int64))
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks)

    def to_coco(self, category_ids: Sequence[int], image_id: int | None = None) -> list[dict[str, Any]]:
        """Write them as a list of COCO results, which ``json.dump`` takes.

        Args:
            category_ids: COCO's category of each label.
            image_id: COCO's number of the image; left out where None.

        Returns:
            Per detection ``category_id``, ``bbox`` (x, y, width, height), ``score``, and the ``segmentation`` (RLE)
            where there are masks.

        Raises:
            UsageError: A label without a category, or masks without pycocotools.
        """
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(category_ids):
            raise UsageError(
                f"The labels go from {self.labels.min()} to {self.labels.max()}, and there are {len(category_ids)} "
                "categories. Give one category for each of the network's classes."
            )
        corners, found = self.boxes.astype(np.float64), []
        for index, (box, score, label) in enumerate(zip(corners, self.scores, self.labels, strict=True)):
            size = (box[2:] - box[:2]).tolist()
            item: dict[str, Any] = {} if image_id is None else {"image_id": int(image_id)}
            item |= {"category_id": int(category_ids[label]), "bbox": [*box[:2].tolist(), *size], "score": float(score)}
            if self.masks is not None:
                item["segmentation"] = encode_mask(self.masks[index])
            found.append(item)
        return found


@dataclass(frozen=True)
class Placement:
    """Where an image lies in a detector's input: in its top left corner, resized.

    Attributes:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        resized: (height, width) in the input, in pixels.
    """

    height: int
    width: int
    resized: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input per pixel of the image, along x and along y; rounding makes them differ."""
        return self.resized[1] / self.width, self.resized[0] / self.height


@dataclass(frozen=True)
class DetectionTask:
    """How images become a detector's inputs and its outputs become :class:`Detections`.

    The defaults are those of COCO's detectors in mmdetection (configs/_base_/datasets/coco_detection.py).

    Attributes:
        size: (long, short): the longer side is at most ``long`` pixels after resizing and the shorter one at most
            ``short``; the aspect ratio is kept, and one of the two limits is met.
        divisor: Height and width of an input are multiples of it.
        mean: Mean per RGB channel, of values in [0, 255].
        std: Standard deviation per RGB channel, of values in [0, 255].
        masks: Whether the detector gives masks as well.
        rounding: Whether resized pixels are rounded to whole grey levels.
        decoding: What a network gives: ``"boxes"``, detections with their boxes; or ``"queries"``, classes and masks of
            queries, of which the host makes detections (:func:`dyndeploy.tasks.queries.decode_queries`).
        detections: Most detections of an image.
        mask_stride: Pixels of the input per cell of the queries' masks.
    """

    size: tuple[int, int] = (1333, 800)
    divisor: int = 32
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    masks: bool = False
    rounding: bool = True
    decoding: str = "boxes"
    detections: int = 100
    mask_stride: int = 4

    name = "detection"

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for a decoding that there is not."""
        if self.decoding not in DECODINGS:
            raise unknown_name("decoding", self.decoding, DECODINGS)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What a network gives that :meth:`decode` reads, in its order."""
        if self.decoding == "queries":
            return ("class_logits", "mask_logits")
        return ("boxes", "scores", "labels", "count", *(("masks",) if self.masks else ()))

    @property
    def host(self) -> tuple[str, ...]:
        """What is computed outside of the network, step by step, in words."""
        pixels = "8-bit pixels" if self.rounding else "pixels in FP32"
        before = (
            f"resize: keep the ratio, bilinear on {pixels} (OpenCV)",
            "normalise: subtract the mean, divide by the standard deviation, in FP32",
            *(("pad: zeros at the right and at the bottom",) if self.divisor > 1 else ()),
        )
        if self.decoding == "queries":
            return (
                *before,
                f"classes: softmax, the {self.detections} most probable ones of all queries, without that of no object",
                "masks: resize their logits to the input, cut off the padding, resize to the image; keep those above 0",
                "scores: times the mean probability of the mask's pixels",
                "boxes: around the masks",
            )
        masks = ("masks: sample each one bilinearly over its box, keep what is at least 0.5",) if self.masks else ()
        return (*before, "boxes: divide by the scale of the resize, clip to the image", *masks)

    def resized(
        self, height: int, width: int, size: tuple[int, int] | None = None, bucket: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            size: (long, short) instead of the task's.
            bucket: (height, width) of an input that must hold the result.

        Raises:
            UsageError: A size below 1.
        """
        wanted = self.size if size is None else size
        if not isinstance(wanted, (tuple, list)) or len(wanted) != 2:
            raise UsageError(f"size={wanted!r} is not valid: give the longest and the shortest side, (long, short).")
        long, short = wanted
        if min(height, width, long, short, *(bucket or ())) < 1:
            raise UsageError(
                f"An image of {height}x{width} cannot be resized to at most {long} and {short} pixels"
                f"{'' if bucket is None else f' in {bucket[0]}x{bucket[1]}'}: no side may be below 1."
            )
        factor = min(max(long, short) / max(height, width), min(long, short) / min(height, width))
        if bucket is not None:
            factor = min(factor, bucket[0] / height, bucket[1] / width)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the input that holds a resized image: the next multiples of the divisor."""
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    def bucket(
        self,
        height: int,
        width: int,
        buckets: Sequence[tuple[int, int]],
        size: tuple[int, int] | None = None,
    ) -> tuple[tuple[int, int], bool]:
        """Choose the input for an image among those that there are.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            buckets: (height, width) of the inputs, at least one.
            size: (long, short) instead of the task's.

        Returns:
            The smallest input that holds the resized image, and True; where none does, the one in which most of the
            image's pixels are left, and False.

        Raises:
            UsageError: A size below 1.
        """
        inside = self.resized(height, width, size)
        holds = [bucket for bucket in buckets if inside[0] <= bucket[0] and inside[1] <= bucket[1]]
        if holds:
            return min(holds, key=math.prod), True

        def left(bucket: tuple[int, int]) -> tuple[int, int]:
            return -math.prod(self.resized(height, width, size, bucket)), math.prod(bucket)

        return min(buckets, key=left), False

    def prepare(
        self,
        image: ByteArray | Image.Image,
        bucket: tuple[int, int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[dict[str, FloatArray], Placement]:
        """Turn one image into a detector's inputs: resized (:func:`resize`), normalised, padded with zeros.

        Args:
            image: 8-bit RGB, (height, width, 3); or what :func:`dyndeploy.data.rgb_pixels` makes that of.
            bucket: (height, width) of the input; None for the smallest that ``divisor`` allows.
            size: (long, short) instead of the task's.

        Returns:
            ``input`` (1, 3, height, width) and ``image_size`` (1, 2), which is (height, width) without the padding; and
            where the image lies in the input.

        Raises:
            UsageError: No such image, a size below 1, or OpenCV is not installed.
        """
        pixels = rgb_pixels(image)
        height, width = pixels.shape[:2]
        inside = self.resized(height, width, size, bucket)
        filled = np.zeros((1, 3, *(self.padded(*inside) if bucket is None else bucket)), np.float32)
        whole = pixels if self.rounding else pixels.astype(np.float32)
        self.normalise(resize(whole, inside), out=filled[0, :, : inside[0], : inside[1]])
        return {"input": filled, "image_size": np.asarray([inside], np.float32)}, Placement(height, width, inside)

    def normalise(self, pixels: Pixels, out: FloatArray | None = None) -> FloatArray:
        """Return ``(pixels - mean) / std`` in float32: (height, width, 3) becomes (3, height, width).

        Args:
            pixels: RGB, in [0, 255].
            out: Where to write the result; None for a new array.
        """
        values = np.empty((3, *pixels.shape[:2]), np.float32) if out is None else out
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            np.subtract(pixels[..., channel], mean, out=values[channel], dtype=np.float32)
            values[channel] /= np.float32(std)
        return values

    def decode(self, outputs: Mapping[str, npt.NDArray[Any]], placement: Placement, row: int = 0) -> Detections:
        """Turn a detector's outputs into detections in the image's own pixels.

        Args:
            outputs: ``boxes`` (n, k, 4) in pixels of the input, ``scores`` and ``labels`` (n, k), ``count`` (n,), how
                many of the k are detections; and ``masks`` (n, k, m, m), probabilities over each box, if the task has
                masks. With ``decoding="queries"`` those of :func:`~dyndeploy.tasks.queries.decode_queries`. Others are
                passed over.
            placement: Where the image lies in the input.
            row: Which of the n images.

        Raises:
            BundleError: An output is missing, or its shape does not fit the others.
            NotFiniteError: Something among the detections is NaN or infinite.
        """
        names = self.output_names
        absent = [name for name in names if name not in outputs]
        if absent:
            raise BundleError(f"A detector gives {', '.join(names)}; {', '.join(absent)} is missing. Export it again.")
        if self.decoding == "queries":
            from dyndeploy.tasks.queries import decode_queries

            return decode_queries(outputs, placement, row=row, limit=self.detections, stride=self.mask_stride)
        capacity = outputs["scores"].shape[-1]
        wanted = {"boxes": (capacity, 4), "scores": (capacity,), "labels": (capacity,), "count": ()}
        for name in names:
            shape = outputs[name].shape
            fits = len(shape) == 4 and shape[1] == capacity if name == "masks" else shape[1:] == wanted[name]
            if not fits or row >= shape[0]:
                raise BundleError(
                    f"The detector's output '{name}' has the shape {shape}, which does not fit its scores "
                    f"{outputs['scores'].shape}. Export it again."
                )
        count = int(outputs["count"][row])
        if not 0 <= count <= capacity:
            raise BundleError(f"The detector's output 'count' says {count} of {capacity} detections. Export it again.")
        found = {name: outputs[name][row, :count] for name in names if name != "count"}
        require_finite(found, "Verify the bundle.")
        scale = np.asarray(placement.scale * 2, np.float32)
        limit = np.asarray((placement.width, placement.height) * 2, np.float32)
        boxes = np.clip(found["boxes"].astype(np.float32) / scale, 0, limit)
        masks = None
        if self.masks:
            masks = paste_masks(found["masks"].astype(np.float32), boxes, placement.height, placement.width)
        return Detections(boxes, found["scores"], found["labels"], masks)


def resize(pixels: _Kind, size: tuple[int, int]) -> _Kind:
    """Resize pixels (h, w, 3) to (height, width) bilinearly, without antialiasing, as OpenCV does.

    8-bit pixels are rounded to whole grey levels, those of float32 are not.

    Raises:
        UsageError: OpenCV is not installed.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    cv2 = required("cv2", "Resizing images for a detector needs OpenCV")
    height, width = size
    resized: _Kind = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_LINEAR)
    return resized


def paste_masks(
    probabilities: FloatArray, boxes: FloatArray, height: int, width: int, threshold: float = 0.5
) -> BoolArray:
    """Spread masks that were found over boxes onto the image.

    The value at the centre of each of the image's pixels is sampled bilinearly, with zeros outside the mask, as
    ``torch.nn.functional.grid_sample(..., align_corners=False)`` does. Only the pixels around each box are computed,
    one mask at a time.

    Args:
        probabilities: Shape (n, m, m), float32.
        boxes: Shape (n, 4), x1, y1, x2, y2 in pixels of the image.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        threshold: From this value on a pixel belongs to the mask.

    Returns:
        Shape (n, height, width).
    """
    pasted = np.zeros((len(boxes), height, width), np.bool_)
    for mask, values, box in zip(pasted, probabilities, boxes.astype(np.float32), strict=True):
        x1, y1, x2, y2 = box
        columns = _window(x1, x2, width)
        rows = _window(y1, y2, height)
        across = _sampling(columns, x1, x2, values.shape[1])
        down = _sampling(rows, y1, y2, values.shape[0])
        mask[rows.start : rows.stop, columns.start : columns.stop] = down @ values @ across.T >= threshold
    return pasted


def encode_mask(mask: BoolArray) -> dict[str, Any]:
    """Return a mask (height, width) as COCO's run-length encoding, with its counts as text, which JSON can hold.

    Raises:
        UsageError: pycocotools is not installed.
    """
    coco = required("pycocotools.mask", "Writing masks as COCO does needs pycocotools")
    encoded: dict[str, Any] = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: Mapping[str, Any]) -> BoolArray:
    """Return the mask (height, width) that :func:`encode_mask` made a run-length encoding of.

    Raises:
        UsageError: pycocotools is not installed.
    """
    coco = required("pycocotools.mask", "Reading masks as COCO writes them needs pycocotools")
    return np.asarray(coco.decode(dict(encoded)), np.bool_)


@dataclass(frozen=True)
class DetectionDifference:
    """How two sets of detections in one image differ.

    Attributes:
        matched: Number of pairs.
        missed: Expected detections without a partner.
        extra: Found detections without a partner.
        excused: Detections without a partner, of either set, that rounding of a score at the cut explains.
        box: Largest difference of a coordinate in a pair, in pixels; 0 without pairs.
        score: Largest difference of scores in a pair; 0 without pairs.
        mask_iou: Least intersection over union of the masks of a pair, 1 where they differ in a single pixel; None
            where a set has no masks or nothing was matched.
    """

    matched: int
    missed: int
    extra: int
    excused: int
    box: float
    score: float
    mask_iou: float | None


def compare(
    found: Detections,
    expected: Detections,
    *,
    iou: float = 0.5,
    box: float = np.inf,
    score: float = np.inf,
    masks: float = 0.0,
    threshold: float | None = None,
    limit: int | None = None,
    margin: float = 1e-4,
) -> DetectionDifference:
    """Match two sets of detections one to one.

    Partners have the same label, and boxes that overlap by ``iou`` or lie within a pixel of each other. Of all ways to
    match, one with the most pairs and then the nearest ones is taken, so the order of equal scores plays no part.

    What has no partner is excused where a score that rounds another way explains it: its score lies within ``margin``
    of ``threshold``; or both sets are full, it lies within ``margin`` of the least score of both, and one such
    detection of the other set took its place.

    Args:
        found: What was detected.
        expected: What should have been.
        iou: Least intersection over union of the boxes of a pair.
        box: Largest difference of a coordinate of a pair, in pixels.
        score: Largest difference of the scores of a pair.
        masks: Least intersection over union of the masks of a pair; below it, what was matched has no partner.
        threshold: Score above which the detector gives detections; None excuses nothing for it.
        limit: Number of detections of a full set; None excuses nothing for it.
        margin: How far rounding may move a score.
    """
    from scipy.optimize import linear_sum_assignment

    apart = np.abs(expected.boxes[:, None] - found.boxes[None]).max(-1, initial=0)
    scores = np.abs(expected.scores[:, None] - found.scores[None])
    allowed = (expected.labels[:, None] == found.labels[None]) & (
        (box_iou(expected.boxes, found.boxes) >= iou) | (apart < 1)
    )
    allowed &= (apart <= box) & (scores <= score)
    rows, columns = linear_sum_assignment(np.where(allowed, apart.astype(np.float64) + 10 * scores, _FAR))
    pairs = allowed[rows, columns]
    rows, columns = rows[pairs], columns[pairs]
    overlaps = None
    if found.masks is not None and expected.masks is not None:
        overlaps = np.asarray(
            [_mask_overlap(expected.masks[row], found.masks[at]) for row, at in zip(rows, columns, strict=True)]
        )
        rows, columns, overlaps = (values[overlaps >= masks] for values in (rows, columns, overlaps))
    missed, extra = (np.delete(detections.scores, taken) for detections, taken in ((expected, rows), (found, columns)))
    excused = 0
    if threshold is not None:
        excused = len(missed) + len(extra)
        missed, extra = (alone[np.abs(alone - threshold) > margin] for alone in (missed, extra))
        excused -= len(missed) + len(extra)
    swapped = 0
    if len(found) == len(expected) == limit:
        cut = min(found.scores[-1], expected.scores[-1]) + margin
        swapped = min(int((missed <= cut).sum()), int((extra <= cut).sum()))
    return DetectionDifference(
        matched=len(rows),
        missed=len(missed) - swapped,
        extra=len(extra) - swapped,
        excused=excused + 2 * swapped,
        box=float(apart[rows, columns].max(initial=0)),
        score=float(scores[rows, columns].max(initial=0)),
        mask_iou=float(overlaps.min()) if overlaps is not None and len(overlaps) else None,
    )


def box_iou(one: FloatArray, other: FloatArray) -> FloatArray:
    """Intersection over union of boxes (n, 4) with boxes (m, 4): shape (n, m); 0 for boxes without area."""
    corner = np.maximum(one[:, None, :2], other[None, :, :2])
    far = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(far - corner, 0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    overlap: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def mask_iou(one: BoolArray, other: BoolArray) -> float:
    """Intersection over union of two masks (height, width); 1 where both are empty, 0 where their sizes differ."""
    if one.shape != other.shape:
        return 0.0
    union = int(np.logical_or(one, other).sum())
    return int(np.logical_and(one, other).sum()) / union if union else 1.0


def _mask_overlap(one: BoolArray, other: BoolArray) -> float:
    """Their IoU; 1 where at most one pixel differs: rounding decides one at the rim, much of a tiny mask."""
    if one.shape == other.shape and int((one != other).sum()) <= 1:
        return 1.0
    return mask_iou(one, other)


def _window(low: np.float32, high: np.float32, side: int) -> range:
    """The pixels along one axis that a box may touch."""
    return range(max(int(np.floor(low)) - 1, 0), max(0, min(int(np.ceil(high)) + 1, side)))


def _sampling(pixels: range, low: np.float32, high: np.float32, cells: int) -> FloatArray:
    """Weights (pixels, cells) with which a mask's cells between ``low`` and ``high`` give each pixel's value."""
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        grid = (centres - low) / (high - low) * np.float32(2) - np.float32(1)
    # mmdetection takes the middle of the mask over boxes without extent.
    grid[np.isinf(grid)] = 0
    position = ((grid + np.float32(1)) * np.float32(cells) - np.float32(1)) / np.float32(2)
    weights = np.float32(1) - np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    return np.nan_to_num(np.maximum(weights, np.float32(0)))
