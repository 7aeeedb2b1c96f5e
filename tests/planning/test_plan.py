from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.cli import run
from dyndeploy.errors import InputError, UsageError
from dyndeploy.nets import model_info, model_names
from dyndeploy.planning import Plan, PlanSettings, load_plan, plan_network
from dyndeploy.planning.composition import Composition, Option
from dyndeploy.planning.sources import calibrated_prices, device_prices
from dyndeploy.prediction import predict
from dyndeploy.prediction.kernels import GraphWalker, Kernel
from dyndeploy.prediction.zoo import zoo_nodes
from dyndeploy.remote import DeviceEntry, save_device
from dyndeploy.targets.devices import device_names, load_device
from tests.device_calibration.helpers import little_calibration, true_ms

SMALL = "laud_resnet14_small"


def price(kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A machine on which starting a dynamic operator costs much and small patches cost more."""
    ms = []
    for kernel in kernels:
        f = kernel.features
        patches = f.get("mask_h", 0) * f.get("mask_w", 0)
        start = 0.004 if kernel.kind.endswith("bottleneck") else 0.001
        ms.append(start + kernel.macs / 1e8 + kernel.bytes / 1e8 + 2e-5 * patches)
    array = np.array(ms)
    return array, 0.9 * array, 1.1 * array


SETTINGS = PlanSettings(modes=("spatial", "channel", "static"), granularities=(1, 4), channel_granularities=(2,))


STATIC = Option("static", 1, 1)


def test_the_search_finds_what_trying_everything_finds() -> None:
    network = Composition(SMALL, SETTINGS.rate)
    options = [Option("spatial", 1, 1), Option("spatial", 4, 1), Option("channel", 1, 2), STATIC]
    valid = [[option for option in options if stage in network.valid_stages(option)] for stage in range(4)]
    times = [float(price(network.kernels(chosen))[0].sum()) for chosen in itertools.product(*valid)]
    best, _ = plan_network(SMALL, {1: price}, SETTINGS)
    # A network's head differs a little with the layout that reaches it, which the search only sees at the end.
    assert best.latency_ms == pytest.approx(min(times), rel=0.01)
    assert best.latency_ms <= best.static_ms


@pytest.mark.parametrize(
    ("name", "dense"),
    [
        ("laud_resnet26_small", ("layer1.1", "layer2.0", "layer4.0")),
        ("laud_regnety_small", ("trunk_output.block1.block1-1", "trunk_output.block4.block4-0")),
    ],
)
def test_composed_networks_are_those_that_are_built_so(name: str, dense: tuple[str, ...]) -> None:
    network = Composition(name, 0.3)
    assert [len(stage) for stage in network.stages] == [2, 2, 2, 2]
    options = [Option("spatial", 2, 1), Option("both", 1, 2), STATIC, Option("channel", 1, 4)]
    chosen = [
        STATIC if block in dense else option
        for option, stage in zip(options, network.stages, strict=True)
        for block in stage
    ]
    nodes = zoo_nodes(
        name,
        {
            "mode": [option.mode for option in options],
            "granularity": [option.granularity for option in options],
            "channel_granularity": [option.channel_granularity for option in options],
        },
        dense=dense,
    )
    built = GraphWalker(nodes).graph(0.3).kernels

    def described(kernels: Sequence[Kernel]) -> list[tuple[object, ...]]:
        return [(k.block, k.kind, k.macs, k.read_bytes, k.written_bytes, k.weight_bytes, k.features) for k in kernels]

    assert described(network.kernels(chosen)) == described(built)


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_has_the_kernels_of_the_network_that_is_built(seed: int) -> None:
    network = Composition(SMALL, 0.3, runtime="tensorrt" if seed % 2 else "onnxruntime")
    random = np.random.default_rng(seed)
    dense = tuple(name for name in network.blocks if random.random() < 0.5)
    chosen = [STATIC if name in dense else Option("layer", 1, 1) for name in network.blocks]
    nodes = zoo_nodes(SMALL, {"mode": "layer"}, dense=dense)
    built = GraphWalker(nodes, runtime="tensorrt" if seed % 2 else "onnxruntime").graph(0.3).kernels
    composed = network.kernels(chosen)
    assert [(k.block, k.kind, k.macs, k.bytes) for k in composed] == [(k.block, k.kind, k.macs, k.bytes) for k in built]


def test_a_mask_has_more_than_one_patch() -> None:
    network = Composition(SMALL, 0.5)  # maps of 32, 16, 8 and 4 pixels
    assert network.valid_stages(Option("spatial", 4, 1)) == {0, 1, 2}
    assert network.valid_stages(Option("spatial", 1, 1)) == network.valid_stages(Option("layer", 1, 1)) == {0, 1, 2, 3}
    # 24, 40, 64 and 128 hidden channels.
    assert network.valid_stages(Option("channel", 1, 16)) == {2, 3}


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 1.0])
def test_never_slower_than_static_and_the_front_is_a_front(rate: float) -> None:
    settings = PlanSettings(rate=rate, granularities=(1, 2, 4))
    best, front = plan_network("laud_resnet50", {1: price}, settings)
    assert best.latency_ms <= best.static_ms * (1 + 1e-9)
    ms, macs = [plan.latency_ms for plan in front], [plan.macs for plan in front]
    assert ms == sorted(ms) and macs == sorted(macs) and best is front[0]
    assert all(plan.interval_ms[0] <= plan.latency_ms <= plan.interval_ms[1] for plan in front)


def test_a_budget_takes_the_plan_that_computes_most_within_it() -> None:
    fastest, front = plan_network("laud_resnet50", {1: price}, SETTINGS)
    budget = (fastest.latency_ms + fastest.static_ms) / 2
    chosen, _ = plan_network("laud_resnet50", {1: price}, SETTINGS, budget_ms=budget)
    assert fastest.macs < chosen.macs and chosen.latency_ms <= budget
    assert chosen.macs == max(plan.macs for plan in front if plan.latency_ms <= budget)
    with pytest.raises(UsageError, match="fastest takes"):
        plan_network("laud_resnet50", {1: price}, SETTINGS, budget_ms=fastest.latency_ms / 2)


def test_blocks_that_are_not_worth_it_run_densely() -> None:
    def dear(kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ms = np.array(
            [
                100.0 if k.block == "layer3.2" and "bottleneck" in k.kind else p
                for k, p in zip(kernels, price(kernels)[0], strict=True)
            ]
        )
        return ms, ms, ms

    settings = PlanSettings(rate=0.2, modes=("spatial", "static"), granularities=(4,))
    best, _ = plan_network("laud_resnet50", {1: dear}, settings)
    assert best.dense == ("layer3.2",) and best.mode[2] == "spatial"
    assert any(reason.startswith("layer3.2 runs densely") for reason in best.reasons)


def test_threads_are_chosen() -> None:
    def twice(kernels: Sequence[Kernel]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(0.5 * part for part in price(kernels))  # type: ignore[return-value]

    assert plan_network(SMALL, {1: price, 2: twice}, SETTINGS)[0].threads == 2


def test_a_uniform_mode_is_one() -> None:
    settings = PlanSettings(uniform_mode=True, granularities=(1, 4))
    for plan in plan_network("laud_resnet50", {1: price}, settings)[1]:
        assert len(set(plan.mode) - {"static"}) <= 1


@pytest.mark.parametrize(
    "settings",
    [{"modes": ("spatail",)}, {"modes": ()}, {"rate": 1.5}, {"granularities": (0,)}, {"channel_granularities": ()}],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError):
        PlanSettings(**settings)


def test_networks_that_cannot_be_planned_are_refused() -> None:
    with pytest.raises(UsageError, match="reference predictor only"):
        plan_network("lad_regnet_y_400mf", {1: price})
    with pytest.raises(UsageError, match="known to 'predict' only"):
        plan_network("resnet50", {1: price})
    with pytest.raises(UsageError, match="Did you mean 'laud_resnet50'"):
        plan_network("laud_resnet5", {1: price})
    early = next(name for name in model_names() if "mode" not in model_info(name).defaults)
    with pytest.raises(UsageError, match="no modes"):
        plan_network(early, {1: price})
    with pytest.raises(UsageError, match="calibrate-device"):
        plan_network(SMALL, {})


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    plan, _ = plan_network(SMALL, {1: price}, SETTINGS)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_json()))
    assert load_plan(path) == plan
    assert Plan.from_json({"chosen": plan.to_json(), "front": []}) == plan
    good = plan.to_json()
    for change in (
        {"format": "x"},
        {"schema": 9},
        {"mode": "spatial"},
        {"granularity": ["a"]},
        {"threads": 0},
        {"new": 1},
    ):
        with pytest.raises(InputError):
            Plan.from_json({**good, **change})
    with pytest.raises(InputError):
        Plan.from_json({key: item for key, item in good.items() if key != "dense"})


def test_a_calibration_of_another_instruction_set_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    made = little_calibration()
    path.write_text(json.dumps(made.to_json()))
    prices, warnings = calibrated_prices("cpu", None, [path])
    assert list(prices) == [1] and warnings == []
    path.write_text(json.dumps(dataclasses.replace(made, machine={**made.machine, "isa": ["vax"]}).to_json()))
    _, (warning,) = calibrated_prices("cpu", None, [path])
    assert warning.startswith("the calibration may not fit, vector instructions: calibrated on a processor that now is")
    assert run(["plan", SMALL, "--modes", "layer,static", "--calibration", str(path)]) == 0
    assert f"Note: {warning}" in capsys.readouterr().err


QUICK = ["--modes", "spatial,static", "--granularities", "1-4", "--rate", "0.5"]


def test_a_regnet_is_planned_for_this_processor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(little_calibration().to_json()))
    assert run(["plan", "laud_regnety_small", "--calibration", str(path), *QUICK, "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert (chosen["kind"], chosen["device"], chosen["threads"]) == ("predicted", "cpu", 1)
    assert len(chosen["mode"]) == 4 and set(chosen["mode"]) - {"static"}
    assert chosen["latency_ms"] < chosen["static_ms"] and chosen["macs"] < chosen["static_macs"]
    # The calibration's constants are known: the whole network at them.
    nodes = zoo_nodes(
        "laud_regnety_small",
        {key: chosen[key] for key in ("mode", "granularity", "channel_granularity")},
        dense=tuple(chosen["dense"]),
    )
    expected = sum(true_ms(kernel) for kernel in GraphWalker(nodes).graph(0.5).kernels)
    assert chosen["latency_ms"] == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize("device", [name for name in device_names() if not load_device(name).is_local])
def test_every_device_of_the_table_is_planned_for(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", SMALL, "--device", device, *QUICK, "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert (chosen["kind"], chosen["device"], chosen["threads"]) == ("predicted", device, None)
    assert chosen["basis"].startswith("device model, not calibrated: ") and chosen["runtime"] == "tensorrt"
    assert chosen["latency_ms"] <= chosen["static_ms"] * (1 + 1e-9)
    assert json.loads(json.dumps(Plan.from_json(chosen).to_json())) == chosen


def test_a_plan_for_a_board_is_the_prediction_of_the_whole_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", SMALL, "--device", "nano", "--modes", "static", "--json"]) == 0
    static = json.loads(capsys.readouterr().out)["chosen"]
    assert static["latency_ms"] == pytest.approx(predict(SMALL, "nano", batch=1, runtime="tensorrt").latency_ms)


def test_what_a_board_cannot_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (["--measure"], "'nano' is another one"),
        (["--threads", "2"], "nano is a GPU"),
        (["--precision", "int8"], "no INT8 instructions"),
        (["--exit-mix", "1/2"], "has no exits"),
        (["--device", "nanoo"], "Did you mean 'nano'"),
    ):
        assert run(["plan", SMALL, "--device", "nano", *QUICK, *options]) == 2
        assert words in capsys.readouterr().err


def test_a_boards_own_name_means_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    save_device(DeviceEntry("lab", "user@lab", "tx2"))
    assert run(["plan", SMALL, "--device", "lab", *QUICK]) == 0
    assert f"{SMALL} on tx2 at rate 0.5" in capsys.readouterr().out


def test_command_line_without_a_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["plan", "laud_resnet50"]) == 2
    (tmp_path / "bad.json").write_text("{}")
    assert run(["plan", "laud_resnet50", "--calibration", str(tmp_path / "bad.json")]) == 1


@pytest.mark.vision("torchvision")
def test_a_detector_has_the_blocks_of_its_backbone_and_a_head_that_reads_several() -> None:
    name = "laud_retinanet_small"
    network = Composition(name, 0.5, runtime="tensorrt")
    assert len(network.stages) == 4 and all(block.startswith("backbone.layer") for block in network.blocks)
    priced = device_prices("tx2").by_threads[None]
    times = []
    for mode in ("layer", "static"):
        kernels = network.kernels([Option(mode, 1, 1)] * len(network.blocks))
        times.append(float(priced(kernels)[0].sum()))
        rate = {} if mode == "static" else {"mode": mode, "rate": 0.5}
        predicted = predict(name, "tx2", batch=1, **rate)  # type: ignore[arg-type]
        assert times[-1] == pytest.approx(predicted.latency_ms, rel=0.01)
        assert math.fsum(k.macs for k in kernels) == pytest.approx(sum(part.macs for part in predicted.parts))
    mixed = [Option("layer", 1, 1) if index % 2 else STATIC for index in range(len(network.blocks))]
    assert times[0] < times[1]
    # Every other block would change the layout each time, and the pyramid's maps besides.
    assert statistics.fmean(times) * 1.05 < float(priced(network.kernels(mixed))[0].sum())
