from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyndeploy.device_calibration.graphs import FAMILIES, micro_graph
from dyndeploy.errors import InputError
from dyndeploy.prediction import GraphWalker
from dyndeploy.prediction.calibrated import FEATURES, CalibratedModel, Calibration, Installation, load_calibration
from dyndeploy.prediction.kernels import Graph, moving_kernel, walk
from dyndeploy.prediction.zoo import zoo_nodes


def resnet(mode: str, rate: float) -> Graph:
    return GraphWalker(zoo_nodes("laud_resnet50", {"mode": mode, "granularity": 1})).graph(rate)


def test_a_file_read_again_predicts_the_same(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(calibration.to_json()))
    kernels = resnet("spatial", 0.5).kernels
    for one, other in zip(
        CalibratedModel(calibration).price(kernels), CalibratedModel(load_calibration(path)).price(kernels), strict=True
    ):
        assert np.allclose(one, other, rtol=2e-3)


def change(value: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return value


@pytest.mark.parametrize(
    ("machine", "native", "said"),
    [
        ({}, {}, []),
        (
            {},
            {"instruction_set": "avx2"},
            ["instruction set of the operator library: calibrated with avx512, not avx2"],
        ),
        ({}, {"instruction_set": None}, []),  # A library that does not say; its checksum differs, too.
        ({}, {"sha256": "b"}, ["the operator library is another one than was calibrated"]),
        (
            {"isa": ["avx2", "fma"]},
            {},
            ["vector instructions: calibrated on a processor that now is without avx512f"],
        ),
        (
            {"isa": ["avx2", "amx_bf16"]},
            {},
            ["vector instructions: calibrated on a processor that now is without avx512f, fma and with amx_bf16"],
        ),
        ({"isa": []}, {}, []),  # Not told.
        ({"cpu": "z"}, {"instruction_set": "avx2"}, ["processor: calibrated on a, not z", "instruction set"]),
    ],
)
def test_what_differs_is_said(
    calibration: Calibration, machine: dict[str, Any], native: dict[str, Any], said: list[str]
) -> None:
    facts = {**calibration.machine, "isa": ["avx2", "fma", "avx512f"]}
    runtime = {"version": "1", "native_sha256": "a", "instruction_set": "avx512"}
    made = dataclasses.replace(calibration, machine=facts, runtime=runtime)
    used = {"sha256": "a", "instruction_set": "avx512", **native}
    found = made.foreign(Installation({**facts, **machine}, "1", used))
    assert len(found) == len(said) and all(item.startswith(start) for item, start in zip(found, said, strict=True))
    assert made.foreign(Installation(facts, "1", None)) == [], "what a profile does not tell is not compared"


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("format",), "other", "not a calibration"),
        (("schema",), 99, "another release"),
        (("features",), ["x"], "another release"),
        (("classes",), {}, "damaged"),
        (("classes", "gemm", "constants"), [-1.0], "damaged"),
        (("classes", "gemm", "low"), [0.0], "damaged"),
        (("classes", "gemm", "interval"), [1.0, -1.0], "damaged"),
        (("classes", "gemm", "floor_ms"), 0, "damaged"),
        (("classes", "conv_pointwise", "trees"), {"start": 0}, "damaged"),
        (("overhead_ms",), float("nan"), "damaged"),
        (("machine",), 3, "damaged"),
    ],
)
def test_damaged_and_foreign_files_are_refused(calibration: Calibration, path: tuple, to: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Calibration.from_json(change(calibration.to_json(), *path, to=to))


def test_a_tree_that_asks_for_a_feature_that_is_not_there_is_refused(calibration: Calibration) -> None:
    value = calibration.to_json()
    tree = value["classes"]["conv_pointwise"]["trees"]["trees"][0]
    tree["feature"][0] = len(FEATURES)
    with pytest.raises(InputError, match="damaged"):
        Calibration.from_json(value)


def test_a_layer_that_runs_sometimes_is_the_mean_of_both(calibration: Calibration) -> None:
    model = CalibratedModel(calibration)
    resident = np.full(len(resnet("layer", 1.0).kernels), 1e8)
    on, off, often = (model.price(resnet("layer", rate).kernels, resident)[0] for rate in (1.0, 0.0, 0.75))
    assert np.allclose(often, 0.75 * on + 0.25 * off)
    assert off.sum() < 0.6 * on.sum()


def test_the_context_can_be_given(calibration: Calibration) -> None:
    model, kernels = CalibratedModel(calibration), resnet("static", 1.0).kernels
    touched = sum(kernel.weight_bytes for kernel in kernels)
    assert np.allclose(model.price(kernels)[0], model.price(kernels, np.full(len(kernels), touched))[0])


def test_what_was_not_measured_is_priced_widely(calibration: Calibration) -> None:
    unknown = moving_kernel("x", None, "unknown:Fancy", read=10**6, written=10**6)
    known = moving_kernel("y", None, "elementwise", read=10**6, written=10**6, operators=1)
    ms, low, high = CalibratedModel(calibration).price([unknown, known])
    assert 0 < low[0] < ms[0] / 1.9 and high[0] > 1.9 * ms[0]
    larger = moving_kernel("z", None, "elementwise", read=10**10, written=10**10, operators=1)
    ms, low, high = CalibratedModel(calibration).price([larger, known])
    # Far outside of what was measured; a calibration that means anything still knows it within three.
    assert high[0] == pytest.approx(3 * ms[0]) and low[0] == pytest.approx(ms[0] / 3)


def test_every_kernel_has_a_positive_time(calibration: Calibration) -> None:
    for family in FAMILIES:
        ms, low, high = CalibratedModel(calibration).price(
            walk(micro_graph(family, 77, values=False).model, 0.5).kernels
        )
        assert (ms > 0).all() and (low <= ms).all() and (ms <= high).all()
