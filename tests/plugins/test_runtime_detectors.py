"""Detectors in the C++ runtime against Python's: inputs to the bit, and what is found; and bad input."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import dyndeploy
from dyndeploy.bundle import REFERENCE, Bundle
from dyndeploy.graphs.passes import with_all_bodies
from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.inference import DetectionResult, detect_images
from dyndeploy.precisions import PRECISIONS
from dyndeploy.runtimes import open_parts
from dyndeploy.runtimes.tensorrt_bundle import write_engine_plans
from dyndeploy.targets import load_target
from dyndeploy.tasks.detection import Detections, compare, encode_mask
from tests.bundles import resealed, tiny_bundle
from tests.detector_bundles import CATEGORIES, CLASSES, MASK, detector_bundle_by_hand
from tests.detectors import detector_bundle, one_worker, one_worker_of_queries, photographs
from tests.export.test_parts import bundle as parts_bundle
from tests.plugins.conftest import RuntimeBuild
from tests.plugins.device_runtime import binding
from tests.plugins.test_runtime import run_program
from tests.plugins.test_runtime_tensorrt import runnable, sealed_again, stand_in

pytestmark = [
    pytest.mark.usefixtures("onnxruntime_library"),
    pytest.mark.vision("cv2", "pycocotools"),
]

__all__ = ["stand_in"]  # a fixture
USAGE, DAMAGED, INPUT, NOT_FINITE = 1, 2, 3, 4
BUNDLES: dict[str, dict[str, Any]] = {
    "boxes": {},
    "masks": {"masks": True},
    "queries": {"queries": True, "rounding": False},
    "batch": {"masks": True, "batch": 3},
    "sizes": {"sizes": ((64, 96), (96, 64), (64, 64))},
    "sizes and a batch": {"sizes": ((96, 96), (64, 64)), "batch": 2, "masks": True},
}
RIM = 2
"""So many pixels of a mask may fall the other way: those whose value rounding decides, as BLAS sums products."""


@pytest.fixture
def open_session(runtime_build: RuntimeBuild) -> Callable[..., Any]:
    return functools.partial(binding().open_bundle, library=runtime_build.library)


@functools.cache
def odd_sizes() -> list[npt.NDArray[np.uint8]]:
    """Images of noise over a slope, of all shapes, some of their final size and some of twice that."""
    generator = np.random.default_rng(2)
    shapes = [(64, 96), (128, 192), (96, 64), (40, 300), (300, 40), (1, 1), (5, 700), (63, 65), (200, 201), (64, 64)]
    images = []
    for index, (height, width) in enumerate(shapes):
        slope = np.linspace(0, 40 * (index + 1), height)[:, None, None] + np.linspace(0, 90, width)[None, :, None]
        noise = generator.normal(20, 30, (height, width, 3))
        images.append((slope + noise).clip(0, 255).astype(np.uint8))
    return images


def assert_same(found: Any, expected: Any, *, rim: int = RIM) -> None:
    """What the runtime found, beside what Python's session did."""
    wanted = expected.detections
    assert (found.input_size, found.resized) == (expected.bucket, expected.resized)
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.rates == expected.rates
    assert (found.masks is None) == (wanted.masks is None)
    if wanted.masks is None:
        np.testing.assert_array_equal(found.scores, wanted.scores)
        return
    # Those of queries are means over their pixels, whose exponentials are not NumPy's.
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=2e-6)
    assert found.masks.shape == wanted.masks.shape
    assert (found.masks != wanted.masks).sum(axis=(1, 2)).max(initial=0) <= rim


# ---------------------------------------------------------------- inputs


