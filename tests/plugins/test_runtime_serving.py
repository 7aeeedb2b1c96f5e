"""Images of many callers through ``submit`` and ``poll`` of the C++ runtime: each has the result it has alone."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from dyndeploy.runtimes import open_staged
from tests.bundles import resealed, tiny_bundle
from tests.detector_bundles import detector_bundle_by_hand
from tests.plugins.conftest import RuntimeBuild
from tests.plugins.device_runtime import binding
from tests.staged_bundles import every_exit, images, staged_bundle

pytestmark = pytest.mark.usefixtures("onnxruntime_library")

USAGE, INPUT, NOT_FINITE, BUSY, CLOSED = 1, 3, 4, 9, 10
SECONDS = 60.0
"""After so long without a result a test fails instead of hanging."""


@pytest.fixture
def open_session(runtime_build: RuntimeBuild) -> Callable[..., Any]:
    return functools.partial(binding().open_bundle, library=runtime_build.library)


def noise(count: int, size: tuple[int, int] = (40, 50)) -> list[npt.NDArray[np.uint8]]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def mixed(pictures: npt.NDArray[np.float32]) -> list[float]:
    """Thresholds that half of the pictures reach at each exit."""
    return [float(np.median(confidence)) for _, confidence in every_exit(pictures)[:-1]]


def collected(session: Any, count: int) -> dict[int, Any]:
    """So many completions by their tokens."""
    found: dict[int, Any] = {}
    while len(found) < count:
        some = session.poll(SECONDS)
        assert some, f"{len(found)} of {count} results came"
        found.update((one.token, one) for one in some)
    return found


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("largest", [1, 2, 8])
def test_early_exits_are_those_of_single_images(
    open_session: Callable[..., Any], tmp_path: Path, batch: int | None, largest: int
) -> None:
    bundle = staged_bundle(tmp_path / "bundle", batch=batch)
    pictures = images(40)
    thresholds = mixed(pictures)
    with open_staged(bundle, thresholds=thresholds) as session:
        expected = session.run(pictures)
    with open_session(bundle.path, thresholds=thresholds) as session:
        session.serve(largest_batch=largest)
        for index, picture in enumerate(pictures):
            session.submit(picture, token=index)
        found = collected(session, len(pictures))
        steps = session.statistics()["serving"]["steps"]
    for index, one in found.items():
        assert one.error is None
        assert one.result.exit == expected.exits[index]
        # ONNX Runtime's Gemm takes another path for one row: these are not our kernels.
        np.testing.assert_allclose(one.result.logits, expected.logits[index], rtol=1e-5, atol=1e-5)
        assert 1 <= one.rows <= min(largest, batch or largest)
        assert 0 <= one.queue_ms <= one.latency_ms
    # Every stage computed on the images that reached it, and on no others.
    reached = [int((expected.exits >= number).sum()) for number in (1, 2, 4)]
    assert [step["rows"] for step in steps] == reached
    assert len(set(expected.exits)) == 3


@pytest.mark.parametrize(("mode", "batch"), [("spatial", 1), ("channel", 1), ("layer", 1), ("spatial", 3)])
def test_networks_of_dynamic_operators_give_the_same_bits(
    open_session: Callable[..., Any], tmp_path: Path, mode: str, batch: int
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", mode=mode, batch=batch)
    pictures = noise(10)
    with open_session(bundle.path, native="off") as session:
        expected = session.classify_all(pictures)
        for index, picture in enumerate(pictures):
            session.submit(picture, token=index)
        found = collected(session, len(pictures))
    for index, one in found.items():
        np.testing.assert_array_equal(one.result.logits, expected[index].logits)
        assert one.result[:4] == expected[index][:4]
        assert one.result.rates == expected[index].rates


@pytest.mark.vision("cv2", "pycocotools")
@pytest.mark.parametrize(
    "options",
    [
        {"masks": True},
        {"queries": True, "rounding": False},
        {"sizes": ((96, 96), (64, 64)), "batch": 2, "masks": True},
        {"sizes": ((64, 96), (96, 64), (64, 64))},
    ],
)
def test_detectors_answer_the_same_calls(
    open_session: Callable[..., Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    bundle = detector_bundle_by_hand(tmp_path / "bundle", **options)
    pictures = [picture for size in ((64, 96), (96, 64), (30, 31)) for picture in noise(4, size)]
    with open_session(bundle.path) as session:
        expected = session.detect_all(pictures)
        smaller = session.detect(pictures[0], size=(48, 32))
        for index, picture in enumerate(pictures):
            session.submit(picture, token=index)
        session.submit(pictures[0], size=(48, 32), token=len(pictures))
        found = collected(session, len(pictures) + 1)
        with pytest.raises(binding().DyndeployError, match="float32"):
            session.submit(np.zeros((3, 64, 96), np.float32))
    assert any(len(one) for one in expected)
    for index, one in found.items():
        wanted = [*expected, smaller][index]
        np.testing.assert_array_equal(one.result.boxes, wanted.boxes)
        np.testing.assert_array_equal(one.result.scores, wanted.scores)
        np.testing.assert_array_equal(one.result.labels, wanted.labels)
        assert one.result.counts == wanted.counts
        assert one.result.rates == wanted.rates
        assert (one.result.input_size, one.result.resized) == (wanted.input_size, wanted.resized)


def test_files_bytes_and_arrays_are_one_image(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", mode="spatial")
    [pixels] = noise(1)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    with open_session(bundle.path, native="off") as session:
        ways = [pixels, path, str(path), path.read_bytes(), session.preprocess(pixels)]
        for index, way in enumerate(ways):
            session.submit(way, token=index)
        found = collected(session, len(ways))
        expected = session.classify(pixels)
    for one in found.values():
        np.testing.assert_array_equal(one.result.logits, expected.logits)


def test_wrong_images_are_refused_and_the_others_answered(open_session: Callable[..., Any], tmp_path: Path) -> None:
    error = binding().DyndeployError
    bundle = staged_bundle(tmp_path / "bundle")
    wrong: list[tuple[Any, str]] = [
        (tmp_path / "missing.png", "missing.png"),
        (b"no image", "the given file is not an image"),
        (b"", "the given file is not an image"),
        (b"\xff\xd8\xff\xe0 cut off", "may be damaged"),
        (np.zeros((3, 4, 4), np.float32), "not the network's input"),
        (np.full((3, 8, 8), np.nan, np.float32), "192 NaN"),
        (np.zeros((4, 4), np.uint8), "RGB bytes"),
        (np.zeros((0, 4, 3), np.uint8), "holds no RGB image"),
    ]
    with open_session(bundle.path) as session:
        session.serve(queue_limit=2)
        for image, words in wrong:
            with pytest.raises(error, match=words) as raised:
                session.submit(image)
            assert raised.value.code == INPUT
        # None of them holds a place, and what was refused is forgotten.
        for picture in images(2):
            session.submit(picture, token=0)
        with pytest.raises(error, match="2 images wait, run or were not polled") as raised:
            session.submit(images(1)[0])
        assert raised.value.code == BUSY == binding().BUSY
        time.sleep(0.01)
        assert len(session.poll(SECONDS) + session.poll(0.5, most=1)) == 2
        assert session._submitted == {}
        assert session.poll(0) == []
        with pytest.raises(error, match="before the first"):
            session.serve()
    with pytest.raises(error, match="closed"):
        session.submit(images(1)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue_limit": -1}, "not be below 0"),
        ({"queue_limit": 1 << 21}, "queue_limit=2097152"),
        ({"largest_batch": 5000}, "largest_batch=5000"),
        ({"latency_ms": -1.0}, "latency_ms"),
        ({"latency_ms": float("nan")}, "latency_ms"),
        ({"patience": -0.5}, "patience"),
    ],
)
def test_policies_that_make_no_sense_are_refused(
    open_session: Callable[..., Any], tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with open_session(staged_bundle(tmp_path / "bundle").path) as session:
        with pytest.raises(binding().DyndeployError, match=words) as raised:
            session.serve(**options)
        assert raised.value.code == USAGE
        session.serve()


def test_an_image_that_a_damaged_weight_spoils_fails_alone(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    # The last stage only: who leaves before has a result.
    model = onnx.load(bundle.path / "stage2.onnx")
    [bias] = [value for value in model.graph.initializer if value.name == "head/b"]
    bias.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), "head/b"))
    onnx.save(model, bundle.path / "stage2.onnx")
    bundle = resealed(bundle)
    pictures = images(40)
    thresholds = mixed(pictures)
    with open_staged(staged_bundle(tmp_path / "whole"), thresholds=thresholds) as session:
        exits = session.run(pictures).exits
    with open_session(bundle.path, thresholds=thresholds) as session:
        for index, picture in enumerate(pictures):
            session.submit(picture, token=index)
        found = collected(session, len(pictures))
    assert {exits[index] for index, one in found.items() if one.error} == {4}
    for index, one in found.items():
        assert (one.result is None) == (exits[index] == 4)
        if one.error:
            assert one.error.code == NOT_FINITE
            assert "exit 4: logits" in str(one.error)


def test_cancelled_images_never_come(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    pictures = images(30)
    with open_session(bundle.path) as session:
        tickets = [session.submit(picture, token=index) for index, picture in enumerate(pictures)]
        for ticket in tickets[::2]:
            session.cancel(ticket)
        found = collected(session, 15)
        assert sorted(found) == list(range(1, 30, 2))
        assert session.poll(0) == []
        for ticket in (tickets[0], tickets[1], 12345):
            with pytest.raises(binding().DyndeployError, match="No image of ticket") as raised:
                session.cancel(ticket)
            assert raised.value.code == USAGE
        assert session._submitted == {}
        assert session.statistics()["serving"]["under_way"] == 0


def test_many_threads_get_their_own_results(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    pictures = images(24)
    thresholds = mixed(pictures)
    with open_staged(bundle, thresholds=thresholds) as session:
        exits = session.run(pictures).exits
    found, wrong = [], []
    with open_session(bundle.path, thresholds=thresholds) as session:
        session.serve(queue_limit=10, largest_batch=4, latency_ms=20)

        def submitting(offset: int) -> None:
            for step in range(50):
                index = (offset + step) % len(pictures)
                while True:
                    try:
                        session.submit(pictures[index], token=index)
                        break
                    except binding().DyndeployError as error:
                        if error.code != BUSY:
                            wrong.append(str(error))
                            return
                        time.sleep(0.001)

        def polling() -> None:
            try:
                while True:
                    for one in session.poll(most=5):
                        found.append(one.token)
                        if one.error or one.result.exit != exits[one.token]:
                            wrong.append(one)
            except binding().DyndeployError as error:
                if error.code != CLOSED:
                    wrong.append(str(error))

        pollers = [threading.Thread(target=polling) for _ in range(2)]
        submitters = [threading.Thread(target=submitting, args=(5 * offset,)) for offset in range(4)]
        for thread in itertools.chain(pollers, submitters):
            thread.start()
        for thread in submitters:
            thread.join()
        deadline = time.monotonic() + SECONDS
        while len(found) < 200 and time.monotonic() < deadline:
            time.sleep(0.01)
    # Closing ended those that waited.
    for thread in pollers:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert wrong == []
    assert len(found) == 200


def test_closing_drops_what_waits(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    for _ in range(20):
        session = open_session(bundle.path)
        for picture in images(30):
            session.submit(picture)
        session.close()
