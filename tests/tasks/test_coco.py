from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dyndeploy.errors import InputError, UsageError
from dyndeploy.tasks.annotations import run_lengths
from dyndeploy.tasks.coco import AveragePrecision, CocoDataset, _runs, coco_metrics
from dyndeploy.tasks.detection import Detections, encode_mask
from dyndeploy.tasks.scenes import digit_scenes, write_coco

SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 7, "file_name": "b.png", "height": 10, "width": 10},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 0, "image_id": 30, "category_id": 9, "bbox": [2, 3, 6, 6], "area": 36, "iscrowd": 0},
        {"id": 4, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 5], "area": 50, "iscrowd": 0},
    ],
}
for _item in CONTENT["annotations"]:
    _item["segmentation"] = SQUARE

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index, (name, size) in enumerate((("a.png", (30, 20)), ("b.png", (10, 10)))):
        Image.new("RGB", size, (index, 50, 100)).save(folder / name)
    return folder


def opened(images: Path, tmp_path: Path, change: Change = lambda content: None, **options: Any) -> CocoDataset:
    content = copy.deepcopy(CONTENT)
    change(content)
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return CocoDataset(images, tmp_path / "coco.json", **options)


def edit(part: str, place: int, **values: Any) -> Change:
    """A change of one item; None takes a key away."""

    def change(content: dict[str, Any]) -> None:
        for key, value in values.items():
            if value is None:
                del content[part][place][key]
            else:
                content[part][place][key] = value

    return change


def add(**values: Any) -> Change:
    return lambda content: content["annotations"].append({**content["annotations"][0], **values})


def test_labels_follow_the_numbers_of_the_categories(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path)
    assert (dataset.classes, dataset.category_ids, dataset.notes) == (("cat", "dog"), (3, 9), ())
    assert len(dataset) == 2 and [image.image_id for image in dataset.images] == [30, 7]
    item = dataset[0]
    assert item.image.shape == (20, 30, 3) and (item.image[..., 1] == 50).all() and item.image_id == 30
    assert item.boxes.tolist() == [[2, 3, 8, 9]] and item.boxes.dtype == np.float32
    assert item.labels.tolist() == [1] and item.crowd.tolist() == [False] and item.masks is None
    assert dataset[1].labels.tolist() == [0]


