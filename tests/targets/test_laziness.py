from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dyndeploy.errors import InputError
from dyndeploy.targets import BranchTimes, LazinessRecord, load_record

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
    ("change", "message"),
    [
        ({"schema": 2}, "no record of 'dyndeploy probe'"),
        ({"standard": None}, "standard must be an object"),
        ({"standard": {"taken": 0, "not_taken": 1}}, r"standard\.taken must be a positive number"),
        ({"operators": {}}, r"operators\.taken is missing"),
    ],
)
def test_malformed_records(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}.*Probe again"):
        LazinessRecord.from_json(RECORD.to_json() | change)
