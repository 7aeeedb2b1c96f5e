"""The C++ runtime against the Python path: results to the bit, on a bundle of every kind; and bad input."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from dyndeploy.bundle import MANIFEST, REFERENCE, Bundle, write_manifest
from dyndeploy.bundle.manifest import sealed
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.confidences import confidences
from dyndeploy.inference import classify, run_inputs
from dyndeploy.precisions import PRECISIONS
from dyndeploy.runtimes import OnnxRuntimeSession, open_staged
from tests.bundles import many_bundle, resealed, tiny_bundle, tiny_models, with_reference
from tests.plugins.conftest import RuntimeBuild
from tests.plugins.device_runtime import BINDING, binding
from tests.quantized import exported
from tests.staged_bundles import images, staged_bundle

pytestmark = pytest.mark.usefixtures("onnxruntime_library")

USAGE, DAMAGED, INPUT, NOT_FINITE, BACKEND = 1, 2, 3, 4, 5
CONFIDENCE_ULPS = 8
"""NumPy's exponential of float32 is not libm's: a confidence may differ in its last bits. Nothing else may."""


@pytest.fixture
def open_session(runtime_build: RuntimeBuild) -> Callable[..., Any]:
    return functools.partial(binding().open_bundle, library=runtime_build.library)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Five photographs of noise whose contrast differs."""
    generator = np.random.default_rng(5)
    paths = []
    for index in range(5):
        pixels = generator.normal(128, 20 * (index + 1), (40 + 7 * index, 55 - 3 * index, 3)).clip(0, 255)
        paths.append(tmp_path / f"picture{index}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


def static_bundle(folder: Path) -> Bundle:
    """A network without masks or operators."""
    bundle = tiny_bundle(folder, static=False)
    _, twin, _ = tiny_models()
    onnx.save(twin, bundle.model)
    return resealed(bundle, masks=(), operators=())


def with_exit_logits(bundle: Bundle) -> Bundle:
    """The bundle with the logits of every exit as reference; ONNX Runtime stands for PyTorch."""
    pictures = bundle.reference()["input"]
    with open_staged(bundle) as session:
        logits = session.run_all(pictures)
    named = {exit_logits(stage.exit): value for stage, value in zip(bundle.exits.stages, logits, strict=True)}
    np.savez(bundle.path / REFERENCE, input=pictures, **named)
    return resealed(bundle)


BUNDLES: dict[str, Callable[[Path], Bundle]] = {
    **{mode: functools.partial(tiny_bundle, mode=mode) for mode in ("spatial", "layer", "channel", "both")},
    "static": static_bundle,
    "batch": functools.partial(tiny_bundle, mode="spatial", batch=3),
    "many": many_bundle,
}


@pytest.mark.parametrize("native", ["auto", "off"])
@pytest.mark.parametrize("kind", BUNDLES)
def test_tensors_equal_pythons_to_the_bit(
    open_session: Callable[..., Any], tmp_path: Path, kind: str, native: str
) -> None:
    bundle = BUNDLES[kind](tmp_path / "bundle")
    batch = bundle.manifest.batch
    feeds = {name: value[:batch] for name, value in bundle.reference_inputs().items()}
    with OnnxRuntimeSession(bundle.model, native=native) as session:
        expected = session.run(feeds)
        # The library that comes with the package lies where only Python looks.
        library = session.info.native.path or "off"
    with open_session(bundle.path, native=library) as session:
        got = session.run(feeds)
        [some] = session.run(feeds, ["logits"]).items()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    assert some[0] == "logits"
    [result] = run_inputs(bundle, [feeds], native=native)
    statistics = session.info  # of what was opened; it outlives the session
    assert statistics["masks"] == list(result.rates)


@pytest.mark.parametrize("native", ["auto", "off"])
def test_int8_bundles_equal_pythons_to_the_bit(
    open_session: Callable[..., Any], runtime_build: RuntimeBuild, tmp_path: Path, native: str
) -> None:
    bundle = exported(tmp_path, mode="both", batch=2)[1]
    feeds = {name: value[:2] for name, value in bundle.reference_inputs().items()}
    with OnnxRuntimeSession(bundle.model, native=native, precision="int8") as session:
        expected, used = session.run(feeds), session.info.native
    library = used.path or "off"
    with open_session(bundle.path, native=library) as session:
        got, info = session.run(feeds), session.info
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    assert info["precision"] == "int8" and info["instruction_set"] == (used.instruction_set or "")
    done = run_program(runtime_build, bundle.path, "--verify", "--native", library)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["spatial", "channel", "static", "batch"])
