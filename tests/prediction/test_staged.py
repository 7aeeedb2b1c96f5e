"""Networks that exit early by name, and what keeping fewer exits makes of them."""

from __future__ import annotations

import itertools

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.export.staged import build_stages
from dyndeploy.nets import create_model, model_info
from dyndeploy.prediction import Configuration, Estimator, GraphWalker, StagedNodes, predict, read_nodes
from dyndeploy.prediction.staged import moved_shares
from dyndeploy.prediction.tracing import Sizes, trace_stages
from dyndeploy.prediction.zoo import lacking_operators, zoo_network
from dyndeploy.targets import load_target

SMALL = "resnet10_small_perceiver_t32"
SHALLOW = {"depth_factor": (0, 0, 0, 0)}


def staged(name: str = SMALL, **options: object) -> StagedNodes:
    found = zoo_network(name, options)
    assert isinstance(found, StagedNodes)
    return found


def macs(nodes: StagedNodes) -> list[float]:
    return [sum(kernel.macs for kernel in GraphWalker(stage).graph().kernels) for _, stage in nodes.stages]


@pytest.mark.parametrize("exits", [choice for n in range(4) for choice in itertools.combinations((1, 2, 3), n)])
def test_keeping_exits_is_what_a_network_cut_there_computes(exits: tuple[int, ...]) -> None:
    import torch

    kept = (*exits, 4)
    with torch.device("meta"):
        with Sizes():
            network = create_model(SMALL, **SHALLOW).eval()
        cut = trace_stages(network.segments(kept), torch.zeros(1, 3, 32, 32), name=SMALL, measure="max_softmax")
    own = staged(**SHALLOW).keep(kept)
    assert own.exits == kept == tuple(number for number, _ in cut)
    assert macs(own) == macs(StagedNodes(SMALL, tuple(cut)))
    kernels = [len(GraphWalker(stage).graph().kernels) for _, stage in own.stages]
    assert kernels == [len(GraphWalker(stage).graph().kernels) for _, stage in cut]


def test_what_is_traced_is_about_what_is_exported() -> None:
    network = create_model(SMALL, **SHALLOW).eval()
    built = build_stages(network, load_target("nano"), None, 1, (32, 32))
    exported = StagedNodes(SMALL, tuple((stage.exit, read_nodes(stage.model, name=SMALL)) for stage in built))
    traced = zoo_network(SMALL, SHALLOW, lacks=lacking_operators("nano"))
    assert isinstance(traced, StagedNodes)
    assert macs(traced) == macs(exported)
    estimator = Estimator("nano", batch=1)
    for one, other in zip(estimator.predict(traced).exits, estimator.predict(exported).exits, strict=True):
        # Export folds what only depends on the learnt latents; a trace prices a few of those kernels.
        assert one.latency_ms == pytest.approx(other.latency_ms, rel=0.12)
    assert any(node.op_type == "Erf" for _, stage in traced.stages for node in stage.nodes)
    assert not any(node.op_type == "LayerNormalization" for _, stage in traced.stages for node in stage.nodes)


def test_images_move_on_to_the_next_exit() -> None:
    assert moved_shares((0.4, 0.3, 0.2, 0.1), (2, 4)) == pytest.approx((0.7, 0.3))
    assert moved_shares((0.4, 0.6), (1, 2)) == pytest.approx((0.4, 0.6))
    result = predict(SMALL, "nano", exit_mix=(40, 30, 20, 10), exits=(1, 4))
    assert [(entry.exit, round(entry.share, 6)) for entry in result.exits] == [(1, 0.4), (4, 0.6)]


def test_a_prediction_by_name_has_every_exit_and_their_mean() -> None:
    result = predict(SMALL, "nano", exit_mix=(40, 30, 20, 10))
    times = [entry.latency_ms for entry in result.exits]
    assert [entry.exit for entry in result.exits] == [1, 2, 3, 4] and times == sorted(times)
    assert result.latency_ms == pytest.approx(0.4 * times[0] + 0.3 * times[1] + 0.2 * times[2] + 0.1 * times[3])
    for entry in result.exits:
        assert entry.interval_ms[0] < entry.latency_ms < entry.interval_ms[1]
    assert result.runtime == "tensorrt" and predict(SMALL, "h200").runtime == "tensorrt"
    equal = predict(SMALL, "nano")
    assert [entry.share for entry in equal.exits] == [0.25] * 4


def test_stages_survive_json() -> None:
    nodes = staged(**SHALLOW).keep((2, 4))
    assert StagedNodes.from_json(nodes.to_json()).keep((4,)).exits == (4,)


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has the exits 1, 2, 3, 4"):
        staged(**SHALLOW).keep((1, 5))
    with pytest.raises(UsageError, match="the last being 4"):
        staged(**SHALLOW).keep((1, 2))
    with pytest.raises(UsageError, match="give 4 shares"):
        predict(SMALL, "nano", exit_mix=(1, 2))
    with pytest.raises(UsageError, match="neither modes"):
        predict(SMALL, "nano", mode="spatial")
    for given in ({"exit_mix": (1, 2)}, {"exits": (1, 2)}):
        with pytest.raises(UsageError, match="has no exits"):
            predict("laud_resnet14_small", "nano", **given)
    with pytest.raises(UsageError, match="is no single graph"):
        from dyndeploy.prediction.zoo import zoo_nodes

        zoo_nodes(SMALL, {})


def test_a_sweep_of_mixes_is_what_predictions_are() -> None:
    estimator = Estimator("nano", batch=1)
    mixes = [(1, 0, 0, 0), (40, 30, 20, 10)]
    swept = estimator.sweep(SMALL, [Configuration(exit_mix=mix) for mix in mixes])
    for mix, ms in zip(mixes, swept, strict=True):
        assert ms == pytest.approx(estimator.predict(SMALL, Configuration(exit_mix=mix)).latency_ms)
    assert model_info(SMALL).input_size == (32, 32)
