"""``dyndeploy engine`` and ``dyndeploy probe`` on a machine without a GPU."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from dyndeploy.bundle.device_files import write_device_folder
from dyndeploy.cli import run
from tests.bundles import tiny_bundle
from tests.runtimes.fake_tensorrt import install_fakes
from tests.staged_bundles import EXITS, images, stage_models, staged_bundle


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_trtexec_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode="both")
    arguments = ["engine", str(bundle.path), "--trtexec", "8.2.1", "--precision", "fp16", "-o", str(tmp_path / "out")]
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "")
    build, measure = out.splitlines()
    assert "--plugins=libdyndeploy_tensorrt.so" in build.split()
    assert f"--loadInputs=input:{tmp_path / 'out' / 'input.bin'}" in measure
    model = onnx.load(tmp_path / "out" / "model.fp16.trt.onnx")
    assert not model.functions
    code, out, _ = call(capsys, *arguments, "--twin", "--plugins", "/board/lib.so", "--json")
    result = json.loads(out)
    assert code == 0 and len(result["commands"]) == 2
    assert "plugins" not in " ".join(result["commands"]).lower(), "the static twin needs none"
    assert Path(result["model"]).is_file()


def test_the_lines_for_a_board_say_where_the_plugin_library_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode="both")
    write_device_folder(bundle.path, replace(bundle.manifest, target="nano"))
    code, _, err = call(capsys, "engine", str(bundle.path), "--trtexec", "8.2.1", "-o", str(tmp_path / "out"))
    adapter = bundle.path / "device" / "plugins" / "adapters" / "tensorrt"
    assert code == 0 and f"mkdir -p build && cd build && cmake {os.path.join('..', adapter)} && make" in err
    assert (adapter / "CMakeLists.txt").is_file()


def test_every_stage_has_trtexec_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, folder = staged_bundle(tmp_path / "b", batch=1), tmp_path / "out"
    arguments = ["engine", str(bundle.path), "--trtexec", "8.5.3", "-o", str(folder)]
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("#")] == [f"# exit {number}" for number in EXITS]
    assert len([line for line in lines if line.startswith("trtexec ")]) == 2 * len(EXITS)
    assert f"--loadInputs=x2:{folder / 'x2.bin'},x1:{folder / 'x1.bin'}" in lines[-1]
    # A stage's inputs are what the stages before it compute.
    feeds = {"images": images(4)[:1]}
    for index, model in enumerate(stage_models(1)):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for value in session.get_inputs():
            stored = np.fromfile(folder / f"{value.name}.bin", np.float32).reshape(value.shape)
            np.testing.assert_allclose(stored, feeds[value.name], rtol=1e-5, atol=1e-6)
        names = [value.name for value in session.get_outputs()]
        given = {value.name: feeds[value.name] for value in session.get_inputs()}
        feeds |= dict(zip(names, session.run(None, given), strict=True))
        assert (folder / f"stage{index}.fp32.trt.onnx").is_file()
    code, out, _ = call(capsys, *arguments, "--json")
    assert [entry["exit"] for entry in json.loads(out)["stages"]] == list(EXITS)
    code, out, _ = call(capsys, *arguments, "--twin", "--json")
    assert code == 0 and len(json.loads(out)["commands"]) == 2


def test_engines_of_stages_are_built_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fakes(monkeypatch, "8.5.3.1", tmp_path)
    arguments = ["engine", str(staged_bundle(tmp_path / "b", batch=1).path), "-o", str(tmp_path / "engines")]
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and [line.endswith("built.") for line in out.splitlines()] == [True] * len(EXITS)
    code, out, _ = call(capsys, *arguments, "--json")
    stages = json.loads(out)["stages"]
    assert code == 0 and len({entry["path"] for entry in stages}) == len(EXITS)
    assert {path.suffix for path in (tmp_path / "engines").iterdir()} >= {".engine", ".json"}


def test_impossible_engines_of_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(staged_bundle(tmp_path / "b").path)
    for arguments, message in (
        (["--trtexec", "8.5", "-o", str(tmp_path / "o")], "one batch size"),
        ([], "one batch size"),
        (["--verify"], "dyndeploy profile"),
    ):
        code, out, err = call(capsys, "engine", path, *arguments)
        assert (code, out) == (2, "") and message in err


def test_impossible_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tiny_bundle(tmp_path / "b").path)
    for arguments, message in (
        (["--trtexec", "8.5"], "name a folder"),
        (["--trtexec", "7.1", "-o", str(tmp_path / "o")], "no TensorRT version"),
        (
            ["--trtexec", "8.5", "--precision", "int8", "-o", str(tmp_path / "o")],
            "was exported in fp32: an INT8 engine needs a bundle of 'export --precision int8'",
        ),
        (["--trtexec", "8.5", "--strongly-typed", "-o", str(tmp_path / "o")], "cannot build strongly typed"),
    ):
        code, out, err = call(capsys, "engine", path, *arguments)
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = call(capsys, "engine", path, "--verify", "--twin")
    assert code == 2 and "leave --twin" in err
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    code, _, err = call(capsys, "engine", path)
    assert code == 1
    assert "pycuda cannot be imported" in err


def test_probe_writes_a_record_that_targets_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "probe.json"
    code, out, err = call(capsys, "probe", "--native", "off", "--repeats", "2", "-o", str(record))
    assert (code, err) == (0, "")
    assert "Branches (If) skip: measured: leaving a branch takes" in " ".join(out.split())
    assert json.loads(record.read_text())["target"] == "cpu"
    code, out, _ = call(capsys, "targets", "cpu", "--probe", str(record), "--json")
    assert code == 0
    branches = json.loads(out)["branches"]
    assert branches["taken"] is True and "measured: leaving a branch takes" in branches["reason"]
    code, _, err = call(capsys, "targets", "nano", "--probe", str(record))
    assert code == 1
    assert "made for cpu, not for nano" in err
    code, out, _ = call(capsys, "targets", "nano")
    assert "Branches (If) save nothing: TensorRT 8.2 needs equal shapes" in " ".join(out.split())


def test_verbose_lists_what_every_plugin_runs_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = install_fakes(monkeypatch, "8.6.1.6", tmp_path)
    bundle = tiny_bundle(tmp_path / "b", mode="both")
    arguments = ["engine", str(bundle.path), "--precision", "fp16"]
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and "what its plugins run in" not in out
    code, out, _ = call(capsys, *arguments, "-v")
    assert code == 0 and "from the cache" in out
    (line,) = [line for line in out.splitlines() if "layer2.0/SpatialChannelBottleneck" in line]
    assert "float16" in line and "not said" in line, "the stand-in for the library says nothing of its kernels"
    world.fails = {"inspector"}
    code, out, err = call(capsys, *arguments, "-o", str(tmp_path / "other"))
    assert code == 0 and "types of the plugins were not read back" in err
