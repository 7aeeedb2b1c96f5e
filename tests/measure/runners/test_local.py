from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from dyndeploy import files
from dyndeploy.bundle import Bundle
from dyndeploy.errors import BundleError, InputError, UsageError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.graphs.labels import LabelledGraph
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.measure import DEFAULT_RATES, Profile, RateResult, profile_bundle
from dyndeploy.measure.runners import local
from dyndeploy.nets import LaudResNet, create_model
from dyndeploy.reporting import render_report
from dyndeploy.runtimes import FALLBACK_BODIES, OnnxRuntimeSession, find_cpu_library
from tests.bundles import BLOCK_MACS, HEAD_MACS, MODES, SIZE, STATIC_MACS, STEM_MACS, tiny_bundle


def results(profile: Profile) -> list[RateResult]:
    return [*profile.rates, profile.data]


def quick(bundle: Bundle, **options: object) -> Profile:
    return profile_bundle(bundle, **{"rates": (0.5,), "repeats": 2, "warmup": 1, "native": "off", **options})  # type: ignore[arg-type]


def test_what_was_measured_is_recorded(profile: Profile) -> None:
    value = json.loads(json.dumps(profile.to_json(), allow_nan=False))
    assert value["kind"] == "measured"
    assert value["device"] == "cpu"
    assert (value["threads"], value["batch"]) == (1, 1)
    unused = dict.fromkeys(("path", "sha256", "instruction_set"))
    assert value["native"] == {**unused, "description": FALLBACK_BODIES, "operators": []}
    assert value["bundle"]["name"] == "tiny"
    assert value["machine"]["cpu"]
    assert value["settings"]["rounds"] == 4
    assert value["settings"]["images"]["source"] == "random numbers"
    assert value["static_macs"] == STATIC_MACS
    for entry in (value["static"], *value["rates"], value["data"]):
        assert {"median_ms", "p90_ms", "p99_ms", "min_ms", "cov", "samples_ms", "unstable"} <= set(entry)
        assert entry["median_ms"] == pytest.approx(np.median(entry["samples_ms"]))
        assert len(entry["samples_cpu_ms"]) == len(entry["samples_ms"])
        assert entry["preempted"] is None or entry["preempted"] >= 0
    assert [entry["rate"] for entry in value["rates"]] == [0.25, 0.5, 1.0]
    assert [entry["masks"] for entry in value["rates"]] == ["forced"] * 3
    assert value["data"]["masks"] == "data"


def test_the_figures_follow_from_each_other(profile: Profile) -> None:
    for result, entry in zip(results(profile), [*profile.to_json()["rates"], profile.to_json()["data"]], strict=True):
        assert entry["realisation"] == pytest.approx(entry["realised_speedup"] / entry["ideal_speedup"])
        assert entry["ideal_speedup"] == pytest.approx(STATIC_MACS / entry["needed_macs"])
        low, high = entry["realised_spread"]
        assert min(result.ratios) <= low <= high <= max(result.ratios)
        assert min(result.ratios) <= entry["realised_speedup"] <= max(result.ratios)
        assert len(result.ratios) == 4
        medians = [
            np.median([r for r, i in zip(result.ratios, result.ratio_inputs, strict=True) if i == index])
            for index in set(result.ratio_inputs)
        ]
        assert entry["realised_speedup"] == pytest.approx(len(medians) / sum(1 / m for m in medians))


def test_ideal_speedups_by_hand(profile: Profile) -> None:
    full = profile.rates[-1]
    assert full.needed_macs == STATIC_MACS + 8 * 16 + 16 * 16
    assert full.blocks[0].ideal_speedup == pytest.approx(BLOCK_MACS["layer1.0"] / (BLOCK_MACS["layer1.0"] + 8 * 16))
    assert [part.ideal_speedup for part in full.rest if part.name in ("stem", "head")] == [1.0, 1.0]
    assert profile.rates[0].ideal_speedup > profile.rates[1].ideal_speedup > full.ideal_speedup
    # Nothing can be faster than what is never skipped.
    floor = STEM_MACS + HEAD_MACS + 64 * 8 * 16
    assert profile.rates[0].ideal_speedup < STATIC_MACS / floor