@pytest.fixture(scope="module")
def opened(runtime_build: RuntimeBuild, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Any, Any]]]:
    """A task and a session of it, with and without rounding."""
    with ExitStack() as stack:
        found = []
        for rounding in (True, False):
            folder = tmp_path_factory.mktemp("bundle")
            bundle = detector_bundle_by_hand(folder, sizes=((128, 160),), limits=(150, 120), rounding=rounding)
            session = stack.enter_context(binding().open_bundle(bundle.path, library=runtime_build.library))
            found.append((bundle.manifest.detector().task(), session))
        yield found


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**31))
def test_any_image_is_resized_normalised_and_padded_to_the_bit(
    opened: list[tuple[Any, Any]], height: int, width: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    for task, session in opened:
        expected = task.prepare(image, bucket=(128, 160))[0]["input"][0]
        if min(height, width) < 16 and not task.rounding:
            # OpenCV's float32 of lines and narrow images is computed by other instructions, in other roundings.
            np.testing.assert_allclose(session.preprocess(image), expected, rtol=0, atol=1e-4)
            continue
        np.testing.assert_array_equal(session.preprocess(image), expected)


@pytest.mark.parametrize("shape", [(240, 300), (120, 150), (121, 149), (8000, 50), (3, 4000), (1080, 1920), (60, 75)])
def test_images_of_special_sizes_are_resized_to_the_bit(opened: list[tuple[Any, Any]], shape: tuple[int, int]) -> None:
    """Halved, doubled, not resized at all, and large ones, whose places have few bits left in float32."""
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    for task, session in opened:
        expected = task.prepare(image, bucket=(128, 160))[0]["input"][0]
        np.testing.assert_array_equal(session.preprocess(image), expected)


def test_rows_of_an_image_need_not_be_next_to_each_other(opened: list[tuple[Any, Any]]) -> None:
    """A part of a frame has the frame's stride."""
    frame = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    task, session = opened[0]
    part = frame[20:200, 30:260]
    np.testing.assert_array_equal(session.preprocess(part), task.prepare(part, bucket=(128, 160))[0]["input"][0])


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("kind", BUNDLES)
@pytest.mark.parametrize("size", [None, (70, 50), (300, 300)])
def test_detections_equal_pythons(
    open_session: Callable[..., Any], tmp_path: Path, kind: str, size: tuple[int, int] | None
) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b", **BUNDLES[kind])
    images = odd_sizes()
    with dyndeploy.open_bundle(bundle, runtime="onnxruntime") as session:
        expected = list(session.detect_each(images, size))
    told: list[str] = []
    with open_session(bundle.path, progress=told.append) as session:
        found = session.detect_all(images, size)
        alone = session.detect(images[3], size)
        statistics = session.statistics()
    for image, one, wanted in zip(images, found, expected, strict=True):
        assert_same(one, wanted)
        assert (one.height, one.width) == image.shape[:2]
        assert one.category_ids.tolist() == [CATEGORIES[label] for label in one.labels]
        assert one.class_names == [CLASSES[label] for label in one.labels]
        # Of its own masks: a pixel may differ from Python's.
        own = Detections(one.boxes, one.scores, one.labels, one.masks)
        assert one.to_coco() == own.to_coco(CATEGORIES)
        assert one.ms > 0 and one.host_ms > 0
    np.testing.assert_array_equal(alone.boxes, found[3].boxes)
    assert sum(len(one) for one in found) > len(images)
    assert statistics["images"] == len(images) + 1
    # What fits no input is said once.
    task, buckets = bundle.manifest.detector().task(), [bucket.size for bucket in bundle.manifest.detector().buckets]
    assert len(told) == any(not task.bucket(*image.shape[:2], buckets, size)[1] for image in images)
    if told:
        assert re.search(r"^an image of \d+x\d+ pixels fits none of the sizes that detector was exported at", told[0])
        assert re.search(r"Export it with --input-size \d+x\d+ as well", told[0])


@pytest.mark.parametrize("kind", ["masks", "sizes and a batch", "queries"])
def test_the_program_prints_the_lines_of_dyndeploy_run(runtime_build: RuntimeBuild, tmp_path: Path, kind: str) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b", **BUNDLES[kind])
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(odd_sizes()[:6]):
        Image.fromarray(image).save(folder / f"{index}.png")
    expected = list(detect_images(bundle, [folder]))
    lines = json_lines(runtime_build, bundle.path, folder)
    for line, wanted in zip(lines, expected, strict=True):
        assert isinstance(wanted, DetectionResult)
        value = json.loads(json.dumps(wanted.to_json()))
        assert list(line) == list(value)
        for timed in ("ms", "host_ms"):
            assert line.pop(timed) > 0 and value.pop(timed) > 0
        assert line.pop("runtime")["name"] == value.pop("runtime")["name"] == "onnxruntime"
        for one, other in zip(line.pop("detections"), value.pop("detections"), strict=True):
            assert list(one) == list(other)
            assert one["score"] == pytest.approx(other["score"], rel=2e-6)
            assert (one["category_id"], one["bbox"]) == (other["category_id"], other["bbox"])
            assert one["segmentation"]["size"] == other["segmentation"]["size"]
        assert line == value
    # The texts of masks, where no pixel was decided by rounding.
    texts = [[found["segmentation"]["counts"] for found in line["detections"]]
             for line in json_lines(runtime_build, bundle.path, folder)]  # fmt: skip
    wanted_texts = [[encode_mask(mask)["counts"] for mask in each.detections.masks] for each in expected]
    assert np.mean([one == other for a, b in zip(texts, wanted_texts, strict=True)
                    for one, other in zip(a, b, strict=True)]) > 0.9  # fmt: skip


def json_lines(build: RuntimeBuild, bundle: Path, *arguments: object) -> list[dict[str, Any]]:
    done = run_program(build, bundle, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_scores_and_classes_choose_what_is_told(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b")
    Image.fromarray(odd_sizes()[0]).save(tmp_path / "a.png")
    [expected] = detect_images(bundle, [tmp_path / "a.png"])
    assert isinstance(expected, DetectionResult)
    everything = expected.detections
    middle = float(np.sort(everything.scores)[len(everything) // 2])
    name = CLASSES[everything.labels[0]]
    for arguments, kept in (
        ([], everything),
        (["--score", middle], everything.select(middle)),
        (["--classes", f" {name} ,"], everything.select(labels=[int(everything.labels[0])])),
        (["--classes", "ant,bee,cat", "--score", "1"], everything.select(1.0)),
    ):
        [line] = json_lines(runtime_build, bundle.path, tmp_path / "a.png", *arguments)
        assert line["detections"] == kept.to_coco(CATEGORIES)
    done = run_program(runtime_build, bundle.path, tmp_path / "a.png", "--score", "0")
    first, *rows = done.stdout.splitlines()
    assert re.fullmatch(rf".*a\.png: 96 x 64, {len(everything)} detections?, mean rate [01]\.000, \d+\.\d\d ms", first)
    for row, box, score, label in zip(rows, everything.boxes, everything.scores, everything.labels, strict=True):
        assert row.split() == [CLASSES[label], f"{score:.3f}", *(f"{value:.1f}" for value in box)]
    for arguments, said in (
        (["--classes", "dog"], "Unknown class 'dog'. Known: ant, bee, cat."),
        (["--classes", ","], "--classes takes names separated by commas, e.g. ant."),
        (["--score", "1.5"], "--score takes a number from 0 to 1, not '1.5'."),
        (["--score", "x"], "--score takes a number from 0 to 1, not 'x'."),
    ):
        done = run_program(runtime_build, bundle.path, tmp_path / "a.png", *arguments)
        assert done.returncode == 2 and said in done.stderr
    classifier = tiny_bundle(tmp_path / "c")
    done = run_program(runtime_build, classifier.path, tmp_path / "a.png", "--score", "0.5")
    assert done.returncode == 2 and "--score: for detectors; tiny is none. Leave it out." in done.stderr


def test_frames_are_numbered_and_summed_up(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b")
    frames = np.stack([odd_sizes()[0], odd_sizes()[0][::-1]])
    done = run_program(
        runtime_build, bundle.path, "--frames", "64x96", "--json", "--statistics", stdin=frames.tobytes()
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1]
    with dyndeploy.open_bundle(bundle, runtime="onnxruntime") as session:
        for line, found in zip(lines, session.detect(list(frames)), strict=True):
            assert line["detections"] == found.to_coco(CATEGORIES)
    summary, statistics = done.stderr.splitlines()
    assert "2 frames in" in summary
    assert json.loads(statistics)["images"] == 2 and set(json.loads(statistics)["rates"]) == {MASK}


def test_threads_share_a_session_and_its_sizes(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b", **BUNDLES["sizes"])
    images = odd_sizes()
    with dyndeploy.open_bundle(bundle, runtime="onnxruntime") as session:
        expected = session.detect(images)
    wrong: list[int] = []
    with open_session(bundle.path) as session:

        def work(offset: int) -> None:
            for step in range(3 * len(images)):
                index = (offset + step) % len(images)
                if not np.array_equal(session.detect(images[index]).boxes, expected[index].boxes):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", ["boxes", "masks", "queries", "batch"])
def test_verification_compares_what_is_found(
    open_session: Callable[..., Any], runtime_build: RuntimeBuild, tmp_path: Path, kind: str
) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b", **BUNDLES[kind])
    done = run_program(runtime_build, bundle.path, "--verify")
    assert done.returncode == 0, done.stderr
    matched, expected = map(int, re.search(r"reference inputs: (\d+) of (\d+) detections", done.stderr).groups())
    assert matched == expected > 0
    reference = bundle.reference()
    name = "mask_logits" if kind == "queries" else "boxes"
    np.savez(bundle.path / REFERENCE, **{**reference, name: reference[name] * np.float32(1.2) + np.float32(0.4)})
    with open_session(resealed(bundle).path) as session, pytest.raises(binding().DyndeployError) as raised:
        session.verify()
    assert raised.value.code == DAMAGED
    assert "Detections on the reference inputs differ from PyTorch's" in str(raised.value)


# ---------------------------------------------------------------- engines, and the host in between


@pytest.mark.parametrize("kind", ["boxes", "masks", "queries", "batch"])
def test_parts_run_in_turn_and_find_what_the_graph_finds(
    stand_in: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    """What stands for TensorRT has memory that the host does not see: what it reads must be fetched."""
    bundle = in_parts(detector_bundle_by_hand(tmp_path / "b", parts=True, **BUNDLES[kind]))
    images = odd_sizes()
    with dyndeploy.open_bundle(bundle, runtime="onnxruntime") as session:
        expected = list(session.detect_each(images))
    with stand_in(bundle.path) as session:
        assert session.info["runtime"] == "tensorrt"
        found = session.detect_all(images)
        session.verify()
        feeds = {name: value[: bundle.manifest.batch] for name, value in bundle.reference_inputs().items()}
        outputs = session.run(feeds)
    assert [path.name for path in sorted((tmp_path / "cache" / "engines").glob("*.engine"))]
    for one, wanted in zip(found, expected, strict=True):
        assert_close(one, wanted.detections)
        assert one.rates == wanted.rates
    with open_parts(bundle) as parts:
        chained = parts.run(feeds)
    assert outputs.keys() == chained.keys()
    for name, value in chained.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-6, atol=1e-6)


def assert_close(found: Any, expected: Detections) -> None:
    """Nothing is missing, and all of it is where it should be: exponentials differ in their last bits."""
    own = Detections(found.boxes, found.scores, found.labels, found.masks)
    difference = compare(own, expected)
    assert (difference.matched, difference.missed, difference.extra) == (len(expected), 0, 0)
    assert difference.box < 1e-3 and difference.score < 1e-5
    assert difference.mask_iou is None or difference.mask_iou > 0.99


def in_parts(bundle: Bundle, precision: str = "fp32") -> Bundle:
    """The bundle as an export for a board writes it, with the engines' graphs for copies."""
    graphs = {part.file: model for part, model in bundle.load_engine_parts()}
    write_engine_plans(bundle.path, graphs, load_target("nano"), precision)
    return runnable(sealed_again(bundle, precision=precision))


@pytest.mark.parametrize(
    ("precision", "moved", "passes"),
    [("fp32", 0.01, True), ("fp32", 0.1, False), ("fp16", 0.3, True), ("fp16", 0.7, False)],
)
def test_engines_are_held_to_the_limits_of_their_precision(
    stand_in: Callable[..., Any], tmp_path: Path, precision: str, moved: float, passes: bool
) -> None:
    bundle = in_parts(detector_bundle_by_hand(tmp_path / "b", parts=True), precision)
    reference = bundle.reference()
    np.savez(bundle.path / REFERENCE, **{**reference, "boxes": reference["boxes"] + np.float32(moved)})
    with stand_in(sealed_again(bundle).path) as session:
        assert session.info["precision"] == precision
        if passes:
            session.verify()
            return
        with pytest.raises(binding().DyndeployError, match=r"Detections on the reference inputs differ") as raised:
            session.verify()
    limits = PRECISIONS[precision].detections
    assert limits is not None
    assert f"within {limits.box:g} px and {limits.score:g} of its score, with an IoU of masks of at least " in str(
        raised.value
    )


@pytest.mark.vision("torchvision")
@pytest.mark.xdist_group("detectors in parts")
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_networks_in_parts_find_what_they_find_in_python(
    stand_in: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    shutil.copytree(parts_bundle(kind, "nano").path, tmp_path / "b")
    bundle = runnable(Bundle.open(tmp_path / "b"))
    images = [*photographs(), photographs()[1][:50, :33]]
    task, size = bundle.manifest.detector().task(), bundle.manifest.input_size
    with open_parts(bundle) as parts:
        expected = [
            task.decode(parts.run(feeds), placement)
            for feeds, placement in (task.prepare(image, bucket=size) for image in images)
        ]
    with stand_in(bundle.path, runtime="tensorrt") as session:
        for image, wanted in zip(images, expected, strict=True):
            assert len(wanted) > 10
            assert_close(session.detect(image), wanted)
        session.verify()


@pytest.mark.vision("torchvision")
@pytest.mark.xdist_group("detectors in parts")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_engines_that_round_to_half_are_right_in_half_only(
    stand_in: Callable[..., Any], tmp_path: Path, precision: str
) -> None:
    """Engines that store half pass the limits of FP16, and are too far off for a bundle of FP32."""
    own = parts_bundle("retinanet", "rtx4090", precision)
    shutil.copytree(own.path, tmp_path / "b")
    for part, model in own.load_engine_parts():
        onnx.save(rounded_model(with_all_bodies(model), (), half_maskers=False), tmp_path / "b" / part.file)
    graphs = {part.file: model for part, model in Bundle.open(tmp_path / "b").load_engine_parts()}
    write_engine_plans(tmp_path / "b", graphs, load_target("nano"), precision)
    rounded = runnable(Bundle.open(tmp_path / "b"))
    task, size = own.manifest.detector().task(), own.manifest.input_size
    image = photographs()[0]
    with open_parts(own) as parts:
        feeds, placement = task.prepare(image, bucket=size)
        expected = task.decode(parts.run(feeds), placement)
    with stand_in(rounded.path, runtime="tensorrt") as session:
        found = session.detect(image)
        difference = compare(Detections(found.boxes, found.scores, found.labels, found.masks), expected)
        assert (difference.matched, difference.missed, difference.extra) == (100, 0, 0)
        # In pixels of the photograph, which is five times as large as the input.
        assert 0.05 < difference.box < 2.5
        if precision == "fp16":
            session.verify()
            return
        with pytest.raises(binding().DyndeployError, match="Detections on the reference inputs differ"):
            session.verify()


def test_a_damaged_program_is_told(stand_in: Callable[..., Any], tmp_path: Path) -> None:
    bundle = in_parts(detector_bundle_by_hand(tmp_path / "b", parts=True))
    program = bundle.path / "part1.npz"
    whole = program.read_bytes()
    error = binding().DyndeployError
    program.write_bytes(whole[:-9])
    with pytest.raises(error, match=r"is damaged: part1\.npz \(content does not match its checksum\)"):
        stand_in(bundle.path)
    sealed_again(bundle)
    with pytest.raises(error, match="is no host program"):
        stand_in(bundle.path)
    program.write_bytes(whole)
    info = bundle.manifest.detector()
    engine, host = info.parts
    for parts, said in (
        ((host, engine), "detection.parts must be parts whose inputs are there before them"),
        ((engine,), "detection.parts must be parts that give boxes as well"),
        ((engine, replace(host, outputs=host.outputs[::-1])), "part1.npz gives other tensors than bundle.json says"),
    ):
        path = resealed_anyhow(sealed_again(bundle), tmp_path / "changed", {"detection": replace(info, parts=parts)})
        with pytest.raises(error) as raised:
            stand_in(path)
        assert raised.value.code == DAMAGED and said in str(raised.value)


# ---------------------------------------------------------------- real networks


@pytest.mark.vision("torchvision", "transformers")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("retinanet", marks=one_worker),
        pytest.param("faster_rcnn", marks=one_worker),
        pytest.param("mask_rcnn", marks=one_worker),
        pytest.param("ddq_detr", marks=one_worker_of_queries),
        pytest.param("mask2former", marks=one_worker_of_queries),
    ],
)
def test_networks_find_what_they_find_in_python(
    open_session: Callable[..., Any], runtime_build: RuntimeBuild, kind: str
) -> None:
    bundle = detector_bundle(kind)
    images = [*photographs(), np.ascontiguousarray(np.rot90(photographs()[0])), photographs()[1][:50, :33]]
    with dyndeploy.open_bundle(bundle, runtime="onnxruntime") as session:
        library = session.network(bundle.manifest.input_size).info.native.path or "off"
        expected = list(session.detect_each(images))
    with open_session(bundle.path, native=library) as session:
        found = session.detect_all(images)
        session.verify()
    for one, wanted in zip(found, expected, strict=True):
        assert len(one) > 10
        assert_same(one, wanted)


# ---------------------------------------------------------------- bad input


def test_what_is_no_detector_or_no_image_is_refused(open_session: Callable[..., Any], tmp_path: Path) -> None:
    image = odd_sizes()[0]
    error = binding().DyndeployError
    with open_session(detector_bundle_by_hand(tmp_path / "b").path) as session:
        assert session.info["task"] == "detection"
        for call, code, said in (
            (lambda: session.classify(image), USAGE, "there is no class to tell. Use detect()"),
            (lambda: session.detect(image, (0, 5)), USAGE, "no side may be below 1"),
            (lambda: session.detect(tmp_path / "none.png"), INPUT, "none.png"),
            (lambda: session.detect(image[:0]), INPUT, "holds no RGB image"),
            (lambda: session.detect(image[..., 0]), INPUT, "An image is RGB bytes"),
        ):
            with pytest.raises(error) as raised:
                call()
            assert raised.value.code == code and said in str(raised.value)
        assert session.detect_all([]) == []
        assert len(session.detect(image)) > 0
    with open_session(tiny_bundle(tmp_path / "c").path) as session, pytest.raises(error) as raised:
        session.detect(image)
    assert raised.value.code == USAGE and "is no detector" in str(raised.value)


def test_outputs_that_make_no_sense_are_refused(open_session: Callable[..., Any], tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    def changed(name: str, value: npt.NDArray[Any]) -> Path:
        bundle = detector_bundle_by_hand(tmp_path / f"{name}{value.sum()}")
        model = bundle.load_model()
        kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])
        onnx.save(model, bundle.model)
        return resealed(bundle).path

    error = binding().DyndeployError
    for path, code, said in (
        (changed("classes", np.asarray(50, np.int64)), DAMAGED, "The detector's output 'labels' says"),
        (changed("corners", np.full((1, 6, 4), np.nan, np.float32)), NOT_FINITE, "'boxes' holds 24 NaN of 24 values"),
    ):
        with open_session(path) as session, pytest.raises(error) as raised:
            session.detect_all(odd_sizes())
        assert raised.value.code == code and said in str(raised.value)


def test_a_size_that_is_missing_or_another_is_told_when_it_is_needed(
    open_session: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b", **BUNDLES["sizes"])
    wide, tall = odd_sizes()[0], odd_sizes()[2]
    error = binding().DyndeployError
    shutil.rmtree(bundle.path / "96x64")
    with open_session(bundle.path) as session:
        assert len(session.detect(wide)) > 0
        with pytest.raises(error, match=r"96x64 does not exist: it is no bundle") as raised:
            session.detect(tall)
        assert raised.value.code == DAMAGED
    shutil.copytree(bundle.path / "64x64", bundle.path / "96x64")
    with open_session(bundle.path) as session, pytest.raises(error, match="holds another bundle than detector"):
        session.detect(tall)


def test_a_manifest_of_a_detector_is_checked_field_by_field(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "b", masks=True)
    info = bundle.manifest.detector()
    outputs = bundle.manifest.outputs
    for changes, said in (
        ({"detection": replace(info, category_ids=(1, 2))}, "detection.category_ids must be 3 numbers, or none"),
        ({"detection": replace(info, divisor=0)}, "detection.divisor must be a whole number of at least 1"),
        ({"detection": replace(info, std=(1.0, 0.0, 1.0))}, "detection.std must be positive"),
        ({"detection": replace(info, decoding="dots")}, "detection.decoding must be one of boxes, queries"),
        ({"detection": replace(info, detections=2)}, "outputs must be of at most detection.detections boxes"),
        ({"detection": replace(info, masks=False)}, "outputs must be those of a detector"),
        ({"outputs": (*outputs[:2], outputs[3], outputs[2], outputs[4])}, "outputs must be labels int64"),
        ({"detection": replace(info, buckets=())}, "detection.buckets must be a list that is not empty"),
        (
            {"detection": replace(info, buckets=(replace(info.buckets[0], size=(32, 32)),))},
            "detection.buckets must be the bundle's own size first",
        ),
        (
            {
                "detection": replace(
                    info, buckets=(*info.buckets, replace(info.buckets[0], folder="../x", size=(32, 32)))
                )
            },
            "detection.buckets must be folders that are named after their sizes",
        ),
    ):
        path = resealed_anyhow(bundle, tmp_path / "changed", changes)
        with pytest.raises(binding().DyndeployError) as raised:
            open_session(path)
        assert raised.value.code == DAMAGED and said in str(raised.value), str(raised.value)


def resealed_anyhow(bundle: Bundle, folder: Path, changes: dict[str, Any]) -> Path:
    """A copy whose manifest is changed, without Python's own checks."""
    from dyndeploy.bundle import MANIFEST
    from dyndeploy.bundle.manifest import sealed

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.path, folder)
    value = json.loads(json.dumps(replace(bundle.manifest, **changes).to_json()))
    (folder / MANIFEST).write_text(json.dumps(sealed(value)))
    return folder


@pytest.mark.parametrize("kind", ["sizes and a batch", "queries", "parts"])
def test_mutated_bundles_end_in_a_result_or_an_error(
    runtime_build: RuntimeBuild, onnxruntime_library: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"parts": True, "masks": True} if kind == "parts" else BUNDLES[kind]
    bundle = detector_bundle_by_hand(tmp_path / "b", **options)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(odd_sizes()[0]).save(images / "a.png")
    monkeypatch.setenv("DYNDEPLOY_ONNXRUNTIME", str(onnxruntime_library))
    for what in ("", "programs") if kind == "parts" else ("",):
        done = subprocess.run(
            [str(runtime_build.fuzzer), str(bundle.path), str(images), str(tmp_path / "scratch"), "150", "1", what],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert re.search(r"150 mutations: [1-9]\d* results, [1-9]\d* errors", done.stdout)
