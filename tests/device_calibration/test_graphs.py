from __future__ import annotations

import numpy as np
import onnx
import pytest

from dyndeploy.device_calibration.graphs import FAMILIES, FORCED, draw_masks, micro_graph, published_blocks
from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import group_of
from dyndeploy.prediction.kernels import REORDER, GraphWalker


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 5])
def test_a_graph_is_valid_reproducible_and_known_to_the_predictor(family: str, seed: int) -> None:
    graph = micro_graph(family, seed)
    names = [node.name for node in graph.model.graph.node]
    assert len(set(names)) == len(names) and onnx.shape_inference.infer_shapes(graph.model)
    assert graph.model.SerializeToString() == micro_graph(family, seed).model.SerializeToString()
    walked = GraphWalker(graph.model).graph()
    assert not walked.unknown
    bare = GraphWalker(micro_graph(family, seed, values=False).model).graph()
    assert [kernel.features for kernel in bare.kernels] == [kernel.features for kernel in walked.kernels]
    names = [group_of(kernel.name) for kernel in walked.kernels if kernel.kind != REORDER]
    alone = sum(names.count(name) == 1 for name in names)
    assert alone >= 0.75 * len(names)


def test_no_block_of_a_published_network_is_ever_measured() -> None:
    assert (64, 64, 256) in published_blocks()
    kinds = set()
    for seed in range(40):
        for kernel in GraphWalker(micro_graph("residual", seed, values=False).model).graph().kernels:
            kinds.add(kernel.kind)
            f = kernel.features
            if "cmid" in f and "rate" in f:
                assert (f["cin"], f["cmid"], f["cout"]) not in published_blocks()
    assert {
        "spatial_bottleneck",
        "channel_bottleneck",
        "layer_bottleneck",
        "spatial_channel_bottleneck",
        "conv",
    } <= kinds


def test_masks_cover_all_rates() -> None:
    graph = micro_graph("residual", 6, values=False)
    random = np.random.default_rng(0)
    drawn = [draw_masks(graph.masks, random) for _ in range(60)]
    assert graph.masks and set(drawn[0]) == {FORCED + mask.name for mask in graph.masks}
    rates = [float(mask.mean()) for masks in drawn for mask in masks.values()]
    assert set(np.unique(np.concatenate([mask.ravel() for mask in drawn[0].values()]))) <= {0.0, 1.0}
    assert min(rates) == 0.0 and max(rates) == 1.0


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="residual"):
        micro_graph("residuals", 0)
