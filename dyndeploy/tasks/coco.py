"""COCO: annotation files checked before anything is read from them, and average precision as COCO measures it."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.data import read_image
from dyndeploy.errors import InputError, UsageError
from dyndeploy.files import read_json
from dyndeploy.tasks.annotations import AnnotatedImage, AnnotatedImages, BoolArray
from dyndeploy.tasks.detection import Detections
from dyndeploy.tasks.packages import required

_PARTS = ("images", "annotations", "categories")

_NAMED = 5
"""So many are named where many are meant."""

_ROUNDING = 0.5
"""A box that reaches out of its image by less, in pixels, was rounded: clipping it is not worth a note."""

_LARGEST = 1e5
"""No coordinate may be larger, in pixels: pycocotools draws the outlines of polygons pixel by pixel."""


_OVERLAPS: Mapping[str, Any] = MappingProxyType({"ap": slice(None), "ap50": 0, "ap75": 5})
"""Places of COCO's intersections over union of 0.5, 0.55, ... 0.95."""


@dataclass(frozen=True)
class CocoImage:
    """An image that an annotation file lists.

    Attributes:
        image_id: COCO's number of it.
        path: The file.
        height: In pixels.
        width: In pixels.
    """

    image_id: int
    path: Path
    height: int
    width: int


