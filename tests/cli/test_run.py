"""``dyndeploy run``: one line per image, each at once; what fails is said, and the rest goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy.cli import run
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.inference import Classification, Failure, Result, classify, classify_images, run_images
from dyndeploy.runtimes import OnnxRuntimeSession, find_cpu_library
from dyndeploy.runtimes.native import BODIES_NOTE
from tests.bundles import tiny_bundle
from tests.staged_bundles import EXITS, staged_bundle


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(path, "PNG")
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [picture(tmp_path / "images" / f"{seed}.png", seed) for seed in range(6)]


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", ["masks", "masks in batches", "exits", "exits in batches"])
def test_one_object_per_image_in_their_order(
    kind: str, tmp_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = 4 if "batches" in kind else 1
    make = tiny_bundle if "masks" in kind else staged_bundle
    bundle = make(tmp_path / "b", batch=batch)
    (damaged := tmp_path / "damaged.png").write_bytes(images[0].read_bytes()[:-100])
    given = [images[0], damaged, *images[1:], tmp_path / "gone.png"]
    assert run(["run", str(bundle.path), *map(str, given), "--json"]) == 1
    out, err = capsys.readouterr()
    assert "2 of 8 images failed" in err
    found = json_lines(out)
    assert [entry["image"] for entry in found] == list(map(str, given))
    for path, entry in zip(given, found, strict=True):
        if path in images:
            assert {"image", "ms", "rates", "label", "confidence", "exit"} <= set(entry) and "error" not in entry
            assert (entry["operators"] is None) == ("exits" in kind)
            assert entry["ms"] > 0 and 0 < entry["confidence"] <= 1
            assert (entry["exit"] in EXITS) == ("exits" in kind)
            assert set(entry["rates"]) == {mask.name for mask in bundle.manifest.masks}
        else:
            assert set(entry) == {"image", "error"} and str(path) in str(entry["error"])
    # Alone an image gives what it gives among others.
    whole = make(tmp_path / "one", batch=1)
    for result in classify(whole, images):
        [same] = [entry for entry in found if entry["image"] == result.image]
        assert (same["label"], same["exit"]) == (result.label, result.exit)
        assert same["confidence"] == pytest.approx(result.confidence, abs=1e-5)
        assert same["rates"] == pytest.approx(result.rates)
    assert run(["run", str(bundle.path), *map(str, images), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json_lines(out)) == 6 and err == ""
    with pytest.raises(InputError, match=r"damaged\.png"):
        classify(bundle, given)


def test_the_code_that_ran_is_named(tmp_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    call = ["run", str(bundle.path), str(images[0])]
    assert run([*call, "--native", "off", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["operators"] == "function bodies" and err == ""
    assert run([*call, "--native", "off"]) == 0
    err = capsys.readouterr().err
    assert "operators: function bodies" in err and BODIES_NOTE in err
    library = find_cpu_library()
    if library is not None:
        assert run(call) == 0
        err = capsys.readouterr().err
        assert f"operators: {library.path.name} (" in err and "Note" not in err
    staged = staged_bundle(tmp_path / "s")
    assert run(["run", str(staged.path), str(images[0])]) == 0
    # Nothing dynamic is in it: of operators there is nothing to say.
    assert capsys.readouterr().err == "Runtime: ONNX Runtime on the CPU: the bundle was exported for cpu.\n"


def test_results_come_one_by_one(tmp_path: Path, images: list[Path]) -> None:
    asked: list[Path] = []

    def paths() -> Iterator[Path]:
        for path in images:
            asked.append(path)
            yield path

    for make, batch in ((tiny_bundle, 1), (tiny_bundle, 4), (staged_bundle, 4)):
        asked.clear()
        bundle = make(tmp_path / f"{make.__name__}{batch}", batch=batch)
        ahead = batch if make is tiny_bundle else 1
        for number, result in enumerate(classify_images(bundle, paths())):
            assert isinstance(result, Classification)
            assert len(asked) == min(-(-(number + 1) // ahead) * ahead, len(images))
        assert number == 5


def test_every_line_is_written_at_once(tmp_path: Path) -> None:
    bundle, path = tiny_bundle(tmp_path / "b"), picture(tmp_path / "a.png")
    os.mkfifo(slow := tmp_path / "slow.png")
    with subprocess.Popen(
        [sys.executable, "-m", "dyndeploy.cli", "run", bundle.path, path, slow, path, "--json"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        # The second image is not there yet.
        assert json.loads(process.stdout.readline())["image"] == str(path)
        slow.write_bytes(b"no image")
        failed, last = json_lines(process.stdout.read())
        assert set(failed) == {"image", "error"} and "label" in last
    assert process.returncode == 1


@pytest.mark.parametrize("kind", ["masks", "masks in batches", "exits"])
def test_memory_does_not_grow_with_the_number_of_images(kind: str, tmp_path: Path) -> None:
    bundle = (
        staged_bundle(tmp_path / "b")
        if kind == "exits"
        else tiny_bundle(tmp_path / "b", batch=3 if "in" in kind else 1)
    )
    script = (
        "import resource, sys\n"
        "from dyndeploy.inference import classify_images\n"
        "for number, _ in enumerate(classify_images(sys.argv[1], [sys.argv[2]] * 6000)):\n"
        "    if number == 300:\n"
        "        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, bundle.path, picture(tmp_path / "a.png")], capture_output=True, check=True
    )
    # In KiB; the inputs alone would be 18 MB, or 4.6 MB of the smaller network.
    assert int(done.stdout) < 3000


def test_one_image_that_fails_spoils_no_other(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "b", batch=3)
    bad = next(iter(run_images(bundle, [images[4]])))
    assert isinstance(bad, Result)
    real = OnnxRuntimeSession.run

    def fail(self: OnnxRuntimeSession, feeds: dict[str, np.ndarray], *rest: object) -> dict[str, np.ndarray]:
        outputs = real(self, feeds)
        if np.isclose(outputs["logits"], bad.outputs["logits"]).all(1).any():
            raise DyndeployError("cannot compute this one")
        return outputs

    monkeypatch.setattr(OnnxRuntimeSession, "run", fail)
    found = list(run_images(bundle, images))
    assert [isinstance(entry, Failure) for entry in found] == [False] * 4 + [True, False]
    assert [entry.image for entry in found] == [str(path) for path in images]


def test_a_table_line_per_image(tmp_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    long = picture(tmp_path / ("long " * 40) / "cat[orig] :cat: [/x].png")
    assert run(["run", str(bundle.path), str(images[0]), str(tmp_path / "gone[b].png"), str(long)]) == 1
    out, err = capsys.readouterr()
    head, *lines = out.splitlines()
    assert head.split() == ["class", "confidence", "mean", "rate", "ms", "image"]
    assert [line.endswith(f"  {path}") for line, path in zip(lines, (images[0], long), strict=True)] == [True] * 2
    assert "gone[b].png" in err and "1 of 3 images failed" in err


def test_wrong_usage_is_no_failure_of_an_image(
    tmp_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = staged_bundle(tmp_path / "b", thresholds=None)
    assert run(["run", str(bundle.path), str(images[0]), "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "dyndeploy calibrate" in err
    with pytest.raises(UsageError, match="no exits"):
        list(run_images(tiny_bundle(tmp_path / "m"), images, thresholds=(0.5,)))


def test_arrays_are_one_object_and_an_impossible_output_costs_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    arguments = ["run", str(bundle.path), "--input", f"input={tmp_path / 'x.npy'}"]
    assert run([*arguments, "--json", "-o", str(tmp_path / "out.npz")]) == 0
    [value] = json_lines(capsys.readouterr().out)
    assert value["image"] is None and value["ms"] > 0 and len(value["rates"]) == 2
    assert set(np.load(tmp_path / "out.npz")) == {"logits"}
    monkeypatch.setattr(OnnxRuntimeSession, "run", lambda *_: pytest.fail("must not run"))
    (tmp_path / "file").write_text("in the way")
    assert run([*arguments, "-o", str(tmp_path / "file" / "out.npz")]) == 1


LATIN = os.fsdecode(b"caf\xe9 [b] \x1b[31m.png")
SHOWN = r"caf\udce9 [b] \x1b[31m.png"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_are_no_text(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / os.fsdecode(b"b\xe9 [v2]")
    bundle = tiny_bundle(tmp_path / "b")
    bundle.path.rename(folder)
    images = tmp_path / os.fsdecode(b"\xe9[a]")
    picture(images / LATIN)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def call(*arguments: object) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "dyndeploy.cli", *map(str, arguments)],
            capture_output=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        return done.returncode, out, err

    code, out, _ = call("run", folder.name, images / LATIN)
    assert code == 0 and SHOWN in out
    code, out, _ = call("run", folder.name, images / LATIN, "--json")
    assert code == 0 and json.loads(out)["image"] == str(images / LATIN)
    code, out, err = call("run", folder.name, LATIN)
    assert code == 1 and f"There is no image {SHOWN}." in err
    _, out, _ = call("verify", folder.name)
    assert out.startswith("b\\udce9 [v2]\n")
    report = os.fsdecode(b"r\xe9.html")
    options = ("--data", images, "--repeats", "2", "--rates", "0.5", "--json", os.fsdecode(b"p\xe9[1].json"))
    code, out, _ = call("profile", folder.name, *options, "--report", report)
    assert code == 0 and (r"Report: r\udce9.html" in out or encoding == "ascii")
    assert re.search(r"folder \\udce9\[a\]", (tmp_path / report).read_text(encoding="utf-8"))
    code, out, err = call("compare", os.fsdecode(b"p\xe9[1].json"), "-o", "c.html")
    assert err == ""


def test_a_folder_stands_for_the_images_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    inside = [picture(tmp_path / "photos" / name) for name in ("a/2.png", "a/deep/1.png", "b.png")]
    (tmp_path / "photos" / "index.csv").write_text("no image")
    alone = picture(tmp_path / "z.png")
    assert run(["run", str(bundle.path), str(alone), str(tmp_path / "photos"), str(alone), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [entry["image"] for entry in json_lines(out)] == [str(path) for path in (alone, *inside, alone)]
    assert err == ""
    inside[1].write_bytes(b"no image")
    assert run(["run", str(bundle.path), str(tmp_path / "photos")]) == 1
    assert "1 of 3 images failed" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(["run", str(bundle.path), str(alone), str(tmp_path / "empty")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "empty holds no images" in err
