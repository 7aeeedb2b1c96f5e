"""Stages one after the other: exits, order, compaction, one thread pool; engines on fakes of TensorRT."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.bundle import Bundle
from dyndeploy.confidences import confidences
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.runtimes import OnnxRuntimeSession, StagedSession, open_staged
from dyndeploy.runtimes.staged import first_reached
from tests.bundles import tiny_bundle
from tests.runtimes.fake_tensorrt import VERSIONS, World, install_fakes
from tests.staged_bundles import CLASSES, EXITS, every_exit, images, staged_bundle

PICTURES = images(16)
REFERENCE = every_exit(PICTURES)
CONFIDENCES = np.stack([confident for _, confident in REFERENCE])
NEVER = (2.0, 2.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return staged_bundle(tmp_path_factory.mktemp("staged") / "b")


@pytest.fixture(scope="module")
def batches_of_three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return staged_bundle(tmp_path_factory.mktemp("staged") / "b", batch=3)


def check(session: StagedSession, chosen: list[int], thresholds: tuple[float, ...]) -> None:
    """Compare with every image going its way alone."""
    result = session.run(PICTURES[chosen])
    for row, index in enumerate(chosen):
        stage = next(k for k, limit in enumerate((*thresholds, -np.inf)) if CONFIDENCES[k, index] >= np.float32(limit))
        assert result.exits[row] == EXITS[stage]
        np.testing.assert_allclose(result.logits[row], REFERENCE[stage][0][index], atol=1e-5)
        np.testing.assert_allclose(result.confidences[row], CONFIDENCES[stage, index], atol=1e-6)


def test_the_images_leave_at_different_stages() -> None:
    assert CONFIDENCES.std(1).min() > 0.05
    assert len(set(first_reached(CONFIDENCES, (0.6, 0.87, -np.inf)))) == 3


apart = st.floats(0, 1).filter(lambda value: np.abs(CONFIDENCES - value).min() > 1e-5)
"""Thresholds that no confidence is within rounding of."""


@settings(max_examples=60, deadline=None)
@given(thresholds=st.tuples(apart, apart), chosen=st.lists(st.integers(0, 15), min_size=1, max_size=8))
def test_exits_are_exact_and_in_order(bundle: Bundle, thresholds: tuple[float, float], chosen: list[int]) -> None:
    with open_staged(bundle, thresholds=thresholds) as session:
        check(session, chosen, thresholds)


@settings(max_examples=20, deadline=None)
@given(thresholds=st.tuples(apart, apart), chosen=st.lists(st.integers(0, 15), min_size=1, max_size=8))
def test_static_batches_are_filled_up(
    batches_of_three: Bundle, thresholds: tuple[float, float], chosen: list[int]
) -> None:
    with open_staged(batches_of_three, thresholds=thresholds) as session:
        check(session, chosen, thresholds)
        with pytest.raises(UsageError, match="batches of 3"):
            session.bind(PICTURES[:1])


def test_a_confidence_equal_to_its_threshold_leaves(bundle: Bundle) -> None:
    with open_staged(bundle, thresholds=NEVER) as session:
        session.run(PICTURES[:1])
        confidence = float(confidences(session.run_all(PICTURES[:1])[0])[0])
    with OnnxRuntimeSession(bundle.stages[0]) as first:
        confidence = float(first.run({"images": PICTURES[:1]})["confidence"][0])
    for above, exit in ((0.0, 1), (1e-6, 2)):
        with open_staged(bundle, thresholds=(confidence + above, 0.0)) as session:
            assert session.run(PICTURES[:1]).exits.tolist() == [exit]


@pytest.mark.parametrize("count", [1, 5])
def test_run_all(bundle: Bundle, batches_of_three: Bundle, count: int) -> None:
    for opened in (bundle, batches_of_three):
        with open_staged(opened) as session:
            for got, (expected, _) in zip(session.run_all(PICTURES[:count]), REFERENCE, strict=True):
                np.testing.assert_allclose(got, expected[:count], atol=1e-5)


def test_bound_runs(bundle: Bundle) -> None:
    with open_staged(bundle) as session:
        assert session.thresholds == pytest.approx((0.5, 0.4, -np.inf))
        assert [session.bind(PICTURES[:1], stage=stage)() for stage in range(3)] == [0, 1, 2]
        own = first_reached(CONFIDENCES, session.thresholds or ())
        assert [session.bind(PICTURES[i : i + 1])() for i in range(16)] == own.tolist()
        with pytest.raises(UsageError, match="Stage 3"):
            session.bind(PICTURES[:1], stage=3)
        with pytest.raises(InputError, match="One image"):
            session.bind(PICTURES[:2])


def test_confidences_are_those_of_the_stages() -> None:
    for logits, confident in REFERENCE:
        np.testing.assert_allclose(confidences(logits), confident, rtol=1e-6)
    assert confidences(np.array([[1e30, 0]], np.float32)) == [1]


def test_what_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    without = staged_bundle(tmp_path / "without", thresholds=None)
    with open_staged(without) as session:
        assert len(session.run_all(PICTURES[:1])) == 3
        with pytest.raises(UsageError, match="dyndeploy calibrate"):
            session.run(PICTURES[:1])
        with pytest.raises(InputError, match="at least one"):
            session.run_all(PICTURES[:0])
        with pytest.raises(InputError, match="expected float32"):
            session.run_all(PICTURES[:, :2])
    with pytest.raises(DyndeployError, match="closed"):
        session.run_all(PICTURES[:1])
    session.close()
    for wrong, message in (((0.5,), "1 thresholds"), ((0.5, 0.5, 0.5), "always takes"), ((np.nan, 0.5), "finite")):
        with pytest.raises(UsageError, match=message):
            open_staged(bundle, thresholds=wrong)
    with pytest.raises(UsageError, match="Did you mean 'onnxruntime'"):
        open_staged(bundle, "onnxruntme")
    with pytest.raises(UsageError, match="no exits"):
        open_staged(tiny_bundle(tmp_path / "masks"))


_COUNT_THREADS = """
import os, sys
import numpy as np
import onnxruntime  # brings a thread of its own
from dyndeploy.errors import UsageError
from dyndeploy.runtimes import OnnxRuntimeSession, open_staged
bundle, how = sys.argv[1:]
def threads():
    return len(os.listdir("/proc/self/task"))
