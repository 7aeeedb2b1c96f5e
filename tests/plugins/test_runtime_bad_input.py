"""What is wrong with a bundle, a model or ONNX Runtime: one line and a code, alike in C, C++, Python and the program.

Videos and cameras, which the program alone opens, are in ``test_runtime_video.py``; images in
``test_runtime_images.py``.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from dyndeploy.bundle import Bundle
from tests.bundles import resealed, tiny_bundle
from tests.plugins.conftest import SOURCES, RuntimeBuild
from tests.plugins.device_runtime import binding
from tests.plugins.test_runtime_tensorrt import for_engines, runnable
from tests.spoiled import spoiled
from tests.staged_bundles import staged_bundle

pytestmark = pytest.mark.usefixtures("onnxruntime_library")

USAGE, DAMAGED, NOT_FINITE, BACKEND = 1, 2, 4, 5
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dyndeploy.h"

/* BUNDLE [THRESHOLD...]: opens it, runs a grey image and prints the code and the line of what failed. */
int main(int count, char **values) {
  static uint8_t pixels[3 * 20 * 30];
  double thresholds[8];
  dyndeploy_session *session = NULL;
  dyndeploy_options options;
  dyndeploy_result result;
  dyndeploy_image image;
  int32_t code;
  int i;
  memset(&options, 0, sizeof options);
  memset(&result, 0, sizeof result);
  memset(pixels, 99, sizeof pixels);
  options.size = sizeof options;
  result.size = sizeof result;
  for (i = 2; i < count && i < 10; ++i) thresholds[i - 2] = atof(values[i]);
  options.thresholds = thresholds;
  options.threshold_count = count - 2;
  image.pixels = pixels;
  image.height = 20;
  image.width = 30;
  image.stride = 3 * 30;
  code = dyndeploy_open(values[1], &options, &session);
  if (code == DYNDEPLOY_OK) code = dyndeploy_run_images(session, &image, 1, &result);
  printf("%d\n%s\n", (int)code, code == DYNDEPLOY_OK ? "" : dyndeploy_last_error());
  dyndeploy_close(session);
  return 0;
}
"""


@dataclass(frozen=True)
class Case:
    """A bundle that does not run, and what is said of it.

    Attributes:
        make: Writes it into a folder, and returns where it is.
        code: Of ``dyndeploy.h``.
        said: A part of the line.
        thresholds: Given as an option.
        onnxruntime: What is named as ONNX Runtime, in the folder; None: the one that is installed.
    """

    make: Callable[[Path], Path]
    code: int
    said: str
    thresholds: tuple[float, ...] = ()
    onnxruntime: str | None = None


def whole(folder: Path) -> Path:
    return tiny_bundle(folder / "bundle").path


def without_model(folder: Path) -> Path:
    bundle = tiny_bundle(folder / "bundle")
    bundle.model.unlink()
    return bundle.path


def truncated(folder: Path) -> Path:
    bundle = tiny_bundle(folder / "bundle")
    bundle.model.write_bytes(bundle.model.read_bytes()[:-100])
    return bundle.path


def altered(folder: Path) -> Path:
    bundle = tiny_bundle(folder / "bundle")
    content = bytearray(bundle.model.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.model.write_bytes(content)
    return bundle.path


def altered_manifest(folder: Path) -> Path:
    path = whole(folder)
    manifest = path / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"batch": 1', '"batch": 2'))
    return path


def of_nan(folder: Path) -> Path:
    return spoiled(tiny_bundle(folder / "bundle"), "model.onnx", "head.b", float("nan")).path


def no_graph(folder: Path) -> Path:
    bundle = tiny_bundle(folder / "bundle")
    onnx.save(tiny_bundle(folder / "other", mode="channel").load_model(), bundle.model)
    return resealed(bundle).path


def with_old_onnxruntime(folder: Path) -> Path:
    source = folder / "old.c"
    source.write_text(
        "static const void *api(unsigned version) { (void)version; return 0; }\n"
        'static const char *version(void) { return "1.17.3"; }\n'
        "static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};\n"
        "const void *OrtGetApiBase(void) { return &base; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", folder / "old.so"], check=True)
    return whole(folder)


CASES = {
    "a missing folder": Case(lambda folder: folder / "nowhere", DAMAGED, "nowhere does not exist: it is no bundle."),
    "a missing file": Case(without_model, DAMAGED, "is damaged: model.onnx (missing)"),
    "a truncated file": Case(truncated, DAMAGED, "model.onnx (content does not match its checksum)"),
    "an altered file": Case(altered, DAMAGED, "model.onnx (content does not match its checksum)"),
    "an altered manifest": Case(altered_manifest, DAMAGED, "does not match its checksum"),
    "another graph": Case(no_graph, DAMAGED, "is not the graph that bundle.json describes"),
    "thresholds of the wrong number": Case(
        lambda folder: staged_bundle(folder / "bundle").path, USAGE, "1 thresholds are given for 3 stages", (0.5,)
    ),
    "thresholds without exits": Case(whole, USAGE, "has no exits", (0.5,)),
    "a model that computes NaN": Case(of_nan, NOT_FINITE, "'logits' holds 1 NaN of 10 values"),
    "no ONNX Runtime": Case(whole, BACKEND, "There is no ONNX Runtime at", onnxruntime="none.so"),
    "an ONNX Runtime that is too old": Case(
        with_old_onnxruntime, BACKEND, "ONNX Runtime 1.17.3 (", onnxruntime="old.so"
    ),
}


