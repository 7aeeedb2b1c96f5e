from __future__ import annotations

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS
from dyndeploy.targets import load_target, target_names


def test_the_boards_are_there() -> None:
    assert set(target_names()) == {
        "agx_orin", "agx_xavier", "cpu", "nano", "orin_nano", "orin_nx", "tx2", "xavier_nx",
    }  # fmt: skip


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
def test_boards_run_plugins_in_fp16_and_refuse_int8(name: str) -> None:
    target = load_target(name)
    rows = target.capabilities()
    assert {row["runs"] for row in rows} == {"plugin"}
    # A table must not claim what no board has shown.
    assert all("built on the board; not yet confirmed" in row["note"] for row in rows)
    target.require_precision("fp16")
    with pytest.raises(UsageError, match=r"no INT8 instructions|calibrated Q/DQ"):
        target.require_precision("int8")


def test_unknown_target_and_precision() -> None:
    with pytest.raises(UsageError, match="Did you mean 'nano'"):
        load_target("nanoo")
    with pytest.raises(UsageError, match="Did you mean 'fp16'"):
        load_target("cpu").require_precision("fp17")