class CocoDataset:
    """A folder of images and a COCO annotation file (instances), all of it checked when it is opened.

    A map-style dataset. Its objects are those that can be trained on: boxes are clipped to their images, and what is
    left without area is left out. :meth:`coco` gives the annotations unchanged, as COCO's own evaluation takes them.

    Args:
        folder: Holds the images; the file's ``file_name`` is looked for in it.
        annotations: The JSON file.
        classes: A network's classes, in the order of its labels, to be found among the file's categories by name; None
            for the file's categories in the order of their numbers.
        masks: Decode the masks of objects as well; needs pycocotools.

    Attributes:
        classes: Name of each class.
        category_ids: COCO's category of each class.
        images: What the file lists, in its order.
        notes: Sentences about what is odd about the annotations and what was done about it; empty where nothing is.

    Raises:
        InputError: The file is no COCO annotation file or contradicts itself, images are missing, or its categories are
            not the network's classes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        classes: Sequence[str] | None = None,
        masks: bool = False,
    ) -> None:
        self._file, self._masks = Path(annotations), masks
        content = _content(self._file)
        used = Counter(item.get("category_id") for item in content["annotations"] if isinstance(item, dict))
        notes: list[str] = []
        self.category_ids, self.classes = self._categories(content["categories"], classes, used, notes)
        self.images = self._listed(content["images"], Path(folder))
        self._objects: list[list[_Object]] = [[] for _ in self.images]
        self._raw: list[list[dict[str, Any]]] = [[] for _ in self.images]
        self._sort(content["annotations"], notes)
        self.notes = tuple(notes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Return one image with its objects.

        Raises:
            InputError: The image cannot be read, or is not of the size that the annotations say.
            UsageError: Masks are wanted, and pycocotools is not installed.
        """
        listed, objects = self.images[index], self._objects[index]
        image = read_image(listed.path)
        if image.shape[:2] != (listed.height, listed.width):
            turned = " Its EXIF orientation turns it." if image.shape[1::-1] == (listed.height, listed.width) else ""
            raise InputError(
                f"{listed.path} has {image.shape[0]}x{image.shape[1]} pixels (height x width), and {self._file} says "
                f"{listed.height}x{listed.width}.{turned} Boxes would be misplaced. Give the images that were "
                "annotated."
            )
        masks = None
        if self._masks:
            decoded = [self._mask(item, listed) for item in objects]
            masks = np.stack(decoded) if decoded else np.zeros((0, listed.height, listed.width), np.bool_)
        return AnnotatedImage(
            image=image,
            boxes=np.array([item.box for item in objects], np.float32).reshape(-1, 4),
            labels=np.array([item.label for item in objects], np.int64),
            crowd=np.array([item.crowd for item in objects], np.bool_),
            masks=masks,
            image_id=listed.image_id,
        )

    def coco(self, indices: Sequence[int]) -> dict[str, Any]:
        """Content of the annotation file for some of the images, unchanged but for the annotations' own numbers."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in indices:
            listed = self.images[index]
            images.append(
                {
                    "id": listed.image_id,
                    "file_name": listed.path.name,
                    "height": listed.height,
                    "width": listed.width,
                }
            )
            annotations += [{**item, "id": len(annotations) + place + 1} for place, item in enumerate(self._raw[index])]
        categories = zip(self.category_ids, self.classes, strict=True)
        return {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in categories],
        }

    def _categories(
        self,
        items: list[Any],
        classes: Sequence[str] | None,
        used: Mapping[Any, int],
        notes: list[str],
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        found: dict[int, str] = {}
        for place, item in enumerate(items):
            number = self._whole(item, "categories", place, "id")
            if number in found:
                raise self._fault(f"two categories have the number {number}")
            found[number] = self._text(item, "categories", place, "name")
        if not found:
            raise self._fault("it lists no categories")
        numbers = sorted(found)
        if classes is None:
            return tuple(numbers), tuple(found[number] for number in numbers)
        idle = [number for number in numbers if found[number] not in classes and not used.get(number)]
        rest = [number for number in numbers if number not in idle]
        names = [found[number] for number in rest]
        repeated = [name for name, times in Counter(names).items() if times > 1]
        if repeated or sorted(names) != sorted(classes):
            missing, unknown = _without(classes, names), _without(names, classes)
            says = (("missing", missing), ("unknown to the network", unknown), ("named twice", repeated))
            raise InputError(
                f"The categories of {self._file} are not the network's classes: "
                f"{'; '.join(f'{word}: {_few(some)}' for word, some in says if some)}. The network's {len(classes)}: "
                f"{_few(classes)}; the file's {len(found)}: {_few([found[number] for number in numbers])}."
            )
        if idle:
            notes.append(
                f"Categories without annotations that the network does not know: {_few([found[n] for n in idle])}."
            )
        by_name = dict(zip(names, rest, strict=True))
        return tuple(by_name[name] for name in classes), tuple(classes)

    def _listed(self, items: list[Any], folder: Path) -> tuple[CocoImage, ...]:
        listed: dict[int, CocoImage] = {}
        for place, item in enumerate(items):
            number = self._whole(item, "images", place, "id")
            height, width = (self._whole(item, "images", place, key) for key in ("height", "width"))
            if number in listed:
                raise self._fault(f"two images have the number {number}")
            if min(height, width) < 1:
                raise self._fault(f"images[{place}] is {height}x{width} pixels large")
            listed[number] = CocoImage(number, folder / self._text(item, "images", place, "file_name"), height, width)
        if not listed:
            raise self._fault("it lists no images")
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}. Give the folder that holds the images of {self._file}.")
        absent = [image.path.name for image in listed.values() if not image.path.is_file()]
        if absent:
            raise InputError(
                f"{len(absent)} of the {len(listed)} images of {self._file} are not in {folder}: {_few(absent)}. Give "
                "the folder that holds them."
            )
        return tuple(listed.values())

    def _sort(self, items: list[Any], notes: list[str]) -> None:
        """Check the annotations and give them to their images."""
        places = {image.image_id: place for place, image in enumerate(self.images)}
        labels = {number: label for label, number in enumerate(self.category_ids)}
        counts: Counter[str] = Counter()
        for place, item in enumerate(items):
            number = self._whole(item, "annotations", place, "image_id")
            category = self._whole(item, "annotations", place, "category_id")
            if category not in labels:
                raise self._fault(f"annotations[{place}] has the category {category}, which the file does not list")
            x, y, width, height = self._box(item, place)
            if number not in places:
                counts["elsewhere"] += 1
                continue
            image = self.images[places[number]]
            box = (max(x, 0.0), max(y, 0.0), min(x + width, float(image.width)), min(y + height, float(image.height)))
            crowd = item.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise self._fault(f"annotations[{place}].iscrowd must be 0 or 1, not {_shown(crowd)}")
            area = item.get("area")
            if not _is_number(area):
                counts["area"] += 1
                area = width * height
            segmentation = item.get("segmentation")
            fault = _segmentation_fault(segmentation, image)
            if fault and self._masks:
                raise self._fault(f"annotations[{place}].segmentation {fault}, and masks are wanted")
            counts["malformed"] += bool(fault and segmentation)
            raw = {"image_id": number, "category_id": category, "bbox": item["bbox"], "area": area}
            raw |= {"iscrowd": int(crowd)} if fault else {"iscrowd": int(crowd), "segmentation": segmentation}
            self._raw[places[number]].append(raw)
            counts["crowd"] += int(crowd)
            if box[2] <= box[0] or box[3] <= box[1]:
                counts["empty"] += 1
                continue
            out = max(-x, -y, x + width - image.width, y + height - image.height)
            counts["outside"] += out > _ROUNDING
            self._objects[places[number]].append(_Object(box, labels[category], bool(crowd), segmentation))
        counts["bare"] = sum(not raw for raw in self._raw)
        sentences = {
            "elsewhere": "Annotations of images that the file does not list, left out: {}.",
            "area": "Annotations that do not say their area, so that the box's counts as small, medium or large: {}.",
            "crowd": "Crowds, which are not trained on, and where nothing that is found counts: {}.",
            "malformed": "Annotations whose masks are none, so that masks are not measured: {}.",
            "empty": "Boxes without area within their image, which are not trained on and cannot be found: {}.",
            "outside": "Boxes that reach out of their image, clipped to it: {}.",
            "bare": "Images without annotations: {}.",
        }
        notes += [text.format(counts[name]) for name, text in sentences.items() if counts[name]]

    def _box(self, item: dict[str, Any], place: int) -> tuple[float, float, float, float]:
        box = item.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            what = (
                "is missing"
                if box is None
                else f"must be four numbers x, y, width, height, below {_LARGEST:,.0f} each, not {_shown(box)}"
            )
            raise self._fault(f"annotations[{place}].bbox {what}")
        x, y, width, height = map(float, box)
        return x, y, width, height

    def _mask(self, item: _Object, image: CocoImage) -> BoolArray:
        coco = required("pycocotools.mask", "Masks of COCO annotations need pycocotools")
        runs = item.segmentation
        if isinstance(runs, list):
            runs = coco.merge(coco.frPyObjects(runs, image.height, image.width))
        elif isinstance(runs["counts"], list):
            runs = coco.frPyObjects(runs, image.height, image.width)
        mask: BoolArray = np.asarray(coco.decode(runs), np.bool_)
        return mask

    def _fault(self, what: str) -> InputError:
        return InputError(f"{self._file} is not a sound COCO annotation file: {what}. Mend the file, or give another.")

    def _field(self, item: Any, part: str, place: int, key: str) -> Any:
        if not isinstance(item, dict):
            raise self._fault(f"{part}[{place}] must be an object, not {_shown(item)}")
        if key not in item:
            raise self._fault(f"{part}[{place}].{key} is missing")
        return item[key]

    def _whole(self, item: Any, part: str, place: int, key: str) -> int:
        value = self._field(item, part, place, key)
        if type(value) is not int:
            raise self._fault(f"{part}[{place}].{key} must be a whole number, not {_shown(value)}")
        return value

    def _text(self, item: Any, part: str, place: int, key: str) -> str:
        value = self._field(item, part, place, key)
        if not isinstance(value, str) or not value:
            raise self._fault(f"{part}[{place}].{key} must be a text, not {_shown(value)}")
        return value


@dataclass(frozen=True)
class _Object:
    """An annotation that can be trained on, its box as corners."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    segmentation: Any