def test_labels_follow_the_networks_classes(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path, classes=["dog", "cat"])
    assert dataset.category_ids == (9, 3) and dataset[0].labels.tolist() == [0]
    idle = opened(images, tmp_path, lambda c: c["categories"].append({"id": 0, "name": "pets"}), classes=["dog", "cat"])
    assert idle.category_ids == (9, 3) and "pets" in idle.notes[0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog"], r"unknown to the network: cat\..*network's 1: dog; the file's 2: cat, dog"),
        (["dog", "cat", "bird"], r"missing: bird\..*network's 3: dog, cat, bird"),
        (["Dog", "cat"], "missing: Dog; unknown to the network: dog"),
    ],
)
def test_other_classes_are_refused(images: Path, tmp_path: Path, classes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(images, tmp_path, classes=classes)


def test_two_categories_of_one_name_cannot_be_matched(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named twice: dog"):
        opened(images, tmp_path, edit("categories", 1, name="dog"), classes=["dog", "dog"])
    assert opened(images, tmp_path, edit("categories", 1, name="dog")).classes == ("dog", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "a list of results"),
        ([1], "holds a list, not"),
        ("text", "does not hold COCO annotations"),
        ({"images": [], "annotations": [{"image_id": 1, "caption": "A dog."}]}, "holds captions"),
        ({"images": [], "annotations": [{"segments_info": []}], "categories": []}, "holds panoptic annotations"),
        ({"images": [], "categories": []}, "it lacks the lists annotations"),
        ({"images": {}, "annotations": []}, "it lacks the lists images, categories"),
        ({"images": [], "annotations": [], "categories": []}, "lists no categories"),
        ({**CONTENT, "images": []}, "lists no images"),
    ],
)
def test_other_files_are_told_by_what_they_hold(images: Path, tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        CocoDataset(images, tmp_path / "coco.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("images", 0, id=None), r"images\[0\].id is missing"),
        (edit("images", 1, width=None), r"images\[1\].width is missing"),
        (edit("images", 1, height=0), r"images\[1\] is 0x10 pixels"),
        (edit("images", 1, id=30), "two images have the number 30"),
        (edit("images", 1, file_name=5), r"images\[1\].file_name must be a text"),
        (edit("images", 1, file_name="c.png"), "1 of the 2 images.*c.png"),
        (lambda c: c["images"].append(3), r"images\[2\] must be an object"),
        (edit("categories", 1, id=9), "two categories have the number 9"),
        (edit("categories", 1, id="3"), r"categories\[1\].id must be a whole number, not '3'"),
        (edit("annotations", 1, category_id=5), r"annotations\[1\] has the category 5"),
        (edit("annotations", 1, image_id=None), r"annotations\[1\].image_id is missing"),
        (edit("annotations", 1, image_id=True), r"annotations\[1\].image_id must be a whole number"),
        (edit("annotations", 1, bbox=None), r"annotations\[1\].bbox is missing"),
        (edit("annotations", 1, bbox=[1, 2, 3]), r"annotations\[1\].bbox must be four numbers"),
        (edit("annotations", 1, bbox=[1, 2, 3, "4"]), "must be four numbers"),
        (edit("annotations", 1, bbox=[1, 2, 3, float("nan")]), "must be four numbers"),
        (edit("annotations", 1, bbox=[1, 2, 3, 10**400]), "must be four numbers"),
        (edit("annotations", 1, bbox=[1, 2, 1e9, 3]), "below 100,000 each, not"),
        (edit("annotations", 1, iscrowd=2), r"annotations\[1\].iscrowd must be 0 or 1, not 2"),
        (lambda c: c["annotations"].append(None), r"annotations\[2\] must be an object"),
    ],
)
def test_faults_of_the_file_are_named(images: Path, tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(images, tmp_path, change)


@pytest.mark.parametrize(
    ("change", "note", "boxes"),
    [
        (add(bbox=[-5, 3, 20, 40]), "reach out of their image, clipped to it: 1.", [[2, 3, 8, 9], [0, 3, 15, 20]]),
        (add(bbox=[25, 3, 5.25, 4]), "", [[2, 3, 8, 9], [25, 3, 30, 7]]),
        (add(bbox=[5, 3, 0, 4]), "without area within their image", [[2, 3, 8, 9]]),
        (add(bbox=[5, 3, -3, 4]), "without area within their image", [[2, 3, 8, 9]]),
        (add(bbox=[31, 3, 5, 4]), "without area within their image", [[2, 3, 8, 9]]),
        (add(image_id=99), "of images that the file does not list, left out: 1.", [[2, 3, 8, 9]]),
        (edit("annotations", 0, area=None), "do not say their area", [[2, 3, 8, 9]]),
        (edit("annotations", 0, iscrowd=1), "Crowds, which are not trained on", [[2, 3, 8, 9]]),
        (edit("annotations", 0, iscrowd=None), "", [[2, 3, 8, 9]]),
        (edit("annotations", 0, segmentation=[[1, 2, 3, 4]]), "whose masks are none", [[2, 3, 8, 9]]),
        (edit("annotations", 0, segmentation=None), "", [[2, 3, 8, 9]]),
        (lambda c: c["annotations"].pop(1), "Images without annotations: 1.", [[2, 3, 8, 9]]),
    ],
)
def test_what_is_odd_is_counted(
    images: Path, tmp_path: Path, change: Change, note: str, boxes: list[list[float]]
) -> None:
    dataset = opened(images, tmp_path, change)
    assert len(dataset.notes) == bool(note) and note in "".join(dataset.notes)
    assert dataset[0].boxes.tolist() == boxes
    assert dataset[0].crowd.tolist() == ["Crowds" in note] * len(boxes)


def test_an_image_without_annotations_has_no_boxes(images: Path, tmp_path: Path) -> None:
    item = opened(images, tmp_path, lambda c: c["annotations"].clear())[1]
    assert item.boxes.shape == (0, 4) and item.labels.shape == item.crowd.shape == (0,)


def test_images_that_are_not_the_annotated_ones(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path, edit("images", 0, height=30, width=20))
    with pytest.raises(InputError, match=r"20x30 pixels .*says 30x20. Its EXIF orientation turns it"):
        dataset[0]
    with pytest.raises(InputError, match=r"says 10x11. Boxes would be misplaced"):
        opened(images, tmp_path, edit("images", 1, width=11))[1]
    with pytest.raises(InputError, match="There is no folder"):
        CocoDataset(images / "none", tmp_path / "coco.json")
    with pytest.raises(InputError, match=r"none\.json"):
        CocoDataset(images, images / "none.json")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "segmentation is missing, and masks are wanted"),
        ([], "is missing"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, "6"]], "at least three points"),
        ([[1, 2, 3, 4, 5, 1e9]], "at least three points"),
        ({"size": [30, 20], "counts": [600]}, "a mask of 20x30 pixels"),
    ],
)
def test_masks_are_checked_where_they_are_wanted(images: Path, tmp_path: Path, segmentation: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(images, tmp_path, edit("annotations", 0, segmentation=segmentation), masks=True)


@pytest.mark.vision("pycocotools")
@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[2, 3, 8, 3, 8, 6, 2, 6], [2, 6, 8, 6, 8, 9, 2, 9]],
        {"size": [20, 30], "counts": [43, 6, *[14, 6] * 5, 451]},
        "compressed",
    ],
)
def test_masks_are_decoded_from_all_of_cocos_forms(images: Path, tmp_path: Path, segmentation: Any) -> None:
    wanted = np.zeros((20, 30), bool)
    wanted[3:9, 2:8] = True
    if segmentation == "compressed":
        segmentation = Detections(np.zeros((1, 4)), np.ones(1), np.zeros(1), wanted[None]).to_coco([1])[0][
            "segmentation"
        ]
    dataset = opened(images, tmp_path, edit("annotations", 0, segmentation=segmentation), masks=True)
    masks = dataset[0].masks
    assert masks is not None and masks.shape == (1, 20, 30) and np.array_equal(masks[0], wanted)