if how == "late":
    earlier = OnnxRuntimeSession(f"{bundle}/stage0.onnx", threads=1)
before = threads()
if how == "own":
    opened = [OnnxRuntimeSession(f"{bundle}/stage{k}.onnx", threads=2) for k in range(3)]
    print(threads() - before)
else:
    session = open_staged(bundle, threads=2)
    session.run(np.ones((2, 3, 8, 8), np.float32))
    later = OnnxRuntimeSession(f"{bundle}/stage0.onnx", threads=2)
    print(threads() - before, repr(session.note))
    try:
        OnnxRuntimeSession(f"{bundle}/stage0.onnx", threads=1)
    except UsageError as error:
        print("share a pool of 2 threads" in str(error))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
@pytest.mark.parametrize(
    ("how", "expected"), [("own", ["3"]), ("shared", ["1 ''", "True"]), ("late", ["1 ''", "True"])]
)
def test_stages_share_one_thread_pool(how: str, expected: list[str], bundle: Bundle) -> None:
    output = subprocess.check_output([sys.executable, "-c", _COUNT_THREADS, str(bundle.path), how], text=True)
    assert output.splitlines() == expected


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], World]:
    return lambda version: install_fakes(monkeypatch, version, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_hand_tensors_on_where_they_lie(
    version: str, install: Callable[[str], World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = install(version)
    driver = sys.modules["pycuda.driver"]
    transfers: list[tuple[str, int]] = []
    for name, label, position in (("memcpy_htod_async", "up", 1), ("memcpy_dtoh_async", "down", 0)):
        copy = getattr(driver, name)

        def counted(*arguments: object, copy: object = copy, label: str = label, position: int = position) -> None:
            transfers.append((label, arguments[position].nbytes))  # type: ignore[attr-defined]
            copy(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(driver, name, counted)
    single = staged_bundle(tmp_path / "single", batch=1)
    thresholds = (0.6, 0.87)
    with open_staged(single, "tensorrt", thresholds=thresholds) as session:
        assert session.info.runtime == "tensorrt"
        check(session, list(range(16)), thresholds)
        for stage in range(3):
            chosen = first_reached(CONFIDENCES, (*thresholds, -np.inf)).tolist().index(stage)
            transfers.clear()
            session.run(PICTURES[chosen : chosen + 1])
            # One image up, one float down per stage, and the logits of the exit that was taken.
            assert transfers == [("up", PICTURES[0].nbytes), *[("down", 4)] * (stage + 1), ("down", 4 * CLASSES)]
    assert len(world.builds) == 3
    assert not world.memory and world.contexts == 0, "nothing is left on the device, nothing is freed twice"


def test_engines_with_static_batches(install: Callable[[str], World], batches_of_three: Bundle) -> None:
    world = install("8.2.1.8")
    with open_staged(batches_of_three, "tensorrt", thresholds=(0.6, 0.87)) as session:
        check(session, list(range(7)), (0.6, 0.87))
    assert not world.memory and world.contexts == 0