def test_images_are_classified_as_in_python(
    open_session: Callable[..., Any], tmp_path: Path, pictures: list[Path], kind: str
) -> None:
    bundle = BUNDLES[kind](tmp_path / "bundle")
    expected = classify(bundle, pictures)
    with open_session(bundle.path) as session:
        got = session.classify_all(pictures)
        alone = session.classify(pictures[0])
        arrays = session.classify_all([np.asarray(Image.open(path)) for path in pictures])
        statistics = session.statistics()
    assert [found.label for found in got] == [found.label for found in expected] == [found.label for found in arrays]
    assert [found.rates for found in got] == [found.rates for found in expected]
    assert alone.label == got[0].label
    np.testing.assert_array_max_ulp(
        np.array([found.confidence for found in got], np.float32),
        np.array([found.confidence for found in expected], np.float32),
        CONFIDENCE_ULPS,
    )
    assert statistics["images"] == 2 * len(pictures) + 1
    for mask, rate in statistics["rates"].items():
        mean = np.mean([found.rates[mask] for found in [*expected, expected[0], *expected]])
        assert rate == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize(
    "thresholds",
    [(-1.0, -1.0), (2.0, 2.0), (2.0, -1.0), (0.5, 0.4), None],
    ids=["first", "last", "second", "mixed", "own"],
)
def test_early_exits_equal_pythons_to_the_bit(
    open_session: Callable[..., Any], tmp_path: Path, batch: int | None, thresholds: tuple[float, float] | None
) -> None:
    bundle = staged_bundle(tmp_path / "bundle", batch=batch)
    pictures = images(11)
    with open_staged(bundle, thresholds=thresholds) as session:
        expected = [session.run(part) for part in (pictures[:4], pictures[4:5], pictures)]
    with open_session(bundle.path, thresholds=thresholds) as session:
        size = batch or len(pictures)
        chunks = [(0, 4), (4, 5), (0, 11)]
        for (start, end), result in zip(chunks, expected, strict=True):
            some = pictures[start:end]
            parts = [some[i : i + size] for i in range(0, len(some), size)]
            logits = np.concatenate([session.run({"images": part})["logits"] for part in parts])
            np.testing.assert_array_equal(logits, result.logits)
        counted = session.statistics()["exits"]
    taken = np.concatenate([result.exits for result in expected])
    assert counted == {str(number): int((taken == number).sum()) for number in (1, 2, 4)}