@dataclass(frozen=True)
class ClassPrecision:
    """Average precision of one class, in [0, 1]; None where no image shows it.

    Attributes:
        name: Of the class.
        ap: Mean over intersections over union of 0.5, 0.55, ... 0.95.
        ap50: At an intersection over union of 0.5.
        ap75: At an intersection over union of 0.75.
        objects: Number of annotated objects of the class, crowds excepted.
    """

    name: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    objects: int


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's average precisions, in [0, 1], with at most 100 detections per image; None where there is no such object.

    Attributes:
        ap: Mean over classes and intersections over union of 0.5, 0.55, ... 0.95.
        ap50: At an intersection over union of 0.5.
        ap75: At an intersection over union of 0.75.
        small: As ``ap``, of objects below 32x32 pixels.
        medium: As ``ap``, of those up to 96x96 pixels.
        large: As ``ap``, of larger ones.
        classes: Each class.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    classes: tuple[ClassPrecision, ...]


@dataclass(frozen=True)
class CocoMetrics:
    """What detections are worth.

    Attributes:
        boxes: By the intersection over union of boxes.
        masks: By that of masks; None where there are none.
        images: Number of images.
        detections: Number of detections.
    """

    boxes: AveragePrecision
    masks: AveragePrecision | None
    images: int
    detections: int


