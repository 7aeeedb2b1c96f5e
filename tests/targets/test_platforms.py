from __future__ import annotations

from dataclasses import replace

import pytest

from dyndeploy.errors import InputError, UsageError
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes.tensorrt_ahead import RTX_CAPABILITIES
from dyndeploy.targets import BranchTimes, LazinessRecord, load_device, load_target, platforms, target_names
from dyndeploy.targets.platforms import parser_operators, refused_ahead

BOARDS = {"agx_orin", "agx_xavier", "nano", "orin_nano", "orin_nx", "tx2", "xavier_nx"}
AHEAD = {"rtx3060", "rtx3090", "rtx4090", "rtx5090"}
GPUS = AHEAD | {"a100", "h100", "h200", "v100"}

PLAIN = {name for name, spec in OPERATORS.items() if "tensorrt" not in spec.kernels}
"""Operators that have no plugin yet."""
BYTES = {
    name for name, spec in OPERATORS.items() if name not in PLAIN and spec.kernels["tensorrt"].precisions == ("int8",)
}
"""Those whose plugins multiply bytes, or make them."""


def test_the_targets_are_there() -> None:
    assert set(target_names()) == {"cpu", *BOARDS, *GPUS}


def test_tensorrt_rtx_builds_for_the_gpus_that_it_supports() -> None:
    ahead = {name for name in target_names() if load_target(name).ahead_of_time}
    assert ahead == AHEAD
    assert {load_device(name).hardware.compute_capability for name in ahead} <= set(RTX_CAPABILITIES)
    # The last release for Volta; https://docs.nvidia.com says that 10.5 removed it.
    assert load_target("v100").runtime_version == "10.4"


def test_a_release_of_tensorrt_has_the_operators_of_the_newest_list_before_it() -> None:
    assert parser_operators("8.5.2") - parser_operators("8.4") == {"GridSample", "RoiAlign"}
    assert parser_operators("11.1") - parser_operators("8.5.2") == {"LayerNormalization"}
    assert parser_operators("8.4") - parser_operators("8.2.1") == {"Xor"}
    assert {"GatherElements", "GreaterOrEqual", "ScatterElements"} <= parser_operators("8.2")
    assert parser_operators("8.2") == parser_operators("8.3") and len(parser_operators("8.2")) > 70
    assert load_target("nano").allowed_operators == parser_operators("8.2.1")


def test_where_detectors_run_what() -> None:
    places = {name: load_target(name).detection for name in target_names()}
    assert places["cpu"] == {}
    runs = {name: {what: place.runs for what, place in table.items()} for name, table in places.items()}
    ours = {"pyramid_regions": "plugin", "deformable_attention": "plugin"}
    old = {"NonMaxSuppression": "host", "TopK": "host", "RoiAlign": "host", "GridSample": "none", **ours}
    assert runs["nano"] == runs["tx2"] == old
    between = {**old, "RoiAlign": "engine", "GridSample": "engine"}
    assert runs["xavier_nx"] == runs["agx_orin"] == runs["v100"] == between
    # NVIDIA/TensorRT#4813.
    assert runs["rtx4090"] == runs["h200"] == {**between, "GridSample": "none"}
    assert all(place.why for table in places.values() for place in table.values())
    assert "2000" in places["nano"]["NonMaxSuppression"].why
    for name, table in runs.items():
        allowed = load_target(name).allowed_operators
        # A placeholder becomes an operator of its own; nothing else may stand in an engine that the parser cannot read.
        assert table.get("RoiAlign") != "engine" or (allowed is not None and "RoiAlign" in allowed)
        # A plugin is one of an operator of ours that has kernels for it.
        kinds = {spec.kind for spec in OPERATORS.values() if "tensorrt" in spec.kernels}
        assert {what for what, place in table.items() if place == "plugin"} <= kinds
    assert set(refused_ahead()) == {"RoiAlign"}


@pytest.mark.parametrize("name", ["nano", "tx2"])
def test_maxwell_and_pascal_boards(name: str) -> None:
    target = load_target(name)
    assert (target.runtime, target.runtime_version) == ("tensorrt", "8.2.1")
    assert (target.opset, target.ir_version) == (13, 8)
    with pytest.raises(UsageError, match="has no INT8 instructions"):
        target.require_precision("int8")
    target.require_precision("fp32")
    target.require_precision("fp16")
    assert "NonZero" in target.refused
    assert target.allowed_operators is not None
    assert "NonZero" not in target.allowed_operators


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_consistent(name: str) -> None:
    target = load_target(name)
    assert 13 <= target.opset <= 21
    assert [row["operator"] for row in target.capabilities()] == list(OPERATORS)
    for rule in target.precisions.values():
        assert rule.supported or rule.reason
    assert target.precisions["fp32"].supported
    assert target.to_json()["name"] == name
    assert not set(target.refused) & (target.allowed_operators or set())


