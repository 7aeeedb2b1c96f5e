from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.device_calibration.graphs import FORCED, micro_graph
from dyndeploy.device_calibration.measure import (
    Subject,
    _owners,
    block_rates,
    counted_runs,
    feeds_of,
    measure,
    profile_costs,
    shortest,
    time_in_turn,
    undisturbed,
)
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.measure.steady import quick
from dyndeploy.ops import OPERATORS
from dyndeploy.prediction.kernels import GraphWalker
from dyndeploy.runtimes import NodeTime, OnnxRuntimeSession


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
        inputs, attributes = [shapes[name] for name in node.input], operator_attributes(node)
        work = spec.work(inputs, attributes, spec.counts(inputs, attributes, masks), 4.0)
        # Grouped channel masks may be spread unevenly over the groups, which a mean does not tell.
        tolerance = 0.35 if "channel" in modes and operator_attributes(node)["group"] > 1 else 0.02
        assert kernels[group_of(node.name)].macs == pytest.approx(work.macs.sum(), rel=tolerance)
        checked += 1
    assert checked


def test_measured_kernels_have_positive_times_and_the_graphs_weights() -> None:
    graph = small_graph({"spatial"})
    found, again = measure([graph, graph], draws=2, rounds=2)
    assert len(found.samples) > 5 and all(0 < sample.ms < 1000 for sample in found.samples)
    assert any(
        FORCED not in sample.kernel.name and sample.kernel.kind == "spatial_bottleneck" for sample in found.samples
    )
    assert all(sample.resident_bytes > 1000 for sample in found.samples)
    assert [s.kernel for s in found.samples] == [s.kernel for s in again.samples] and found.pace_ms == again.pace_ms
    twice = found.at(2 * found.pace_ms)
    assert twice[0].ms == pytest.approx(2 * found.samples[0].ms)


def test_whole_runs_are_timed_beside_their_nodes() -> None:
    graph = small_graph({"channel"})
    feeds = feeds_of(graph, 3, seed=0)
    outputs = [graph.model.graph.output[-1].name]
    both, nodes = time_in_turn(
        [Subject(graph.model, feeds, outputs, whole=True), Subject(graph.model, feeds, outputs)], rounds=4
    )
    assert both.whole.shape == (4, 3) and nodes.whole.shape == (0, 3)
    assert set(both.groups) == {group_of(node.name) for node in graph.model.graph.node}
    assert all(ms.shape == (4, 3) and (ms >= 0).all() for ms in both.groups.values())
    assert both.whole.min() > 0 and both.pace_ms > 0


def test_maskers_run_where_the_graph_has_them_although_masks_come_from_outside() -> None:
    graph = small_graph({"spatial"})
    with OnnxRuntimeSession(graph.model, profile=True, in_order=True) as session:
        session.run(feeds_of(graph, 1, seed=0)[0])
        kinds = [node.op_type for node in session.node_times(slice(0, 1))]
    if "SpatialMasker" not in kinds:
        pytest.skip("no operator library: function bodies run")
    maskers = [index for index, kind in enumerate(kinds) if kind == "SpatialMasker"]
    blocks = [index for index, kind in enumerate(kinds) if kind.startswith("SpatialBottleneck")]
    assert len(maskers) == len(blocks) and all(m < b for m, b in zip(maskers, blocks, strict=True))
    assert all(b < m for b, m in zip(blocks, maskers[1:], strict=False))


def test_runs_that_count_follow_the_settling_ones() -> None:
    feeds, rounds, settle = 3, 2, 4
    order = ["first"] * (feeds + 1) + (["settle"] * settle + ["a", "b", "c"]) * rounds
    assert [order[index] for index in counted_runs(feeds, rounds, settle)] == ["a", "b", "c"] * rounds
    assert order[counted_runs(feeds, rounds, settle)[-1]] == order[-1]


def test_the_profile_costs_microseconds() -> None:
    costs = profile_costs()
    assert 0.0 <= costs.inside < 0.05 and 0.0 <= costs.outside < 0.1


def test_what_the_runtime_inserts_goes_to_what_it_serves() -> None:
    def node(name: str, op_type: str = "Conv") -> NodeTime:
        return NodeTime(name, op_type, 1.0, 1.0)

    reorder = [node("~0~stem"), node("Reorder_1", "ReorderOutput"), node("~2~block"), node("Reorder_2", "ReorderInput"),
               node("~3~conv"), node("Reorder_3", "ReorderOutput")]  # fmt: skip
    # Group 1, a transposition, has vanished into the first change of layout.
    assert _owners(reorder) == [0, 1, 2, 3, 3, 3]


def test_what_other_processes_ran_is_taken_off_the_long_kernels() -> None:
    # Two kernels of 0.1 and 10 ms; the long one is interrupted for 10 ms in every run.
    groups = {"short": np.full((9, 2), 0.1, np.float32), "long": np.full((9, 2), 20.0, np.float32)}
    factors = undisturbed(groups, np.full((9, 2), 10.1, np.float32))
    assert factors["long"] == pytest.approx([0.5, 0.5], rel=1e-3)
    assert factors["short"] == pytest.approx([1.0, 1.0], abs=0.02)
    # A run takes as much processor time as its kernels: nothing is taken off.
    assert undisturbed(groups, np.full((9, 2), 20.1, np.float32))["long"] == pytest.approx([1.0, 1.0], rel=1e-3)


def test_luck_of_single_kernels_is_no_luck_of_the_run() -> None:
    # Forty kernels of 1 ms that vary by a tenth from run to run, each for itself: no run takes less than 39 ms.
    random = np.random.default_rng(0)
    groups = {f"g{i}": (1 + 0.1 * random.standard_normal((10, 1))).astype(np.float32) for i in range(40)}
    runs = sum(groups.values())
    assert sum(shortest(ms) for ms in groups.values()) < 36
    factors = undisturbed(groups, runs)
    assert sum(shortest(ms) * factors[name][0] for name, ms in groups.items()) == pytest.approx(quick(runs), rel=1e-4)
    assert undisturbed(groups, 3 * runs)["g0"] == pytest.approx([1.3]), "what kernels do not account for is not theirs"
