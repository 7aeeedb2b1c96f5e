from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.device_calibration.graphs import FORCED, micro_graph
from dyndeploy.device_calibration.measure import (
    Probe,
    _owners,
    block_rates,
    feeds_of,
    measure,
    timed_rounds,
    timed_runs,
)
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.graph import group_of, is_dynamic, operator_attributes, static_shapes
from dyndeploy.prediction.kernels import GraphWalker
from dyndeploy.runtimes import NodeTime


def small_graph(modes: set[str]):
    for seed in range(200):
        graph = micro_graph("residual", seed, values=False)
        kinds = {mask.kind for mask in graph.masks}
        if kinds == modes and graph.shape[2] < 64:
            return micro_graph("residual", seed)
    raise AssertionError("no such graph")


@pytest.mark.parametrize("modes", [{"spatial"}, {"channel"}, {"layer"}, {"spatial", "channel"}])
def test_rates_give_the_macs_that_the_operators_state(modes: set[str]) -> None:
    graph = small_graph(modes)
    feeds = feeds_of(graph, 1, seed=3)[0]
    kernels = {group_of(k.name): k for k in GraphWalker(graph.model).graph(block_rates(graph.model, feeds)).kernels}
    shapes = static_shapes(graph.model)
    checked = 0
    for node in graph.model.graph.node:
        if not is_dynamic(node) or not node.op_type.removesuffix("Projection").endswith("Bottleneck"):
            continue
        spec = OPERATORS[node.op_type]
        masks = {port: feeds[node.input[spec.input_index(port)]] for port in spec.mask_inputs()}
        cost = spec.cost([shapes[name] for name in node.input], operator_attributes(node), masks)
        # Grouped channel masks may be spread unevenly over the groups, which a mean does not tell.
        tolerance = 0.35 if "channel" in modes and operator_attributes(node)["group"] > 1 else 0.02
        assert kernels[group_of(node.name)].macs == pytest.approx(cost.macs.sum(), rel=tolerance)
        checked += 1
    assert checked


def test_measured_kernels_have_positive_times_and_the_graphs_weights() -> None:
    graph = small_graph({"spatial"})
    probe = Probe()
    found = measure(graph, probe, draws=2, runs=2)
    probe.close()
    assert len(found.samples) > 5 and all(0 < sample.ms < 1000 for sample in found.samples)
    assert any(
        FORCED not in sample.kernel.name and sample.kernel.kind == "spatial_bottleneck" for sample in found.samples
    )
    assert all(sample.resident_bytes > 1000 for sample in found.samples)
    twice = found.at(2 * found.probe_ms)
    assert twice[0].ms == pytest.approx(2 * found.samples[0].ms)


def test_runs_that_count_are_those_of_the_rounds() -> None:
    order: list[str] = []

    class Counting:
        def __call__(self) -> float:
            return float(len(order) + 1)

    calls = [lambda: order.append("a"), lambda: order.append("b")]
    speeds = timed_rounds(calls, lambda: order.append("settle"), Counting(), warmup=1, rounds=3)  # type: ignore[arg-type]
    assert [order[index] for index in timed_runs(2, warmup=1, rounds=3)] == ["a", "b"] * 3
    assert np.allclose(speeds, [(3 + 6) / 2, (6 + 9) / 2, (9 + 12) / 2])


def test_what_the_runtime_inserts_goes_to_what_it_serves() -> None:
    def node(name: str, op_type: str = "Conv") -> NodeTime:
        return NodeTime(name, op_type, 1.0, 1.0)

    reorder = [node("~0~stem"), node("Reorder_1", "ReorderOutput"), node("~2~block"), node("Reorder_2", "ReorderInput"),
               node("~3~conv"), node("Reorder_3", "ReorderOutput")]  # fmt: skip
    # Group 1, a transposition, has vanished into the first change of layout.
    assert _owners(reorder) == [0, 1, 2, 3, 3, 3]
