"""A detector's bundle on images and videos, and on annotated images: what is told, drawn and measured."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dyndeploy
from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.data import read_image, sample_photographs
from dyndeploy.errors import InputError, UsageError
from dyndeploy.evaluation import evaluate_detector
from dyndeploy.inference import BundleSession, DetectionResult, detect_images
from dyndeploy.tasks.coco import CocoDataset, coco_metrics
from dyndeploy.tasks.detection import Detections
from dyndeploy.tasks.scenes import digit_scenes, write_coco
from dyndeploy.tasks.video import Video, written_video
from tests.detectors import detector_bundle, one_worker

pytestmark = [pytest.mark.vision("torchvision", "cv2", "pycocotools"), one_worker]


@pytest.fixture
def bundle() -> Bundle:
    return detector_bundle("mask_rcnn")


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two detections in every image, whatever is in it: of class 3 in the left half, of class 7 in the right."""
    real = BundleSession.detect_each

    def detect_each(self: BundleSession, images: Any, size: Any = None) -> Iterator[Any]:
        kept = list(images)
        for image, found in zip(kept, real(self, kept, size), strict=True):
            height, width = image.shape[:2]
            masks = np.zeros((2, height, width), np.bool_)
            masks[0, :, : width // 2] = masks[1, :, width // 2 :] = True
            boxes = np.array([[0, 0, width / 2, height], [width / 2, 0, width, height]], np.float32)
            certain = Detections(boxes, np.array([0.9, 0.2], np.float32), np.array([3, 7]), masks)
            yield type(found)(**{**vars(found), "detections": certain})

    monkeypatch.setattr(BundleSession, "detect_each", detect_each)


def odd_images(folder: Path) -> list[Path]:
    """Images of every size and mode: one pixel, a ribbon, grey, with alpha, and turned by its EXIF note."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1, 1, 3), np.uint8)).save(folder / "dot.png")
    Image.fromarray(rng.integers(0, 256, (50, 8000, 3), np.uint8)).save(folder / "ribbon.png")
    Image.fromarray(rng.integers(0, 256, (40, 30), np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (40, 30, 4), np.uint8)).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    return [folder / name for name in ("dot.png", "ribbon.png", "grey.png", "alpha.png", "turned.jpg")]


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_object_per_image_with_coco_results(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [*sample_photographs(), *odd_images(tmp_path / "odd")]
    (damaged := tmp_path / "damaged.png").write_bytes(b"no image")
    given = [images[0], damaged, *images[1:], tmp_path / "gone.png"]
    assert run(["run", str(bundle.path), *map(str, given), "--json"]) == 1
    out, err = capsys.readouterr()
    assert "2 of 9 images failed" in err
    found = json_lines(out)
    assert [entry["image"] for entry in found] == list(map(str, given))
    with dyndeploy.open_bundle(bundle) as session:
        for path, entry in zip(given, found, strict=True):
            if path not in images:
                assert set(entry) == {"image", "error"} and str(path) in entry["error"]
                continue
            pixels = read_image(path)
            assert (entry["height"], entry["width"]) == pixels.shape[:2]
            assert set(entry) == {
                "image", "width", "height", "detections", "ms", "host_ms", "input_size", "exit", "rates", "operators",
                "runtime",
            }  # fmt: skip
            assert set(entry["rates"]) == {mask.name for mask in bundle.manifest.masks} and entry["ms"] > 0
            assert entry["input_size"] == [128, 128] and entry["runtime"]["name"] == "onnxruntime"
            # What the session gives, as COCO writes it.
            [expected] = session.detect([pixels])
            assert len(entry["detections"]) == len(expected) > 0
            for item, box, score, label in zip(
                entry["detections"], expected.boxes, expected.scores, expected.labels, strict=True
            ):
                assert set(item) == {"category_id", "bbox", "score", "segmentation"}
                x, y, width, height = item["bbox"]
                assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=1e-3)
                assert item["score"] == pytest.approx(float(score)) and item["category_id"] == label + 1
                assert item["segmentation"]["size"] == list(pixels.shape[:2])
    # The EXIF note turns 40 x 30 into 30 x 40.
    assert (found[-2]["height"], found[-2]["width"]) == (30, 40)


def test_scores_classes_and_lines_for_people(
    bundle: Bundle, sure: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(sample_photographs()[0])

    def lines(*options: str) -> list[list[str]]:
        assert run(["run", str(bundle.path), image, *options]) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    head, box = lines()
    # People see the sure ones.
    assert head[:4] == [f"{image}:", "640", "x", "427,"] and head[4:6] == ["1", "detection,"]
    assert box == ["3", "0.900", "0.0", "0.0", "320.0", "427.0"]
    assert [line[0] for line in lines("--score", "0.1")[1:]] == ["3", "7"]
    assert [line[0] for line in lines("--score", "0.1", "--classes", "7,1")[1:]] == ["7"]

    def told(*options: str) -> list[int]:
        assert run(["run", str(bundle.path), image, "--json", *options]) == 0
        [entry] = json_lines(capsys.readouterr().out)
        return [item["category_id"] for item in entry["detections"]]

    # Programs get all of them.
    assert (told(), told("--score", "0.5"), told("--classes", "7")) == ([4, 8], [4], [8])
    assert run(["run", str(bundle.path), image, "--classes", "cat"]) == 2
    assert "Unknown class 'cat'" in capsys.readouterr().err


def test_pictures_are_drawn_where_they_were_asked_for(
    bundle: Bundle, sure: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    grey = np.full((60, 80, 3), 128, np.uint8)
    for name in ("a.png", "deep/a.png", "b.gif"):
        Image.fromarray(grey).save(images / name)

    def save(*arguments: object) -> int:
        return run(["run", str(bundle.path), *map(str, arguments)])

    assert save(images / "a.png", "--save", tmp_path / "one.png") == 0
    picture = np.asarray(Image.open(tmp_path / "one.png"))
    # The left half is what was found; the right half is not sure enough.
    assert picture.shape == grey.shape
    assert (picture[30:50, 5:35] != 128).any(-1).mean() > 0.9 and (picture[30:50, 45:75] == 128).all()
    assert save(images, "--save", tmp_path / "out") == 0
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "b.gif.jpg", "deep/a.png"]
    # Two of one name keep both.
    assert save(images / "a.png", images / "deep" / "a.png", "--save", f"{tmp_path}/two/") == 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["a-2.png", "a.png"]
    capsys.readouterr()
    before = (images / "a.png").read_bytes()
    for arguments, words in (
        ((images / "a.png", "--save", images / "a.png"), "write over the input"),
        ((images, "--save", images), "write over the input"),
        ((images, "--save", tmp_path / "all.png"), "--save all/"),
        ((images / "a.png", "--save", tmp_path / "a.svg"), ".png"),
        ((images / "a.png", "--save", tmp_path / "a.mp4"), "cannot be saved as"),
    ):
        assert save(*arguments) == 2
        assert words in capsys.readouterr().err
    assert (images / "a.png").read_bytes() == before


def test_a_video_becomes_a_video(
    bundle: Bundle, sure: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    with written_video(tmp_path / "clip.avi", 10) as video:
        for _ in range(8):
            video.add(rng.integers(0, 256, (48, 64, 3), np.uint8))
    call = ["run", str(bundle.path), str(tmp_path / "clip.avi")]
    assert run([*call, "--save", str(tmp_path / "out.mp4")]) == 0
    out = capsys.readouterr().out
    assert "8 frames of 64 x 48" in out and "measured; detections per frame: 3 1.0; saved as" in out
    with Video(tmp_path / "out.mp4") as drawn:
        assert (len(list(drawn)), drawn.fps) == (8, 10)
    assert run([*call, "--json"]) == 0
    assert [(entry["frame"], len(entry["detections"])) for entry in json_lines(capsys.readouterr().out)] == [
        (frame, 2) for frame in range(8)
    ]

    # Ctrl-C after three frames: what was drawn is a whole video.
    real, frames = DetectionResult.to_json, itertools.count()
    assert real is not None
    import dyndeploy.inference

    detect = dyndeploy.inference.detect_image

    def stop(*arguments: Any) -> DetectionResult:
        if next(frames) == 3:
            raise KeyboardInterrupt
        return detect(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(dyndeploy.inference, "detect_image", stop)
        assert run([*call, "--save", str(tmp_path / "stopped.mp4")]) == 130
    with Video(tmp_path / "stopped.mp4") as drawn:
        assert len(list(drawn)) == 3

    # A file that breaks off keeps what was there, and is a failure.
    content = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "broken.avi").write_bytes(content[: len(content) * 6 // 10])
    capsys.readouterr()
    assert run([*call[:2], str(tmp_path / "broken.avi"), "--save", str(tmp_path / "kept.mp4")]) == 1
    assert "breaks off after" in capsys.readouterr().err
    with Video(tmp_path / "kept.mp4") as drawn:
        assert 2 <= len(list(drawn)) < 8
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_for_detectors_only_is_refused_elsewhere(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.bundles import tiny_bundle

    classifier, image = tiny_bundle(tmp_path / "c"), str(sample_photographs()[0])
    assert run(["run", str(classifier.path), image, "--save", str(tmp_path / "a.png")]) == 2
    assert "--save: for images and detectors" in capsys.readouterr().err
    assert run(["run", str(bundle.path), image, "--thresholds", "0.5"]) == 2
    assert "has no exits" in capsys.readouterr().err
    annotations = str(tmp_path / "coco.json")
    assert run(["evaluate", str(classifier.path), "--data", str(tmp_path), "--annotations", annotations]) == 2
    assert "is no detector" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is no detector"):
        next(detect_images(classifier, [image]))
    with pytest.raises(UsageError, match="is no detector"):
        evaluate_detector(classifier, "digit_scenes")
    with pytest.raises(UsageError, match="evaluate_detector"):
        dyndeploy.evaluate_bundle(bundle, "digits")


def test_average_precision_of_what_is_deployed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = digit_scenes(4, (64, 64), "held_out", digit_size=(14, 30))
    write_coco(tmp_path / "scenes", scenes)
    images, annotations = tmp_path / "scenes" / "images", tmp_path / "scenes" / "annotations.json"
    call = ["evaluate", str(bundle.path), "--data", str(images), "--annotations", str(annotations)]
    assert run([*call, "--json", "--against", str(bundle.path)]) == 0
    found = json.loads(capsys.readouterr().out)
    with dyndeploy.open_bundle(bundle) as session:
        expected = coco_metrics(session.detect([scenes[index].image for index in range(4)]), scenes)
    assert found["kind"] == "detection_evaluation" and found["images"] == 4 and found["inputs"] == {"128x128": 4}
    assert found["detections"] == expected.detections > 0
    for kind in ("boxes", "masks"):
        measured = getattr(expected, kind)
        assert found[kind]["ap"] == pytest.approx(measured.ap) and found[kind]["ap50"] == pytest.approx(measured.ap50)
        assert [entry["objects"] for entry in found[kind]["classes"]] == [one.objects for one in measured.classes]
    # The bundle against itself finds the same.
    assert found["against"]["boxes"] == found["boxes"]
    assert found["against"]["only_first"] == found["against"]["only_other"] == 0
    assert (found["ms"] > 0, found["ms_is"], found["failures"]) == (True, "measured", [])

    # An image that cannot be read is left out with all that is in it.
    (images / "000001.png").write_bytes(b"no image")
    assert run([*call, "--json"]) == 1
    out, err = capsys.readouterr()
    fewer = json.loads(out)
    assert fewer["images"] == 3 and "1 of 4 images failed" in err
    objects = sum(entry["objects"] for entry in fewer["boxes"]["classes"])
    assert objects == sum(len(scenes[index].labels) for index in (0, 2, 3))
    assert run([*call[:2], "--data", "digit_scenes", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 images of 10 classes, held-out scenes" in out and "AP75" in out and "mask/" in out


def test_annotations_that_do_not_fit_are_refused(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path / "scenes", digit_scenes(1, (64, 64)))
    images, file = tmp_path / "scenes" / "images", tmp_path / "scenes" / "annotations.json"
    content = json.loads(file.read_text())
    with pytest.raises(UsageError, match="give a COCO annotation file"):
        evaluate_detector(bundle, images)
    with pytest.raises(UsageError, match="annotated already"):
        evaluate_detector(bundle, "digit_scenes", file)
    file.write_text(json.dumps([{"image_id": 1, "score": 0.5}]))
    with pytest.raises(InputError, match="not COCO annotations"):
        evaluate_detector(bundle, images, file)
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(InputError, match="holds no objects, so there is nothing to be found"):
        evaluate_detector(bundle, images, file)
    content["categories"][0]["name"] = "nought"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="nought"):
        evaluate_detector(bundle, images, file)
    # COCO's own file is not changed by any of this.
    assert CocoDataset(images, file).classes[0] == "nought"