class CocoMeasure:
    """Collects what was detected, image by image, and measures it as COCO does, with pycocotools.

    Masks are kept as run lengths, so that a generator of detections needs little memory.

    Args:
        dataset: The images with what is in them.
    """

    def __init__(self, dataset: AnnotatedImages) -> None:
        self._dataset = dataset
        self._indices: list[int] = []
        self._results: list[dict[str, Any]] = []
        self._masked = True

    def add(self, index: int, detections: Detections) -> None:
        """Take what was found in one of the images, each of which is taken once.

        Raises:
            UsageError: Labels beyond the classes, or pycocotools is not installed.
        """
        self.take(index, detections.to_coco(self._dataset.category_ids), masked=detections.masks is not None)

    def take(self, index: int, results: Sequence[Mapping[str, Any]], *, masked: bool) -> None:
        """Take what :meth:`~dyndeploy.tasks.detection.Detections.to_coco` wrote of an image, without its number.

        Args:
            index: The image.
            results: Of it.
            masked: Whether the detector finds masks.
        """
        # COCO's number of the image is told by the annotations, which are read at the end.
        self._results += [{**item, "place": len(self._indices)} for item in results]
        self._indices.append(index)
        self._masked = self._masked and masked

    def metrics(self) -> CocoMetrics:
        """Average precisions of the boxes, and of the masks where the detections have them and all annotations do.

        Only the images that were taken count. Raises ``UsageError`` if pycocotools is not installed.
        """
        truth = self._dataset.coco(self._indices)
        numbers = [image["id"] for image in truth["images"]]
        results = [
            {"image_id": numbers[item["place"]], **{key: value for key, value in item.items() if key != "place"}}
            for item in self._results
        ]
        masked = self._masked and all(item.get("segmentation") for item in truth["annotations"])
        measured = [
            _average_precision(truth, results, kind, self._dataset)
            for kind in (("bbox", "segm") if masked and numbers else ("bbox",))
        ]
        return CocoMetrics(measured[0], measured[1] if len(measured) > 1 else None, len(numbers), len(results))


def coco_metrics(
    found: Iterable[Detections], dataset: AnnotatedImages, indices: Sequence[int] | None = None
) -> CocoMetrics:
    """Measure detections of all images, or of some, as :class:`CocoMeasure` does.

    Args:
        found: Detections of each image, in order. They are taken one after the other.
        dataset: The images with what is in them.
        indices: Which images; None for all.

    Raises:
        UsageError: There are more or fewer detections than images, labels beyond the classes, or pycocotools is not
            installed.
    """
    chosen = range(len(dataset)) if indices is None else indices
    measure, count = CocoMeasure(dataset), 0
    for detections in found:
        if count == len(chosen):
            raise UsageError(f"There are detections of more images than the {count} to be measured.")
        measure.add(chosen[count], detections)
        count += 1
    if count < len(chosen):
        raise UsageError(f"There are detections of {count} images, and {len(chosen)} are to be measured.")
    return measure.metrics()