@pytest.fixture(scope="session")
def callers(runtime_build: RuntimeBuild, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program above in C and in C++, by language."""
    folder = tmp_path_factory.mktemp("callers")
    made = {}
    for language, compiler, standard in (("C", "cc", "c11"), ("C++", "c++", "c++14")):
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler}")
        source = folder / ("caller.c" if language == "C" else "caller.cpp")
        source.write_text(PROGRAM)
        made[language] = source.with_suffix("." + compiler)
        subprocess.run(
            [compiler, f"-std={standard}", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", source,
             "-I", SOURCES / "include", "-o", made[language], runtime_build.library,
             f"-Wl,-rpath,{runtime_build.library.parent}"],
            check=True,
        )  # fmt: skip
    return made


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_a_code_everywhere(
    callers: dict[str, Path],
    runtime_build: RuntimeBuild,
    onnxruntime_library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    case = CASES[name]
    bundle = case.make(tmp_path)
    chosen = onnxruntime_library if case.onnxruntime is None else tmp_path / case.onnxruntime
    monkeypatch.setenv("DYNDEPLOY_ONNXRUNTIME", str(chosen))
    lines = []
    for caller in callers.values():
        done = subprocess.run(
            [str(caller), str(bundle), *map(str, case.thresholds)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        code, line = done.stdout.splitlines()
        assert int(code) == case.code
        lines.append(line)
    module = binding()
    # A process looks for ONNX Runtime once: this one may have found it.
    options = {"thresholds": case.thresholds or None, "onnxruntime": chosen}
    with (
        pytest.raises(module.DyndeployError) as raised,
        module.open_bundle(bundle, library=runtime_build.library, **options) as session,
    ):
        session.classify(np.full((20, 30, 3), 99, np.uint8))
    assert raised.value.code == case.code
    lines.append(str(raised.value))
    frames = ["--frames", "20x30"]
    given = ["--thresholds", ",".join(map(str, case.thresholds))] if case.thresholds else []
    done = subprocess.run(
        [str(runtime_build.program), str(bundle), *frames, *given], input=bytes([99]) * 1800, capture_output=True
    )
    # The program's own code is 2 for a wrong call, as that of every command; what went wrong else is 1.
    assert done.returncode == (2 if case.code == USAGE else 1)
    first, *others = done.stderr.decode().splitlines()
    assert all("images failed" in line or "frames in" in line for line in others)
    lines.append(first.removeprefix("dyndeploy-run: "))
    assert len(set(lines)) == 1, lines
    assert case.said in lines[0]


def test_where_no_onnxruntime_is_anywhere(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    system = [path for root in ("/usr", "/usr/local") for path in Path(root).glob("lib*/python3*/*/onnxruntime/capi/*")]
    if system or ctypes.util.find_library("onnxruntime"):
        pytest.skip("the system itself has an ONNX Runtime")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(runtime_build.program), str(whole(tmp_path)), "--info"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "No ONNX Runtime was found, in no Python package and not on the system." in done.stderr


def test_an_engine_of_another_machine_is_built_again_with_a_line(
    runtime_build: RuntimeBuild, onnxruntime_library: Path, callers: dict[str, Path], tmp_path: Path
) -> None:
    """In Python: ``test_runtime_tensorrt.py``."""
    bundle: Bundle = runnable(for_engines(tiny_bundle(tmp_path / "bundle")))
    (tmp_path / "plugins.so").write_bytes(b"plugins")
    environment = {
        **os.environ,
        "DYNDEPLOY_ONNXRUNTIME": str(onnxruntime_library),
        "DYNDEPLOY_TENSORRT_MODULE": str(runtime_build.stand_in),
        "DYNDEPLOY_TENSORRT_LIBRARY": str(tmp_path / "plugins.so"),
        "DYNDEPLOY_CACHE": str(tmp_path / "cache"),
    }

    def run() -> tuple[str, str]:
        done = subprocess.run(
            [str(runtime_build.program), str(bundle.path), "--frames", "20x30", "--json"],
            input=bytes([99]) * 1800, capture_output=True, env=environment, check=True,
        )  # fmt: skip
        return done.stdout.decode(), done.stderr.decode()

    right, _ = run()
    [engine] = (tmp_path / "cache" / "engines").glob("*.engine")
    whole_engine = engine.read_bytes()
    engine.with_suffix(".json").write_text('{"built_from": {"name": "another GPU"}, "engine_sha256": ""}')
    again, said = run()
    [line] = [line for line in said.splitlines() if "is built again" in line]
    assert f"{engine.with_suffix('.json')} is of another engine" in line
    assert engine.read_bytes() == whole_engine
    assert '"label"' in again and again.split('"confidence"')[0] == right.split('"confidence"')[0]
    engine.write_bytes(whole_engine[:-1])
    for caller in callers.values():
        done = subprocess.run(
            [str(caller), str(bundle.path)], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout == "0\n\n"
    assert engine.read_bytes() == whole_engine