BROKEN = [[43, 6], [43, 600000], [-3, 603], [43, 6, 551.0], "\x01\x02", "zzzz", "o", "ooooooooo0", "é", "", 5, None]


@pytest.mark.parametrize("counts", BROKEN)
def test_runs_that_are_no_mask_are_refused(images: Path, tmp_path: Path, counts: Any) -> None:
    # pycocotools reads beyond its memory, or never ends, over some of them.
    change = edit("annotations", 0, segmentation={"size": [20, 30], "counts": counts})
    if counts is None:
        change = edit("annotations", 0, segmentation={"size": [20, 30]})
    with pytest.raises(InputError, match=r"annotations\[0\].segmentation must be polygons, or the runs"):
        opened(images, tmp_path, change, masks=True)
    plain = opened(images, tmp_path, change)
    assert plain.notes == ("Annotations whose masks are none, so that masks are not measured: 1.",)
    assert "segmentation" not in plain.coco([0])["annotations"][0]


@pytest.mark.vision("pycocotools")
def test_runs_are_read_as_pycocotools_writes_them() -> None:
    rng = np.random.default_rng(0)
    for trial in range(100):
        height, width = rng.integers(1, 400, 2).tolist()
        mask = rng.uniform(size=(height, width)) < rng.choice([0, 0.001, 0.1, 0.5, 1])
        assert _runs(encode_mask(mask)["counts"]) == run_lengths(mask)["counts"], trial


def test_masks_need_pycocotools(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mask", "coco"):
        monkeypatch.setitem(sys.modules, f"pycocotools.{name}", None)
    dataset = opened(images, tmp_path, masks=True)
    with pytest.raises(UsageError, match=r"pip install 'dyndeploy\[detection\]'"):
        dataset[0]
    with pytest.raises(UsageError, match="Average precision needs pycocotools"):
        coco_metrics([perfect(dataset, 0, masks=False), perfect(dataset, 1, masks=False)], dataset)


def perfect(dataset: CocoDataset, index: int, *, masks: bool) -> Detections:
    listed, raw = dataset.images[index], dataset.coco([index])["annotations"]
    boxes = np.array([item["bbox"] for item in raw], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [dataset.category_ids.index(item["category_id"]) for item in raw]
    shapes = np.ones((len(raw), listed.height, listed.width), bool) if masks else None
    return Detections(boxes, np.ones(len(raw)), np.array(labels), shapes)


def found(*rows: tuple[float, ...]) -> Detections:
    """Rows of x1, y1, x2, y2, score, label."""
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5])


