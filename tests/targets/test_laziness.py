from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dyndeploy.errors import InputError
from dyndeploy.targets import BranchTimes, LazinessRecord, layer_skipping, load_record, load_target

LAZY = BranchTimes(8.0, 0.08)
BOTH = BranchTimes(8.0, 7.9)
RECORD = LazinessRecord("nano", "tensorrt", "8.2.1.8", "GM20B", LAZY, None, "operators not measured")


def test_conclusions() -> None:
    assert LAZY.lazy and LAZY.ratio == pytest.approx(0.01)
    assert not BOTH.lazy
    assert RECORD.to_json()["standard_lazy"] is True
    assert RECORD.to_json()["operators_lazy"] is None


def test_records_come_back_from_files(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    for record in (RECORD, replace(RECORD, operators=BOTH)):
        path.write_text(json.dumps(record.to_json()))
        assert load_record(path) == record


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"standard": None}, {"standard": {"taken": 0, "not_taken": 1}}, {"operators": {}}]
)
def test_malformed_records(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="Probe again"):
        LazinessRecord.from_json(RECORD.to_json() | change)


def test_the_plugin_is_the_default() -> None:
    nano = load_target("nano")
    assert layer_skipping(nano).how == "plugin"
    assert layer_skipping(nano, RECORD).how == "plugin"
    assert "1%" in layer_skipping(nano, RECORD).reason


def test_without_operators_the_record_decides() -> None:
    bare = replace(load_target("nano"), operator_kernels="")
    assert layer_skipping(bare).how == "staged"
    assert layer_skipping(bare, RECORD).how == "if"
    assert layer_skipping(bare, replace(RECORD, standard=BOTH)).how == "staged"
    with pytest.raises(InputError, match="made for nano, not for tx2"):
        layer_skipping(load_target("tx2"), RECORD)