def test_a_threshold_that_is_met_exactly_is_reached(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    picture = images(1)
    with open_staged(bundle, thresholds=(-1.0, -1.0)) as session:
        confidence = float(session.run(picture).confidences[0])
    above = float(np.nextafter(np.float32(confidence), np.float32(2)))
    for threshold, number in ((confidence, "1"), (above, "2")):
        with open_session(bundle.path, thresholds=(threshold, -1.0)) as session:
            session.run({"images": picture})
            assert session.statistics()["exits"][number] == 1


def test_threads_share_a_session(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    pictures = images(12)
    with open_staged(bundle) as session:
        expected = [session.run(pictures[i : i + 3]).logits for i in range(9)]
    wrong: list[int] = []
    with open_session(bundle.path) as session:

        def work(offset: int) -> None:
            for k in range(60):
                i = (offset + k) % 9
                if not np.array_equal(session.run({"images": pictures[i : i + 3]})["logits"], expected[i]):
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.statistics()["images"] == 4 * 60 * 3
    assert wrong == []


# ---------------------------------------------------------------- the program


def run_program(
    build: RuntimeBuild, *arguments: object, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    import onnxruntime

    capi = Path(onnxruntime.__file__).parent / "capi"
    done = subprocess.run(
        [str(build.program), *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=120,
        env={**os.environ, "DYNDEPLOY_ONNXRUNTIME": str(capi), **environment},
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_the_program_prints_what_dyndeploy_run_prints(
    runtime_build: RuntimeBuild, tmp_path: Path, pictures: list[Path]
) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    expected = [found.to_json() for found in classify(bundle, pictures)]
    (tmp_path / "notes.txt").write_text("no image")
    done = run_program(runtime_build, bundle.path, tmp_path, "--json", "--repeat", 3, "--statistics")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for line, wanted in zip(lines, expected, strict=True):
        assert set(wanted) | {"preprocessing_ms", "repeats"} == set(line)
        assert line["ms"] > 0
        assert {key: line[key] for key in ("image", "label", "exit", "rates", "class_name", "operators")} == {
            key: wanted[key] for key in ("image", "label", "exit", "rates", "class_name", "operators")
        }
        assert line["confidence"] == pytest.approx(wanted["confidence"], rel=1e-6)
    assert json.loads(done.stderr)["images"] == 3 * len(pictures)


def test_an_image_that_fails_is_named_and_the_rest_goes_on(
    runtime_build: RuntimeBuild, tmp_path: Path, pictures: list[Path]
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", batch=3)
    missing = tmp_path / "missing.png"
    done = run_program(runtime_build, bundle.path, pictures[0], missing, *pictures[1:], "--json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == [str(path) for path in (pictures[0], missing, *pictures[1:])]
    assert "error" in lines[1]
    assert [line["label"] for line in lines if "label" in line] == [found.label for found in classify(bundle, pictures)]
    assert "1 of 6 images failed" in done.stderr


def test_frames_of_a_camera_are_read_from_a_pipe(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    frames = np.random.default_rng(2).integers(0, 256, (4, 30, 41, 3), np.uint8)
    paths = [tmp_path / f"frame{index}.png" for index in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    done = run_program(runtime_build, bundle.path, "--frames", "30x41", "--json", stdin=frames.tobytes())
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == [f"frame {index}" for index in range(4)]
    for line, wanted in zip(lines, classify(bundle, paths), strict=True):
        assert (line["label"], line["rates"]) == (wanted.label, wanted.rates)
    assert "4 frames in" in done.stderr
    for content, said in (
        (b"", "No frame came"),
        (frames.tobytes()[:-1], "The stream ended within frame 3: 3689 of 3690"),
    ):
        done = run_program(runtime_build, bundle.path, "--frames", "30x41", stdin=content)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bundle", "--frames", "30"), "--frames takes HEIGHTxWIDTH"),
        (("bundle", "--frames", "30x0"), "--frames takes HEIGHTxWIDTH"),
        (("bundle", "x.png", "--frames", "30x40"), "and not both"),
        ((), "Give the folder of a bundle"),
        (("bundle",), "Give an image"),
        (("bundle", "x.png", "--repeat", "0"), "--repeat takes a whole number"),
        (("bundle", "x.png", "--nonsense"), "'--nonsense' is no option"),
        (("bundle", "x.png", "--thresholds", "0.5,x"), "--thresholds takes numbers"),
        (("bundle", "x.png", "--threads", "100000"), "threads=100000 is not valid"),
        (("bundle", "x.png", "--thresholds", "0.5"), "has no exits"),
        (("bundle", "x.png", "--native", "nowhere.so"), "no operator library at nowhere.so"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_one_line(
    runtime_build: RuntimeBuild, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    done = run_program(runtime_build, *(str(bundle.path) if a == "bundle" else a for a in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_verify_compares_with_the_reference(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    bundle = with_reference(tiny_bundle(tmp_path / "bundle", mode="both"))
    done = run_program(runtime_build, bundle.path, "--verify")
    assert (done.returncode, "2 reference inputs" in done.stderr) == (0, True), done.stderr
    reference = bundle.reference()
    spoiled = {**reference, "logits": reference["logits"] * 1.01}
    np.savez_compressed(bundle.path / "reference.npz", **spoiled)
    resealed(bundle)
    done = run_program(runtime_build, bundle.path, "--verify")
    assert done.returncode == 1
    assert "'logits' differs from PyTorch's" in done.stderr
    staged = with_exit_logits(staged_bundle(tmp_path / "staged", batch=4))
    done = run_program(runtime_build, staged.path, "--verify")
    assert (done.returncode, "16 reference inputs" in done.stderr) == (0, True), done.stderr
    flipped = {**reference, "mask/layer1.0/spatial": 1 - reference["mask/layer1.0/spatial"]}
    np.savez(bundle.path / "reference.npz", **flipped)
    resealed(bundle)
    assert "was no tie" in run_program(runtime_build, bundle.path, "--verify").stderr


# ---------------------------------------------------------------- bad input


def refusal(open_session: Callable[..., Any], path: Path, **options: Any) -> tuple[int, str]:
    with pytest.raises(binding().DyndeployError) as raised:
        open_session(path, **options)
    assert "\n" not in str(raised.value)
    return raised.value.code, str(raised.value)


def test_bundles_that_are_not_whole_are_refused(open_session: Callable[..., Any], tmp_path: Path) -> None:
    whole = tiny_bundle(tmp_path / "whole")

    def spoiled(name: str, spoil: Callable[[Path], object]) -> tuple[int, str]:
        folder = tmp_path / f"spoiled_{name}"
        shutil.copytree(whole.path, folder)
        spoil(folder)
        return refusal(open_session, folder)

    def cut(folder: Path) -> None:
        model = folder / "model.onnx"
        model.write_bytes(model.read_bytes()[:-100])

    def changed(folder: Path) -> None:
        model = folder / "model.onnx"
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)

    def edited(folder: Path) -> None:
        manifest = folder / MANIFEST
        manifest.write_text(manifest.read_text().replace('"batch": 1', '"batch": 2'))

    def newer(folder: Path) -> None:
        value = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(sealed({**value, "schema_version": 2})))

    assert refusal(open_session, tmp_path / "nowhere") == (
        DAMAGED, f"{tmp_path / 'nowhere'} does not exist: it is no bundle. "
        "Copy the whole folder that 'dyndeploy export' wrote.",
    )  # fmt: skip
    code, text = spoiled("missing", lambda folder: (folder / "model.onnx").unlink())
    assert (code, "model.onnx (missing)" in text) == (DAMAGED, True)
    for name, spoil in (("cut", cut), ("changed", changed)):
        code, text = spoiled(name, spoil)
        assert (code, "model.onnx (content does not match its checksum)" in text) == (DAMAGED, True)
    code, text = spoiled("edited", edited)
    assert (code, "does not match its checksum" in text) == (DAMAGED, True)
    code, text = spoiled("newer", newer)
    assert (code, "schema version 2; this release reads version 1" in text) == (DAMAGED, True)
    code, text = spoiled("empty", lambda folder: (folder / MANIFEST).write_text(""))
    assert (code, "no valid JSON" in text) == (DAMAGED, True)
    code, text = spoiled("other", lambda folder: (folder / "model.onnx").write_bytes(b"no graph"))
    assert (code, "model.onnx (content does not match its checksum)" in text) == (DAMAGED, True)


def test_what_is_no_graph_or_another_one_is_refused(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    bundle.model.write_bytes(b"no graph")
    code, text = refusal(open_session, resealed(bundle).path)
    assert (code, "cannot load" in text) == (DAMAGED, True)
    bundle = tiny_bundle(tmp_path / "other", mode="channel")
    onnx.save(tiny_models("spatial")[0], bundle.model)
    code, text = refusal(open_session, resealed(bundle).path)
    assert (code, "model.onnx is not the graph that bundle.json describes" in text) == (DAMAGED, True)


def test_a_manifest_is_refused_field_by_field(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    content = json.loads((bundle.path / MANIFEST).read_text())

    def refused(change: Callable[[dict[str, Any]], object]) -> str:
        value = json.loads(json.dumps(content))
        change(value)
        (bundle.path / MANIFEST).write_text(json.dumps(sealed(value)))
        code, text = refusal(open_session, bundle.path)
        assert code == DAMAGED
        return text

    stages = "exits.stages"
    assert "batch is missing" in refused(lambda value: value.pop("batch"))
    assert "batch must be a whole number of at least 1, not 0" in refused(lambda value: value.update(batch=0))
    assert "precision must be a non-empty text" in refused(lambda value: value.update(precision=""))
    assert "input_size must be a list of 2" in refused(lambda value: value.update(input_size=[8]))
    assert "preprocessing.std must be positive" in refused(lambda value: value["preprocessing"].update(std=[1, 0, 1]))
    assert "one of nearest, bilinear" in refused(lambda value: value["preprocessing"].update(interpolation="magic"))
    assert 'files["../x"] must be a path inside the bundle' in refused(
        lambda value: value["files"].update({"../x": "0" * 64})
    )
    assert f"{stages}[1].exit must be in order" in refused(lambda value: value["exits"]["stages"][1].update(exit=1))
    assert "a list of 3" in refused(lambda value: value["exits"]["thresholds"]["fp32"].update(values=[0.5, None]))
    assert "null for the last stage" in refused(
        lambda value: value["exits"]["thresholds"]["fp32"].update(values=[0.5, 0.5, 0.5])
    )
    assert "files lists no checksum of stage1.onnx" in refused(lambda value: value["files"].pop("stage1.onnx"))
    assert "at most 8 axes" in refused(lambda value: value["inputs"][0].update(shape=[1] * 9))


def test_thresholds_of_the_wrong_number_and_missing_ones(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "bundle")
    code, text = refusal(open_session, bundle.path, thresholds=(0.5,))
    assert (code, text.startswith("1 thresholds are given for 3 stages")) == (USAGE, True)
    code, text = refusal(open_session, bundle.path, thresholds=(0.5, float("nan")))
    assert (code, "finite" in text) == (USAGE, True)
    bare = staged_bundle(tmp_path / "bare", thresholds=None)
    code, text = refusal(open_session, bare.path)
    assert (code, "no exit thresholds for fp32" in text) == (USAGE, True)


def test_a_model_that_computes_nan_gives_no_answer(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    model = bundle.load_model()
    [bias] = [value for value in model.graph.initializer if value.name == "head.b"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan] * 2 + [0.0] * 8, np.float32), "head.b"))
    onnx.save(model, bundle.model)
    with open_session(resealed(bundle).path) as session:
        with pytest.raises(binding().DyndeployError, match="'logits' holds 2 NaN of 10 values") as raised:
            session.run({"input": np.zeros((1, 3, 16, 16), np.float32)})
        assert raised.value.code == NOT_FINITE
        with pytest.raises(binding().DyndeployError, match="expected finite numbers, got 768 NaN") as raised:
            session.run({"input": np.full((1, 3, 16, 16), np.nan, np.float32)})
        assert raised.value.code == INPUT


def test_inputs_that_do_not_fit_are_described(open_session: Callable[..., Any], tmp_path: Path) -> None:
    bundle = many_bundle(tmp_path / "bundle")
    image, gain = np.zeros((1, 3, 16, 16), np.float32), np.ones((1, 8, 1, 1), np.float32)
    module = binding()
    with open_session(bundle.path) as session:
        for feeds, said in (
            ({"input": image}, "The input 'gain/stem' is missing"),
            ({"input": image[:, :2], "gain/stem": gain}, r"float32 \(1, 3, 16, 16\), got float32 \(1, 2, 16, 16\)"),
            ({"input": image.astype(np.float64), "gain/stem": gain}, "got float64"),
            ({"input": image, "gain/stem": gain, "more": gain}, "3 inputs are given"),
        ):
            with pytest.raises(module.DyndeployError, match=said) as raised:
                session.run(feeds)
            assert raised.value.code == INPUT
        with pytest.raises(module.DyndeployError, match="takes no images"):
            session.classify_all([np.zeros((8, 8, 3), np.uint8)])
        with pytest.raises(module.DyndeployError, match="gives no output 'nothing'"):
            session.run({"input": image, "gain/stem": gain}, ["nothing"])
    with pytest.raises(module.DyndeployError, match="closed"):
        session.run({})


def test_no_onnxruntime_one_that_is_too_old_and_one_that_is_none(
    runtime_build: RuntimeBuild, open_session: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    code, text = refusal(open_session, bundle.path, onnxruntime=tmp_path / "nowhere.so")
    assert (code, "There is no ONNX Runtime at" in text) == (BACKEND, True)
    code, text = refusal(open_session, bundle.path, onnxruntime=tmp_path)
    assert (code, "holds no libonnxruntime.so" in text) == (BACKEND, True)
    (tmp_path / "text.so").write_text("no library")
    code, text = refusal(open_session, bundle.path, onnxruntime=tmp_path / "text.so")
    assert (code, "Cannot open ONNX Runtime" in text) == (BACKEND, True)
    code, text = refusal(open_session, bundle.path, onnxruntime=runtime_build.library)
    assert (code, "has no OrtGetApiBase" in text) == (BACKEND, True)
    old = tmp_path / "libold.so"
    source = tmp_path / "old.c"
    source.write_text(
        "static const void *api(unsigned version) { (void)version; return 0; }\n"
        'static const char *version(void) { return "1.17.3"; }\n'
        "static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};\n"
        "const void *OrtGetApiBase(void) { return &base; }\n"
    )
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(old)], check=True)
    code, text = refusal(open_session, bundle.path, onnxruntime=old)
    assert (code, "ONNX Runtime 1.17.3" in text, "is too old" in text) == (BACKEND, True, True)
    # Nothing is named, and nothing lies where one would be looked for.
    done = run_program(
        runtime_build, bundle.path, "x.png", DYNDEPLOY_ONNXRUNTIME="", VIRTUAL_ENV="", HOME=str(tmp_path)
    )
    assert done.returncode == 1
    assert "ONNX Runtime" in done.stderr or "x.png" in done.stderr
    assert done.stderr.count("\n") <= 2


# One that graphs are written in has a bundle of its own, above.
@pytest.mark.parametrize("precision", [name for name, precision in PRECISIONS.items() if not precision.in_graph])
def test_precisions_are_those_of_python(open_session: Callable[..., Any], tmp_path: Path, precision: str) -> None:
    bundle = resealed(tiny_bundle(tmp_path / "bundle"), precision=precision)
    if PRECISIONS[precision].cpu == "fp32":
        open_session(bundle.path).close()
        return
    code, text = refusal(open_session, bundle.path, native="off")
    needs = f"A CPU cannot run {precision}" if PRECISIONS[precision].cpu is None else "needs the operator library"
    assert (code, needs in text) == (USAGE, True)


def test_class_names_in_any_script(open_session: Callable[..., Any], tmp_path: Path, pictures: list[Path]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    names = tuple(f"été {i} \U0001f600" for i in range(10))
    write_manifest(bundle.path, replace(bundle.manifest, network=replace(bundle.manifest.network, class_names=names)))
    with open_session(bundle.path) as session:
        found = session.classify(pictures[0])
    assert found.class_name == names[found.label]
    assert found.logits.argmax() == found.label
    assert found.confidence == pytest.approx(float(confidences(found.logits[None])[0]), rel=1e-6)


def test_the_unit_tests_of_the_runtime_pass(runtime_build: RuntimeBuild) -> None:
    done = subprocess.run([str(runtime_build.unit_tests)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["one graph", "stages"])
def test_a_few_hundred_mutations_crash_nothing(
    runtime_build: RuntimeBuild, tmp_path: Path, pictures: list[Path], onnxruntime_library: Path, kind: str
) -> None:
    if kind == "stages":
        bundle = with_exit_logits(staged_bundle(tmp_path / "bundle"))
    else:
        bundle = with_reference(tiny_bundle(tmp_path / "bundle", mode="both"))
    done = subprocess.run(
        [str(runtime_build.fuzzer), str(bundle.path), str(tmp_path), str(tmp_path / "scratch"), "200", "1"],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "DYNDEPLOY_ONNXRUNTIME": str(onnxruntime_library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 mutations" in done.stdout


def test_the_binding_runs_with_the_python_of_old_boards(
    runtime_build: RuntimeBuild, tmp_path: Path, pictures: list[Path], onnxruntime_library: Path
) -> None:
    python = os.environ.get("DYNDEPLOY_OLD_PYTHON") or sys.executable
    bundle = tiny_bundle(tmp_path / "bundle", mode="channel")
    shutil.copy(BINDING, tmp_path / "dyndeploy_runtime.py")
    shutil.copy(runtime_build.library, tmp_path / "libdyndeploy.so")
    script = (
        "from dyndeploy_runtime import open_bundle\n"
        f"session = open_bundle({str(bundle.path)!r})\n"
        f"print(session.classify({str(pictures[0])!r}).label)\n"
    )
    done = subprocess.run(
        [python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "DYNDEPLOY_ONNXRUNTIME": str(onnxruntime_library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == classify(bundle, pictures[:1], native="off")[0].label


def test_the_header_and_the_documented_examples_are_c_and_cpp(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    root = BINDING.parents[3]
    examples = re.findall(r"^```c\n(.*?)^```", (root / "docs" / "applications.md").read_text(), re.M | re.S)
    assert len(examples) == 3
    for index, example in enumerate(examples):
        (tmp_path / f"example{index}.c").write_text(example)
    (tmp_path / "header.cpp").write_text(
        '#include "dyndeploy.h"\nint main() { return dyndeploy_abi() != DYNDEPLOY_ABI; }\n'
    )
    for name, standard in (*((f"example{index}.c", "c11") for index in range(3)), ("header.cpp", "c++14")):
        done = subprocess.run(
            [compiler, f"-std={standard}", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
             "-I", str(root / "plugins" / "runtime" / "include"), str(tmp_path / name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