def test_blocks_and_rest_cover_the_network(profile: Profile) -> None:
    for result in results(profile):
        assert [block.name for block in result.blocks] == ["layer1.0", "layer2.0"]
        assert {part.name for part in result.rest} == {"stem", "head", "other"}
        assert all(block.static_ms > 0 and block.dynamic_ms > 0 for block in result.blocks)
        assert 0 <= result.unmapped_share["dynamic"] < 1
        other = next(part for part in result.rest if part.name == "other")
        total = sum(part.dynamic_ms for part in (*result.blocks, *result.rest))
        assert result.unmapped_share["dynamic"] == pytest.approx(other.dynamic_ms / total)


def test_data_rates_are_those_of_the_maskers(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, mode="both", batch=2)
    profile = quick(bundle)
    images = bundle.reference()["input"]
    with OnnxRuntimeSession(bundle.model, native="off") as session:
        runs = [session.run({"input": images[i : i + 2]}) for i in (0, 2)]
    expected = {m.name: float(np.mean([run[m.name].mean() for run in runs])) for m in bundle.manifest.masks}
    assert dict(profile.data.mask_rates) == pytest.approx(expected)
    assert profile.data.rate == pytest.approx(np.mean(list(expected.values())))
    counter = MacCounter(onnx.load(bundle.model))
    needed = np.mean([counter.count(run).per_sample.mean() for run in runs])
    assert profile.data.needed_macs == pytest.approx(needed)
    assert profile.batch == 2
    entry = profile.to_json()["data"]
    assert entry["ms_per_image"] == pytest.approx(entry["median_ms"] / 2)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_profiled(mode: str, tmp_path: Path) -> None:
    profile = quick(tiny_bundle(tmp_path, mode=mode), threads=2)
    assert profile.threads == 2
    assert profile.static.cpu_ms is None
    assert profile.rates[0].realised_speedup_cpu is None
    if mode != "layer":
        assert set(profile.rates[0].mask_rates.values()) == {0.5}
    assert np.mean(list(profile.rates[0].mask_rates.values())) == pytest.approx(0.5)