NOTHING = found()
DOG, CAT = (2, 3, 8, 9), (0, 0, 10, 5)


@pytest.mark.vision("pycocotools")
@pytest.mark.parametrize(
    ("detections", "ap", "ap50", "ap75", "cat", "dog"),
    [
        # Everything is found; the annotation with number 0, which pycocotools takes for "no match", counts as well.
        ((found((*DOG, 0.9, 1)), found((*CAT, 0.8, 0))), 1, 1, 1, 1, 1),
        ((NOTHING, NOTHING), 0, 0, 0, 0, 0),
        # One class of two is found.
        ((found((*DOG, 0.9, 1)), NOTHING), 0.5, 0.5, 0.5, 0, 1),
        # A surer detection of nothing: precision 1/2 at each recall.
        ((found((*DOG, 0.9, 1), (20, 10, 30, 20, 0.95, 1)), found((*CAT, 0.8, 0))), 0.75, 0.75, 0.75, 1, 0.5),
        # A less sure one costs nothing.
        ((found((*DOG, 0.9, 1), (20, 10, 30, 20, 0.85, 1)), found((*CAT, 0.8, 0))), 1, 1, 1, 1, 1),
        # Height 4 of 6: an overlap of 2/3 passes 4 of the 10 thresholds.
        ((found((2, 3, 8, 7, 0.9, 1)), found((*CAT, 0.8, 0))), 0.7, 1, 0.5, 1, 0.4),
        # The right box under the wrong label.
        ((found((*DOG, 0.9, 0)), found((*CAT, 0.95, 0))), 0.5, 0.5, 0.5, 1, 0),
    ],
)
def test_average_precision_of_hand_made_detections(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    detections: tuple[Detections, ...],
    ap: float,
    ap50: float,
    ap75: float,
    cat: float,
    dog: float,
) -> None:
    dataset = opened(images, tmp_path)
    metrics = coco_metrics(iter(detections), dataset)
    boxes = metrics.boxes
    assert (boxes.ap, boxes.ap50, boxes.ap75) == pytest.approx((ap, ap50, ap75))
    assert (boxes.small, boxes.medium, boxes.large) == (boxes.ap, None, None)
    assert [(item.name, item.objects) for item in boxes.classes] == [("cat", 1), ("dog", 1)]
    assert [item.ap for item in boxes.classes] == pytest.approx([cat, dog])
    assert metrics.masks is None and metrics.images == 2
    assert metrics.detections == sum(map(len, detections))
    assert capsys.readouterr() == ("", "")


@pytest.mark.vision("pycocotools")
def test_classes_keep_the_networks_order(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path, classes=["dog", "cat"])
    metrics = coco_metrics([found((*DOG, 0.9, 0)), NOTHING], dataset)
    assert [item.name for item in metrics.boxes.classes] == ["dog", "cat"]
    assert [item.ap for item in metrics.boxes.classes] == pytest.approx([1, 0])


@pytest.mark.vision("pycocotools")
def test_a_class_that_no_image_shows_has_no_precision(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path)
    metrics = coco_metrics([found((*CAT, 0.8, 0))], dataset, [1])
    assert metrics.images == 1 and metrics.boxes.ap == pytest.approx(1)
    cat, dog = metrics.boxes.classes
    assert (cat.ap50, cat.ap75) == pytest.approx((1, 1))
    assert (dog.ap, dog.ap50, dog.ap75, dog.objects) == (None, None, None, 0)


@pytest.mark.vision("pycocotools")
def test_what_is_found_in_a_crowd_is_not_counted(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path, add(bbox=[10, 0, 20, 20], area=400, iscrowd=1))
    inside = [(12, 2, 15, 5, 0.99, 1), (20, 10, 25, 18, 0.98, 1)]
    metrics = coco_metrics([found(*inside, (*DOG, 0.9, 1)), found((*CAT, 0.8, 0))], dataset)
    assert metrics.boxes.ap == pytest.approx(1)
    assert [item.objects for item in metrics.boxes.classes] == [1, 1]


