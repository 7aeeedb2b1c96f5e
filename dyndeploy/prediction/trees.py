"""Regression trees as plain numbers, evaluated for many rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_MAX_DEPTH = 64
_THRESHOLD_DIGITS, _VALUE_DIGITS = 6, 3


@dataclass(frozen=True)
class Trees:
    """A constant plus a sum of regression trees over rows of features.

    The nodes of all trees stand one behind the other. A leaf's children are itself, so that every row can take the
    same number of steps.

    Attributes:
        start: The constant.
        depth: Steps from a root to the deepest leaf.
        roots: Node of each tree's root, (trees,).
        feature: Column that a node looks at, (nodes,).
        threshold: A row goes left where its feature is not above, (nodes,).
        left: Node to the left, (nodes,).
        right: Node to the right, (nodes,).
        value: What a leaf adds, (nodes,).
    """

    start: float
    depth: int
    roots: npt.NDArray[np.intp]
    feature: npt.NDArray[np.intp]
    threshold: npt.NDArray[np.float32]
    left: npt.NDArray[np.intp]
    right: npt.NDArray[np.intp]
    value: Array

    def __call__(self, rows: Array) -> Array:
        """The sum for every row; ``rows`` is (N, features), the result (N,)."""
        columns = np.ascontiguousarray(rows, np.float32)
        width = columns.shape[1]
        flat, offset = columns.reshape(-1), np.arange(len(columns)) * width
        at = np.repeat(self.roots[:, None], len(columns), axis=1)
        for _ in range(self.depth):
            at = np.where(flat[offset + self.feature[at]] <= self.threshold[at], self.left[at], self.right[at])
        total: Array = self.start + self.value[at].sum(0)
        return total

    @classmethod
    def join(cls, start: float, trees: Sequence[Mapping[str, Sequence[float]]]) -> Trees:
        """Put trees together.

        Args:
            start: The constant.
            trees: Each with the lists ``feature`` (negative for a leaf), ``threshold``, ``left``, ``right`` (counted
                from the tree's own first node, which is its root; children come after their parent) and ``value``.

        Raises:
            ValueError: The lists do not make a tree.
        """
        roots, parts = [], []
        first = depth = 0
        for tree in trees:
            feature, left, right = (np.asarray(tree[name], np.intp) for name in ("feature", "left", "right"))
            count, own = len(feature), np.arange(len(feature))
            threshold, value = (np.asarray(tree[name], np.float64) for name in ("threshold", "value"))
            if not count or any(len(part) != count for part in (left, right, threshold, value)):
                raise ValueError("the lists of a tree differ in length, or are empty")
            if not (np.isfinite(threshold).all() and np.isfinite(value).all()):
                raise ValueError("a tree holds a number that is not finite")
            inner = feature >= 0
            left, right = np.where(inner, left, own), np.where(inner, right, own)
            if ((left <= own) & inner).any() or ((right <= own) & inner).any() or max(left.max(), right.max()) >= count:
                raise ValueError("a tree's children do not come after their parent")
            levels = np.zeros(count, np.intp)
            for node in np.flatnonzero(inner):
                levels[[left[node], right[node]]] = levels[node] + 1
            depth = max(depth, int(levels.max()))
            roots.append(first)
            parts.append((np.maximum(feature, 0), threshold.astype(np.float32), left + first, right + first, value))
            first += count
        if depth > _MAX_DEPTH:
            raise ValueError("a tree is too deep")
        names = ("feature", "threshold", "left", "right", "value")
        kinds = (np.intp, np.float32, np.intp, np.intp, np.float64)
        columns: dict[str, Any] = {
            name: np.concatenate([np.zeros(0), *(part[index] for part in parts)]).astype(kind)
            for index, (name, kind) in enumerate(zip(names, kinds, strict=True))
        }
        return cls(start=start, depth=depth, roots=np.asarray(roots, np.intp), **columns)

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers that :meth:`from_json` reads; thresholds and values are rounded.

        Nodes stand depth-first, so that a left child follows its parent and need not be named, and a node's number is
        its threshold, or its value where it has no children.
        """
        trees = []
        for root in self.roots.tolist():
            order, stack = [], [root]
            while stack:
                order.append(node := stack.pop())
                if self.left[node] != node:
                    stack += [int(self.right[node]), int(self.left[node])]
            place = {node: index for index, node in enumerate(order)}
            inner = [bool(self.left[node] != node) for node in order]
            numbers = [self.threshold[n] if i else self.value[n] for n, i in zip(order, inner, strict=True)]
            trees.append(
                {
                    "feature": [int(self.feature[n]) if i else -1 for n, i in zip(order, inner, strict=True)],
                    "right": [place[int(self.right[n])] if i else 0 for n, i in zip(order, inner, strict=True)],
                    "number": [
                        float(f"{x:.{_THRESHOLD_DIGITS if i else _VALUE_DIGITS}g}")
                        for x, i in zip(numbers, inner, strict=True)
                    ],
                }
            )
        return {"start": self.start, "trees": trees}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], features: int) -> Trees:
        """Read what :meth:`to_json` wrote.

        Args:
            value: The JSON object.
            features: Columns that the rows will have.

        Raises:
            KeyError, TypeError, ValueError: A field is missing or malformed.
        """
        # Lists of different lengths are refused where they are joined.
        trees = [
            {
                "feature": tree["feature"],
                "threshold": tree["number"],
                "left": [index + 1 if feature >= 0 else 0 for index, feature in enumerate(tree["feature"])],
                "right": tree["right"],
                "value": tree["number"],
            }
            for tree in value["trees"]
        ]
        result = cls.join(float(value["start"]), trees)
        if len(result.feature) and result.feature.max() >= features:
            raise ValueError(f"a tree asks for feature {int(result.feature.max())} of {features}")
        return result