def _average_precision(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: str, dataset: AnnotatedImages
) -> AveragePrecision:
    need = "Average precision needs pycocotools"
    coco, evaluation = required("pycocotools.coco", need), required("pycocotools.cocoeval", need)
    areas = required("pycocotools.mask", need)
    annotated = [dict(item) for item in truth["annotations"]]
    detected = []
    for place, item in enumerate(results):
        area = float(areas.area(item["segmentation"])) if kind == "segm" else item["bbox"][2] * item["bbox"][3]
        detected.append({**item, "id": place + 1, "area": area, "iscrowd": 0})
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for items in (annotated, detected):
            side = coco.COCO()
            side.dataset = {**truth, "annotations": items}
            side.createIndex()
            sides.append(side)
        run = evaluation.COCOeval(*sides, kind)
        run.evaluate()
        run.accumulate()
    # (thresholds of overlap, recalls, categories by number, areas: all, small, medium, large); -1: nothing to find.
    precision: npt.NDArray[np.float64] = run.eval["precision"][..., -1]
    at = list(np.argsort(np.argsort(dataset.category_ids)))
    small, medium, large = (_mean(precision[..., place]) for place in range(1, 4))
    objects = Counter(item["category_id"] for item in truth["annotations"] if not item["iscrowd"])
    return AveragePrecision(
        **{name: _mean(precision[overlaps, ..., 0]) for name, overlaps in _OVERLAPS.items()},
        small=small,
        medium=medium,
        large=large,
        classes=tuple(
            ClassPrecision(
                name=name,
                **{measure: _mean(precision[overlaps, :, place, 0]) for measure, overlaps in _OVERLAPS.items()},
                objects=objects[number],
            )
            for name, number, place in zip(dataset.classes, dataset.category_ids, at, strict=True)
        ),
    )


def _mean(precision: npt.NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _content(path: Path) -> dict[str, Any]:
    """Read a file that has the three lists of a COCO annotation file; says what it is where it is something else."""
    content = read_json(path)
    advice = "Give an annotation file with images, annotations and categories, such as instances_val2017.json."
    if isinstance(content, list):
        what = "a list of results" if content and isinstance(content[0], dict) and "score" in content[0] else "a list"
        raise InputError(f"{path} holds {what}, not COCO annotations. {advice}")
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold COCO annotations. {advice}")
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    for key, what in (("caption", "captions"), ("segments_info", "panoptic annotations")):
        if isinstance(first, dict) and key in first:
            raise InputError(f"{path} holds {what}, no boxes of objects. {advice}")
    missing = [part for part in _PARTS if not isinstance(content.get(part), list)]
    if missing:
        raise InputError(f"{path} does not hold COCO annotations: it lacks the lists {', '.join(missing)}. {advice}")
    return content


def _segmentation_fault(segmentation: Any, image: CocoImage) -> str:
    """What is wrong with a mask as COCO writes it; pycocotools hangs or crashes over some of it."""
    if not segmentation:
        return "is missing"
    if isinstance(segmentation, list):
        shapes = all(isinstance(item, list) and len(item) >= 6 and len(item) % 2 == 0 for item in segmentation)
        if not shapes or not all(all(map(_is_number, item)) for item in segmentation):
            return f"must be polygons of at least three points, not {_shown(segmentation)}"
        return ""
    runs = _runs(segmentation.get("counts")) if isinstance(segmentation, dict) else []
    size = [image.height, image.width]
    if not runs or segmentation.get("size") != size or min(runs) < 0 or sum(runs) != image.height * image.width:
        return f"must be polygons, or the runs of a mask of {image.height}x{image.width} pixels"
    return ""


def _runs(counts: Any) -> list[int]:
    """Lengths of the runs of a mask, from a list of them or COCO's text; empty where it is neither.

    In the text each number stands in groups of 5 bits, the lowest first, each a character from "0" on; bit 5 of it says
    that another follows, bit 4 of the last one is the sign. From the fourth number on they are differences to the last
    but one.
    """
    if isinstance(counts, list):
        return counts if all(type(run) is int for run in counts) else []
    if not isinstance(counts, str) or not all("0" <= character < "p" for character in counts) or not counts:
        return []
    bits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = bits & 32 == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(bits)) - np.repeat(starts, np.diff(starts, append=len(bits)))
    if not last[-1] or place.max() > 7:
        return []
    runs = np.add.reduceat((bits & 31) << 5 * place, starts)
    runs -= (bits[last] & 16) * 2 << 5 * place[last]
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    whole: list[int] = runs.tolist()
    return whole


def _is_number(value: Any) -> bool:
    # NaN is not less than anything, and an integer of thousands of digits is no float.
    return type(value) in (int, float) and abs(value) < _LARGEST


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return [name for name in names if name not in set(others)]