@pytest.mark.vision("pycocotools")
def test_objects_are_sorted_by_the_area_that_is_annotated(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path, edit("annotations", 0, area=40 * 40))
    boxes = coco_metrics([found((*DOG, 0.9, 1)), NOTHING], dataset).boxes
    assert (boxes.small, boxes.medium, boxes.large) == (0, pytest.approx(1), None)


def test_detections_must_be_those_of_the_images(images: Path, tmp_path: Path) -> None:
    dataset = opened(images, tmp_path)
    with pytest.raises(UsageError, match="detections of 1 images, and 2"):
        coco_metrics([NOTHING], dataset)
    with pytest.raises(UsageError, match="more images than the 2"):
        coco_metrics([NOTHING] * 3, dataset)
    with pytest.raises(UsageError, match="there are 2 categories"):
        coco_metrics([found((*DOG, 0.9, 2)), NOTHING], dataset)


def shifted(item: Any, *, masks: bool) -> Detections:
    """What is in a scene, the masks moved down by a pixel."""
    moved = np.roll(item.masks, 1, 1) if masks else None
    return Detections(item.boxes, np.full(len(item.labels), 0.5), item.labels, moved)


@pytest.mark.vision("pycocotools")
def test_scenes_are_measured_as_they_are_and_as_files(tmp_path: Path) -> None:
    dataset = digit_scenes(8, (64, 64), digit_size=(14, 40))
    write_coco(tmp_path / "scenes", dataset)
    files = CocoDataset(tmp_path / "scenes" / "images", tmp_path / "scenes" / "annotations.json", masks=True)
    assert files.classes == dataset.classes and files.notes == ()
    for item, other in zip(dataset, files, strict=True):
        assert np.array_equal(item.image, other.image) and np.array_equal(item.masks, other.masks)
        assert np.array_equal(item.boxes, other.boxes) and np.array_equal(item.labels, other.labels)
    metrics = coco_metrics((shifted(item, masks=True) for item in dataset), dataset)
    assert metrics == coco_metrics((shifted(item, masks=True) for item in files), files)
    assert metrics.boxes.ap == pytest.approx(1) and isinstance(metrics.masks, AveragePrecision)
    assert metrics.masks.ap is not None and 0.3 < metrics.masks.ap < 0.9
    assert coco_metrics((shifted(item, masks=False) for item in dataset), dataset).masks is None


@pytest.mark.vision("pycocotools")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_figures_are_those_of_pycocotools_own_summary(kind: str) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(5)
    dataset = digit_scenes(12, digit_size=(20, 100))
    noisy = []
    for item in dataset:
        count = len(item.labels)
        labels = np.where(rng.uniform(size=count) < 0.3, rng.integers(0, 10, count), item.labels)
        masks = np.roll(item.masks, rng.integers(0, 3), 1)
        noisy.append(Detections(item.boxes + rng.normal(0, 2, (count, 4)), rng.uniform(0, 1, count), labels, masks))
    metrics = coco_metrics(noisy, dataset)
    ours = metrics.boxes if kind == "bbox" else metrics.masks
    assert ours is not None
    truth = COCO()
    truth.dataset = dataset.coco(range(12))
    truth.createIndex()
    results = [entry for index, item in enumerate(noisy) for entry in item.to_coco(dataset.category_ids, index + 1)]
    if kind == "segm":
        # loadRes measures areas by boxes where there are some.
        results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    run = COCOeval(truth, truth.loadRes(results), kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert (ours.large, run.stats[5]) == (None, -1)
    figures = [ours.ap, ours.ap50, ours.ap75, ours.small, ours.medium]
    assert figures == pytest.approx(run.stats[:5].tolist(), abs=1e-12)
    # Every class shows an object: the classes' mean is the whole.
    for name in ("ap", "ap50", "ap75"):
        assert np.mean([getattr(one, name) for one in ours.classes]) == pytest.approx(getattr(ours, name), abs=1e-12)
    assert run.stats[:5].min() > 0.05 and run.stats[:5].max() < 0.95