def test_a_folder_of_images_is_cycled_in_whole_batches(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    bundle = tiny_bundle(tmp_path / "bundle", batch=2)
    profile = quick(bundle, data=folder, repeats=3)
    source = profile.settings["images"]
    assert (source["count"], source["repeated_to_fill_batches"]) == (3, 1)
    assert source["source"] == "folder images"
    assert profile.settings["image_batches"] == 2
    assert set(profile.data.ratio_inputs) == {0, 1}


def test_repeats_limit_the_inputs(tmp_path: Path) -> None:
    profile = quick(tiny_bundle(tmp_path, images=6))
    assert profile.settings["image_batches"] == 2
    assert len(profile.rates[0].ratios) == 2


def test_rounds_fill_the_time_and_use_every_input_alike(tmp_path: Path) -> None:
    profile = quick(tiny_bundle(tmp_path, images=5), repeats=None, min_seconds=0.0)
    rounds = profile.settings["rounds"]
    assert rounds >= 12
    assert rounds % 5 == 0
    counts = [profile.data.ratio_inputs.count(index) for index in range(5)]
    assert len(set(counts)) == 1


def test_the_exporters_names_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("laud_resnet14_small", mode="spatial", num_classes=10)
    assert isinstance(network, LaudResNet)
    bundle = export_model(network, tmp_path / "bundle", ExportSettings(static=True))
    profile = quick(bundle)
    assert [block.name for block in profile.data.blocks] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert profile.static_macs == bundle.manifest.static_macs
    assert all(block.static_ms > 0 and block.dynamic_ms > 0 for block in profile.data.blocks)
    # Structural, not a timing: only the layout changes that the runtime inserts stay without a block.
    assert max(profile.data.unmapped_share.values()) < 0.1


def test_rates_that_small_masks_cannot_meet_are_stated(tmp_path: Path) -> None:
    profile = quick(tiny_bundle(tmp_path), rates=(0.1, 0.5))
    # Of 16 patches round(1.6) = 2 run.
    assert [result.achieved_rate for result in profile.rates] == [0.125, 0.5]
    assert [entry["achieved_rate"] for entry in profile.to_json()["rates"]] == [0.125, 0.5]
    assert [result.label for result in profile.rates] == ["0.1, achieved 0.125", "0.5"]
    assert profile.data.achieved_rate == pytest.approx(profile.data.rate)
    assert "0.1 became 0.125 (mean" in " ".join(profile.warnings())
    # The rate asked for is a label: no figure follows from it.
    first = profile.rates[0]
    assert replace(first, rate=0.9).realisation == first.realisation
    assert replace(first, rate=0.9).ideal_speedup == first.ideal_speedup


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bodies", [True, False])
def test_graphs_that_cannot_be_labelled_fail_before_the_measurement(
    bodies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(model: onnx.ModelProto, **_: object) -> LabelledGraph:
        graph = LabelledGraph(model, bodies=False)
        dynamic = any(node.domain for node in model.graph.node)
        if dynamic == bodies:
            graph.model.graph.node[0].op_type = "NoSuchOperator"
        return graph

    def never(*_: object) -> int:
        raise AssertionError("measured although the node profile cannot be taken")

    monkeypatch.setattr(local, "LabelledGraph", broken)
    monkeypatch.setattr(local, "time_rounds", never)
    with pytest.raises(BundleError, match="cannot load"):
        quick(tiny_bundle(tmp_path))
    assert capfd.readouterr().err == ""


def test_default_rates() -> None:
    assert DEFAULT_RATES == (0.1, 0.25, 0.5, 0.75, 1.0)


def test_a_bundle_without_static_twin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--static"):
        quick(tiny_bundle(tmp_path, static=False))


@pytest.mark.parametrize("rates", [(), (1.5,), (-0.1,), (float("nan"),), (True,), ("0.5",)])
def test_bad_rates_are_refused(rates: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rate"):
        quick(tiny_bundle(tmp_path), rates=rates)


@pytest.mark.parametrize(
    "options", [{"repeats": 1}, {"repeats": 0}, {"warmup": 0}, {"min_seconds": -1.0}, {"threads": 0}, {"images": 0}]
)
def test_bad_settings_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        quick(tiny_bundle(tmp_path), **options)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    content = bytearray(bundle.model.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.model.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        quick(bundle)


def test_images_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    np.savez(tmp_path / "reference.npz", input=np.zeros((2, 3, SIZE, SIZE + 1), np.float32))
    checksums = {**bundle.manifest.files, "reference.npz": files.sha256(tmp_path / "reference.npz")}
    with pytest.raises(InputError, match=r"'input' must be \(n, 3, 16, 16\), not"):
        quick(Bundle(bundle.path, replace(bundle.manifest, files=checksums)))


def test_an_empty_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no images"):
        quick(tiny_bundle(tmp_path / "bundle"), data=tmp_path / "images")


@pytest.mark.skipif(find_cpu_library() is None, reason="the native operator library is not built")
@pytest.mark.parametrize("mode", MODES)
def test_operators_that_ran_natively_are_recorded(mode: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, mode=mode)
    profile = quick(bundle, native="auto")
    library = find_cpu_library()
    assert library is not None
    assert (profile.native["path"], profile.native["sha256"]) == (str(library.path), library.sha256)
    assert profile.native["instruction_set"] == library.instruction_set()
    assert profile.native["operators"] == sorted({item.op_type for item in bundle.manifest.operators})
    assert all(block.dynamic_ms > 0 for block in profile.data.blocks)


@pytest.mark.skipif(find_cpu_library() is None, reason="the native operator library is not built")
def test_bf16_is_measured_and_named_beside_the_fp32_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The plain C++ kernels, so that this runs on every machine.
    monkeypatch.setenv("DYNDEPLOY_CPU_ISA", "generic")
    opened: list[tuple[str, str]] = []

    class Recorded(OnnxRuntimeSession):
        def __init__(self, model: str | Path | onnx.ModelProto, **options: Any) -> None:
            super().__init__(model, **options)
            opened.append((options["native"], self.info.precision))

    monkeypatch.setattr(local, "OnnxRuntimeSession", Recorded)
    bundle = tiny_bundle(tmp_path)
    bundle = Bundle(bundle.path, replace(bundle.manifest, precision="bf16"))
    profile = quick(bundle, native="auto")
    assert set(opened) == {("auto", "fp32"), ("auto", "bf16")}
    assert profile.reduced_precision == "bf16"
    assert "bottlenecks compute in bf16, the static twin in fp32" in " ".join(profile.warnings())
    assert "static twin fp32" in render_report(profile)
    with pytest.raises(UsageError, match="bf16 needs the operator library"):
        quick(bundle)


def test_fp32_is_not_called_reduced(profile: Profile) -> None:
    assert profile.reduced_precision is None
    assert "fp32" not in " ".join(profile.warnings())