def test_where_bf16_can_be_exported() -> None:
    assert {name for name in target_names() if load_target(name).precisions["bf16"].supported} == {"cpu"}
    with pytest.raises(UsageError, match="GPU has no BF16 instructions"):
        load_target("nano").require_precision("bf16")


def test_cpu_runs_every_operator() -> None:
    assert {row["runs"] for row in load_target("cpu").capabilities()} <= {"native", "body"}


@pytest.mark.parametrize("name", [name for name in target_names() if name != "cpu"])
def test_boards_run_plugins_in_fp16_and_in_int8_where_their_gpu_multiplies_bytes(name: str) -> None:
    target = load_target(name)
    rows = target.capabilities()
    nowhere = PLAIN if target.precisions["int8"].supported else PLAIN | BYTES
    assert {row["operator"] for row in rows if row["runs"] == "none"} == nowhere
    assert all("no INT8 instructions" in row["note"] for row in rows if row["operator"] in nowhere - PLAIN)
    rows = [row for row in rows if row["operator"] not in nowhere]
    assert {row["runs"] for row in rows} == {"plugin"}
    # A table must not claim what no board has shown.
    assert all("built on the device; not yet confirmed" in row["note"] for row in rows)
    target.require_precision("fp16")
    hardware = load_device(name).hardware
    # As the kernels have it (multiplies_bytes): from 6.1 on, but not 6.2.
    capability = float(hardware.compute_capability or 0)
    assert hardware.int8 == (capability >= 6.1 and capability != 6.2) == target.precisions["int8"].supported
    if hardware.int8:
        target.require_precision("int8")
        return
    with pytest.raises(UsageError, match=r"no INT8 instructions .*export with --precision fp16, or with --target cpu"):
        target.require_precision("int8")


def test_an_operator_without_a_kernel_of_the_family_is_not_promised_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bare, cpu_only = list(OPERATORS)[:2]
    specs = dict(OPERATORS)
    for name, kept in ((bare, set()), (cpu_only, {"cpu"})):
        kernels = {family: kernel for family, kernel in specs[name].kernels.items() if family in kept}
        specs[name] = replace(specs[name], kernels=kernels)
    monkeypatch.setattr(platforms, "OPERATORS", specs)
    runs = {
        name: {row["operator"]: row["runs"] for row in load_target(name).capabilities()} for name in ("cpu", "agx_orin")
    }
    assert (runs["cpu"][bare], runs["cpu"][cpu_only]) == ("body", "native")
    assert (runs["agx_orin"][bare], runs["agx_orin"][cpu_only]) == ("none", "none")
    (note,) = {row["note"] for row in load_target("agx_orin").capabilities() if row["runs"] == "none"}
    assert "cannot run there" in note
    assert {kind for name, kind in runs["agx_orin"].items() if name not in {bare, cpu_only, *PLAIN}} == {"plugin"}


def test_who_takes_branches() -> None:
    taken, reason = load_target("cpu").takes_branches()
    assert taken and "only the branch" in reason
    for name in set(target_names()) - {"cpu"}:
        target = load_target(name)
        assert target.takes_branches() == (False, target.refused["If"])
    nano = load_target("nano")
    lazy = LazinessRecord("nano", "tensorrt", "8.2.1.8", "GM20B", BranchTimes(8.0, 0.08), None)
    assert nano.takes_branches(lazy) == (True, "measured: leaving a branch takes 1% of taking it")
    assert nano.takes_branches(replace(lazy, standard=BranchTimes(8.0, 7.9)))[0] is False
    with pytest.raises(InputError, match="made for nano, not for tx2"):
        load_target("tx2").takes_branches(lazy)
    unknown = replace(nano, refused={})
    assert unknown.takes_branches() == (False, "TensorRT may run both branches, and this target was not probed")


@pytest.mark.parametrize("name", [name for name in target_names() if load_target(name).runtime == "tensorrt"])
def test_every_board_has_a_device_with_a_compute_capability(name: str) -> None:
    assert load_device(name).hardware.compute_capability


def test_unknown_target_and_precision() -> None:
    with pytest.raises(UsageError, match="Did you mean 'nano'"):
        load_target("nanoo")
    with pytest.raises(UsageError, match="Did you mean 'fp16'"):
        load_target("cpu").require_precision("fp-16")
