from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.errors import NotFiniteError
from dyndeploy.files import json_text, write_json
from dyndeploy.finite import first_not_finite, listed, not_finite, number, require_finite

NAN, INF = float("nan"), float("inf")


def test_what_is_not_finite_is_counted() -> None:
    assert not_finite(np.array([NAN, 1, -INF, INF], np.float32)) == "1 NaN and 2 infinite of 4 values"
    assert not_finite(np.array([NAN, 1], np.float16)) == "1 NaN of 2 values"
    assert not_finite(np.array([1e38], np.float32)) == not_finite(np.array([2**62])) == ""
    assert not_finite(np.array([True])) == not_finite(np.zeros((0, 3))) == ""


def test_brain_floats_are_looked_at_too() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert not_finite(np.array([NAN, INF, 1], np.float32).astype(bfloat16)) == "1 NaN and 1 infinite of 3 values"


def test_arrays_are_named() -> None:
    arrays = {name: np.array([NAN]) for name in "abcde"} | {"fine": np.ones(2)}
    assert listed(arrays) == (
        "'a' holds 1 NaN of 1 values, 'b' holds 1 NaN of 1 values, 'c' holds 1 NaN of 1 values and 2 more"
    )
    assert listed({"fine": np.ones(2)}) == ""
    require_finite({"fine": np.ones(2)}, "")
    with pytest.raises(NotFiniteError, match=r"'logits' holds 1 infinite of 2 values\. Look there\."):
        require_finite({"logits": np.array([1, INF])}, "Look there.")


def test_the_place_in_a_json_value_is_told(tmp_path: Path) -> None:
    value = {"exits": [{"loss": 1.0}, {"loss": NAN}], "ms": (1.0, 2)}
    assert first_not_finite(value) == "exits[1].loss"
    assert first_not_finite({"a": [1, "nan", None, True]}) is None
    assert (number(INF), number(NAN), number(1.5)) == (None, None, 1.5)
    with pytest.raises(NotFiniteError, match=r"exits\[1\]\.loss is NaN or infinite"):
        write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())
    assert json.loads(json_text({"a": 1.5}, indent=None)) == {"a": 1.5}
