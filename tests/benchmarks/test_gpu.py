"""Rehearsal of the run on a GPU: everything of it that needs none. No time is asserted."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dyndeploy import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.files import write_json
from dyndeploy.graphs.forced import PREFIX, forced_masks, replace_masks
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import MODES, tiny_bundle
from tests.plugins.cuda_host import host_library

KERNELS = Path(__file__).parents[2] / "plugins" / "kernels" / "cuda"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of its modules, as the script beside them does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
    return importlib.import_module


@pytest.fixture
def kernels(gpu: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The kernels, played by this machine."""
    return gpu("kernels").Kernels(host_library(tmp_path_factory))


# ---------------------------------------------------------------- networks without TensorRT


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_a_network_of_kernels_computes_what_its_bundle_does(
    gpu: Any, kernels: Any, tmp_path: Path, mode: str, precision: str
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", mode=mode)
    forced = replace_masks(bundle.load_model(), bundle.manifest.masks)
    network = gpu("graph").Network(tensorrt_model(forced, PrecisionPlan(precision, True)), kernels, device="cpu")
    rng = np.random.default_rng(0)
    # The bundle is for single images, and the network takes three.
    images = rng.standard_normal((3, 3, 16, 16)).astype(np.float32)
    masks = [forced_masks(bundle.manifest.masks, 0.5, seed) for seed in range(3)]
    together = {PREFIX + name: torch.from_numpy(np.concatenate([m[name] for m in masks])) for name in masks[0]}
    outputs = network.run({"input": torch.from_numpy(images).contiguous(memory_format=torch.channels_last), **together})
    with OnnxRuntimeSession(forced, native="off") as session:
        for index, mask in enumerate(masks):
            feeds = {"input": images[index : index + 1], **{PREFIX + name: value for name, value in mask.items()}}
            expected = session.run(feeds)
            largest = np.abs(expected["logits"]).max()
            error = np.abs(outputs["logits"][index].numpy() - expected["logits"][0]).max() / largest
            assert error < (2e-6 if precision == "fp32" else 2e-3)
            assert error > 0 or precision == "fp32"
            for name in mask:
                np.testing.assert_array_equal(outputs[name][index].numpy(), expected[name][0])


def test_fused_convolutions_take_sums_and_shortcuts_along(gpu: Any, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    plan = PrecisionPlan("fp32", True)
    plain, fused = (
        gpu("graph").Network(tensorrt_model(bundle.load_static(), plan), None, device="cpu", fused=fused)
        for fused in (False, True)
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.run({"input": images})["logits"], fused.run({"input": images})["logits"])
    # 8 convolutions, two sums and their ReLUs: nothing but the mean and the classifier is left beside convolutions.
    kinds = [step.node.op_type for step in fused._steps]
    assert not {"Relu", "Add"} & set(kinds) and kinds.count("Conv") == 8
    assert sum(step.addend is not None for step in fused._steps) == 2


def test_an_operator_that_is_not_known_is_named(gpu: Any, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    model = bundle.load_static()
    model.graph.node[1].op_type = "Erf"
    with pytest.raises(UsageError, match="Erf"):
        gpu("graph").Network(model, None, device="cpu")
    with pytest.raises(UsageError, match=r"Bottleneck|Masker"):
        gpu("graph").Network(bundle.load_model(), None, device="cpu")


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("mode", ["spatial", "channel", "layer"])
def test_rows_of_networks_and_blocks(gpu: Any, kernels: Any, tmp_path: Path, mode: str) -> None:
    measure, pages = gpu("measure"), gpu("result_page")
    bundle = tiny_bundle(tmp_path / "bundle", mode=mode)
    networks: list[Any] = []
    measure.network_rows(
        measure.Host(), kernels, bundle, "tiny", batches=(2,), rates=(1.0, 0.5), seconds=0, add=networks.extend
    )
    assert [(row["batch"], row["rate"]) for row in networks] == [(2, 1.0), (2, 0.5)]
    assert measure.wrong(networks, measure.TOLERANCE) is None
    blocks: list[Any] = []
    measure.block_rows(measure.Host(), kernels, bundle, batches=(2,), rates=(1.0, 0.5), seconds=0, add=blocks.extend)
    assert len(blocks) == 4  # two blocks of different sizes
    assert measure.wrong(blocks, measure.BLOCK_TOLERANCE) is None
    for first, second in zip(blocks[::2], blocks[1::2], strict=True):
        assert first["what"] == second["what"]
        # Two images: a whole block is left out for one of them, else about half of the work of every image goes.
        assert first["ideal"] == pytest.approx(1.0) and second["ideal"] > 1.2
    page = pages.page({"started": "2026", "parts": {"networks": part("passed", networks), "blocks": part("passed")}})
    row = next(line for line in page.splitlines() if line.startswith("| tiny | 2 | 0.5"))
    assert "(forced)" in row and "ms, measured" in page and "speed-up, measured" in page


def test_a_wrong_result_is_named(gpu: Any) -> None:
    measure = gpu("measure")
    rows = [{"what": "a", "batch": 1, "rate": 1.0, "error": 0.01}, {"what": "b", "batch": 2, "rate": 0.5}]
    rows[1]["error"] = float("nan")
    assert measure.wrong(rows[:1], 0.02) is None
    assert measure.wrong(rows[:1], 0.001).startswith("a, batch 1, rate 1")
    assert measure.wrong(rows, 0.02).startswith("b, batch 2, rate 0.5")


def part(status: str, rows: Any = None, **more: Any) -> dict[str, Any]:
    return {"status": status, "proves": "something", **({} if rows is None else {"rows": rows}), **more}


# ---------------------------------------------------------------- what is built ahead


def test_the_plan_of_what_is_built(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = gpu("prepare")
    assert prepare.main([str(tmp_path / "files"), "--architectures", "90", "--old-nvcc", "old", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Every unit of the kernels and the test program; then the program and the library are linked.
    units = len(prepare.UNITS) + 1
    assert sorted(prepare.UNITS) == sorted(path.stem for path in KERNELS.glob("*.cu"))
    assert len(lines) == 3 * (units + 2) and not (tmp_path / "files").exists()
    compiled = [line for line in lines if " -c " in line]
    assert all(Path(line.split()[line.split().index("-c") + 1]).is_file() for line in compiled)
    assert sum("code=sm_90" in line for line in compiled) == 2 * units
    old = [line for line in lines if line.startswith("old ")]
    assert len(old) == units + 2 and all(
        "arch=compute_62,code=compute_62" in line and "LANES_ONLY" in line for line in old
    )


def test_a_compiler_that_is_missing_or_fails(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = gpu("prepare")
    assert prepare.main([str(tmp_path / "files"), "--nvcc", str(tmp_path / "none")]) == 1
    assert "is not there" in capsys.readouterr().err
    failing = tmp_path / "nvcc"
    failing.write_text("#!/bin/sh\necho 'x.cu(1): error: sm_90 is unknown' >&2\nexit 1\n")
    failing.chmod(0o755)
    assert prepare.main([str(tmp_path / "files"), "--nvcc", str(failing)]) == 1
    assert "sm_90 is unknown" in capsys.readouterr().err
    assert not (tmp_path / "files").exists()


def prepared(gpu: Any, folder: Path, *builds: str) -> Path:
    """A folder as prepare leaves it, with nothing in it."""
    prepare = gpu("prepare")
    folder.mkdir()
    found = [build for build in prepare.builds("nvcc", [90], None) if build.name in builds]
    record = [{"name": b.name, "library": b.library, "program": b.program, "what": b.what} for b in found]
    write_json(folder / prepare.RECORD, {"sources": prepare.sources_digest(), "builds": record, "bytes": {}})
    return folder


def test_files_of_other_sources_are_refused(gpu: Any, tmp_path: Path) -> None:
    prepare = gpu("prepare")
    with pytest.raises(UsageError, match="was not made by prepare"):
        prepare.load(tmp_path)
    folder = prepared(gpu, tmp_path / "files", "native")
    assert prepare.load(folder)["builds"][0]["name"] == "native"
    write_json(folder / prepare.RECORD, {"sources": "0", "builds": []})
    with pytest.raises(UsageError, match="other sources"):
        prepare.load(folder)


# ---------------------------------------------------------------- a run


def test_without_a_gpu_a_run_says_so_everywhere(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acceptance = gpu("acceptance")
    monkeypatch.setattr(acceptance, "gpus", lambda: 0)
    output = tmp_path / "gpu.json"
    folder = prepared(gpu, tmp_path / "files", "native")
    assert acceptance.main(["run", str(folder), "-o", str(output)]) == 1
    said = capsys.readouterr()
    assert "error: no GPU" in said.err and "Nothing was measured" in said.err
    result = json.loads(output.read_text())
    assert list(result["parts"]) == [entry.name for entry in acceptance.PLAN]
    assert result["kind"] == "not run"
    assert all(entry["status"] == "not run" and "no GPU" in entry["why"] for entry in result["parts"].values())
    assert acceptance.main(["show", str(output)]) == 0
    page = capsys.readouterr().out
    assert page.count("not run: no GPU") == len(acceptance.PLAN) and page.strip() in said.out


FAKE = """
import json, sys, time
name, report = sys.argv[1], sys.argv[sys.argv.index("--report") + 1]
def write(**value): open(report, "w").write(json.dumps(value))
if name == "good": write(status="passed", said="all of it")
if name == "wrong": write(status="failed", why="a number is off")
if name == "crash": print("before"); print("device lost"); sys.exit(3)
if name == "hang": write(rows=[1, 2]); time.sleep(60)
if name == "last": write(status="passed")
"""


def test_a_part_that_hangs_or_crashes_loses_only_itself(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acceptance = gpu("acceptance")
    monkeypatch.setattr(acceptance, "GRACE", 0.5)
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    names = ("good", "wrong", "crash", "hang", "last")
    plan = [acceptance.Part(name, 1.5 if name == "hang" else 30, 0.1, "native", "it") for name in names]
    plan.append(acceptance.Part("old", 30, 0.1, "lanes62", "it"))
    plan.append(acceptance.Part("long", 1000, 1000, None, "it"))
    output = tmp_path / "gpu.json"
    run = acceptance.Run(prepared(gpu, tmp_path / "files", "native"), output, tmp_path / "scratch", 60, script)
    started = time.monotonic()
    run.execute(plan)
    assert time.monotonic() - started < 50
    parts = json.loads(output.read_text())["parts"]
    assert {name: parts[name]["status"] for name in parts} == {
        "good": "passed", "wrong": "failed", "crash": "failed", "hang": "timed out", "last": "passed",
        "old": "not run", "long": "not run",
    }  # fmt: skip
    assert parts["wrong"]["why"] == "a number is off" and "device lost" in parts["crash"]["why"]
    assert parts["hang"]["rows"] == [1, 2]  # what it had is kept
    assert "--old-nvcc" in parts["old"]["why"] and "were left" in parts["long"]["why"]
    assert not run.passed


def test_a_result_of_something_else_is_refused(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "other.json", {"schema": 7})
    assert gpu("acceptance").main(["show", str(tmp_path / "other.json")]) == 1
    assert "was not written by this version" in capsys.readouterr().err


def test_plan_fits_its_budget(gpu: Any) -> None:
    acceptance, parts = gpu("acceptance"), gpu("parts")
    assert {entry.name for entry in acceptance.PLAN} <= set(parts.RUNS)
    assert acceptance.BUDGET <= 480
    # Parts before the last whole networks leave time for these even if each takes all of its own.
    before = [entry.seconds for entry in acceptance.PLAN[: [e.name for e in acceptance.PLAN].index("networks")]]
    assert sum(before) + acceptance.PLAN[8].least <= acceptance.BUDGET


def test_parts_that_measure_report_their_rows(
    gpu: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, measure = gpu("parts"), gpu("measure")
    library = Path(host_library(tmp_path_factory))
    write_json(tmp_path / parts.RECORD, {"builds": [{"name": "native", "library": str(library), "program": "none"}]})
    monkeypatch.setattr(parts, "NETWORKS", ("tiny",))
    for name, value in (("Cuda", measure.Host), ("BATCHES", (1,)), ("RATES", (0.5,))):
        monkeypatch.setattr(measure, name, value)
    for function in ("block_rows", "network_rows"):
        defaults = {**getattr(measure, function).__kwdefaults__, "batches": (1,), "rates": (0.5,)}
        monkeypatch.setattr(getattr(measure, function), "__kwdefaults__", defaults)
    tiny_bundle(tmp_path / "bundles" / "tiny")
    for name, count in (("blocks", 2), ("networks", 1)):
        report = tmp_path / f"{name}.json"
        given = argparse.Namespace(prepared=tmp_path, scratch=tmp_path, report=report, seconds=6.0)
        monkeypatch.setattr(parts, "_bundle", lambda state, network: Bundle.open(state.bundle(network)))
        parts.RUNS[name](parts.State(given))
        written = json.loads(report.read_text())
        assert written["status"] == "passed" and len(written["rows"]) == count
        assert all(row["kind"] == "measured" and row["masks"] == "forced" for row in written["rows"])


def test_a_network_that_is_not_exported_in_time(gpu: Any, tmp_path: Path) -> None:
    parts = gpu("parts")
    write_json(tmp_path / parts.RECORD, {"builds": []})
    given = argparse.Namespace(prepared=tmp_path, scratch=tmp_path, report=tmp_path / "report.json", seconds=1.0)
    assert parts._bundle(parts.State(given), "laud_resnet50") is None
    assert "not exported in time" in json.loads((tmp_path / "report.json").read_text())["why"]


# ---------------------------------------------------------------- reading other programs

NCU = """==PROF== Connected to process 4711 (/usr/bin/python3)
==PROF== Profiling "entry": 0%....50%....100% - 1 pass
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","4711","void dyndeploy::cuda::entry<dyndeploy::cuda::CountKernel>(T1::Arguments)","gpu__time_duration.sum","ns","2,048"
"0","4711","void dyndeploy::cuda::entry<dyndeploy::cuda::CountKernel>(T1::Arguments)","launch__registers_per_thread","","40"
"1","4711","void dyndeploy::cuda::entry<dyndeploy::cuda::X<1>>(T1::Arguments)","gpu__time_duration.sum","us","3.5"
==PROF== Disconnected
"""  # noqa: E501


def test_counters_are_read(gpu: Any) -> None:
    rows = gpu("parts").read_counters(NCU)
    assert [row["kernel"] for row in rows] == ["entry<CountKernel>", "entry<X<1>>"]
    assert rows[0]["metrics"] == {"us": "2.05", "registers": "40"} and rows[1]["metrics"] == {"us": "3.50"}
    assert gpu("parts").read_counters("==ERROR== ERR_NVGPUCTRPERM\n") == []
    page = gpu("result_page").page({"started": "2026", "parts": {"counters": part("passed", rows)}})
    assert "| entry<CountKernel> | 40 | 2.05 |" in page and "measured by ncu" in page


def test_networks_of_random_weights_stay_within_half(gpu: Any) -> None:
    from dyndeploy import create_model

    model = create_model("laud_resnet101", mode="spatial", granularity=(4, 4, 2, 1)).eval()
    gpu("parts").randomise(model, torch.Generator().manual_seed(0))
    largest = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        block = dict(model.named_modules())[f"{stage}.0"]
        block.register_forward_hook(lambda module, inputs, output: largest.append(inputs[0].abs().max().item()))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert len(largest) == 4 and max(largest) < 1000


def test_bundles_of_a_fixed_batch_are_measured_too(gpu: Any, kernels: Any, tmp_path: Path) -> None:
    measure, rows = gpu("measure"), []  # type: ignore[var-annotated]
    bundle = tiny_bundle(tmp_path / "bundle", batch=2)
    measure.network_rows(
        measure.Host(), kernels, bundle, "many", batches=(3,), rates=(0.5,), seconds=0, add=rows.extend
    )
    assert measure.wrong(rows, measure.TOLERANCE) is None
