from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor

from dyndeploy.device_calibration.fit import boosted
from dyndeploy.prediction.trees import Trees


def data(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    table = random.standard_normal((rows, 6))
    return table, np.sin(table[:, 0]) + (table[:, 1] > 0) * table[:, 2]


def test_trees_equal_scikit_learns_own_prediction() -> None:
    table, target = data()
    model = GradientBoostingRegressor(n_estimators=30, max_depth=4, random_state=0).fit(table, target)
    parts = [
        {
            "feature": np.maximum(e.tree_.feature, -1), "threshold": e.tree_.threshold, "left": e.tree_.children_left,
            "right": e.tree_.children_right, "value": e.tree_.value[:, 0, 0] * model.learning_rate,
        }
        for e in model.estimators_[:, 0]
    ]  # fmt: skip
    trees = Trees.join(float(model.init_.constant_.ravel()[0]), parts)
    assert np.allclose(trees(table), model.predict(table), atol=1e-12)


def test_json_keeps_predictions_to_its_rounding() -> None:
    table, target = data()
    trees = boosted(table, target, np.ones(len(target)), 40, seed=0)
    read = Trees.from_json(json.loads(json.dumps(trees.to_json())), 6)
    assert np.abs(read(table) - trees(table)).max() < 3e-3  # three digits a leaf
    assert np.abs(trees(table) - target).mean() < 0.4 * np.abs(target - target.mean()).mean()


@st.composite
def tree(draw: st.DrawFn) -> dict[str, list[float]]:
    """A tree whose nodes split until there are no more."""
    count = 2 * draw(st.integers(0, 6)) + 1
    feature, left, right = [-1] * count, [0] * count, [0] * count
    free, leaves = 1, [0]
    while free < count:
        node = leaves.pop(draw(st.integers(0, len(leaves) - 1)))
        feature[node], left[node], right[node] = draw(st.integers(0, 2)), free, free + 1
        leaves += [free, free + 1]
        free += 2
    numbers = st.integers(-8, 8).map(lambda value: value / 4)
    return {
        "feature": feature, "left": left, "right": right,
        "threshold": [draw(numbers) for _ in range(count)], "value": [draw(numbers) for _ in range(count)],
    }  # fmt: skip


def walked(tree: dict[str, list[float]], row: list[float]) -> float:
    node = 0
    while tree["feature"][node] >= 0:
        node = int(tree["left" if row[int(tree["feature"][node])] <= tree["threshold"][node] else "right"][node])
    return tree["value"][node]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(tree(), max_size=4), st.lists(st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=3), min_size=1)
)
def test_many_rows_at_once_equal_one_walk_each(trees: list[dict[str, list[float]]], rows: list[list[float]]) -> None:
    expected = [0.5 + sum(walked(tree, row) for tree in trees) for row in rows]
    assert np.allclose(Trees.join(0.5, trees)(np.array(rows)), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(tree(), max_size=4), st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=3))
def test_json_keeps_every_tree_in_whatever_order_its_nodes_stood(
    trees: list[dict[str, list[float]]], row: list[float]
) -> None:
    joined = Trees.join(0.5, trees)
    read = Trees.from_json(json.loads(json.dumps(joined.to_json())), 3)
    assert read(np.array([row])) == pytest.approx(joined(np.array([row])))


@pytest.mark.parametrize(
    "change",
    [
        {"feature": [0, -1]}, {"right": [9, 0, 0]}, {"feature": [7, -1, -1]}, {"number": [0.0, float("nan"), 1.0]},
        {"number": [1.0]}, {"feature": []}, {"right": [0, 0, 0]},
    ],
)  # fmt: skip
def test_what_is_no_tree_is_refused(change: dict[str, list[float]]) -> None:
    good = {"feature": [0, -1, -1], "right": [2, 0, 0], "number": [0.0, 1.0, 2.0]}
    assert Trees.from_json({"start": 0.0, "trees": [good]}, 3)(np.array([[1.0, 0, 0]]))[0] == 2.0
    with pytest.raises((ValueError, KeyError, IndexError)):
        Trees.from_json({"start": 0.0, "trees": [{**good, **change}]}, 3)
