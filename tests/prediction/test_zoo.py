from __future__ import annotations

from typing import Any

import pytest
import torch

from dyndeploy.blocks.block import run_dense
from dyndeploy.errors import UsageError
from dyndeploy.export import build_graph
from dyndeploy.nets import create_model
from dyndeploy.prediction import GraphWalker, NodeGraph, Rates, predict, read_nodes
from dyndeploy.prediction.tracing import UntraceableError, trace
from dyndeploy.prediction.zoo import zoo_nodes
from dyndeploy.targets import load_target


def described(nodes: NodeGraph, runtime: str) -> list[tuple[Any, ...]]:
    return [
        (k.kind, k.block, k.macs, k.dense_macs, k.read_bytes, k.written_bytes, k.weight_bytes, dict(k.features))
        for k in GraphWalker(nodes, runtime=runtime).graph(0.4).kernels
    ]


@pytest.mark.parametrize(
    ("options", "dense"),
    [
        ({"mode": "static"}, ()),
        ({"mode": "both", "granularity": 2}, ("layer1.0", "layer3.0")),
        ({"mode": ("layer", "static", "channel", "spatial"), "channel_masker": "conv_linear"}, ()),
    ],
)
def test_what_is_traced_is_what_is_exported(options: dict[str, Any], dense: tuple[str, ...]) -> None:
    traced = zoo_nodes("laud_resnet14_small", options, dense=dense)
    network = create_model("laud_resnet14_small", **options).eval()
    run_dense(network, dense)
    model, _ = build_graph(network, load_target("cpu"), 1, static=False)
    exported = read_nodes(model)
    for runtime in ("onnxruntime", "tensorrt", "pytorch"):
        # A rearranged vector of features is no change of layout, and costs next to nothing.
        found = [item for item in described(exported, runtime) if item[0] != "transpose" or item[4] > 4 * 512]
        assert described(traced, runtime) == found


def test_the_same_question_is_answered_once() -> None:
    one = zoo_nodes("laud_resnet14_small", {"mode": "spatial", "granularity": [4, 4, 2, 1]}, batch=2)
    assert one is zoo_nodes("laud_resnet14_small", {"granularity": (4, 4, 2, 1), "mode": "spatial"}, batch=2)
    assert (one.batch, one.input_size) == (2, (32, 32))
    assert one.blocks == ("layer1.0", "layer2.0", "layer3.0", "layer4.0")


def test_tracing_leaves_pytorch_as_it_was() -> None:
    asked, state = torch.onnx.is_in_onnx_export, torch.get_rng_state()
    zoo_nodes("laud_resnet14_small", {"mode": "layer"}, batch=3)
    assert torch.onnx.is_in_onnx_export is asked and not torch.onnx.is_in_onnx_export()
    assert torch.equal(torch.get_rng_state(), state)


class Strange(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)


def test_what_is_not_known_is_said() -> None:
    with torch.device("meta"), pytest.raises(UntraceableError):
        trace(Strange(), torch.zeros(1, 3, 4, 4), name="strange")


def test_names() -> None:
    with pytest.raises(UsageError, match="Did you mean 'laud_resnet50'"):
        zoo_nodes("laud_resnet5", {})
    with pytest.raises(UsageError, match="--predictor reference"):
        zoo_nodes("lad_regnet_y_400mf", {})
    with pytest.raises(UsageError, match="must be positive"):
        zoo_nodes("laud_resnet50", {}, input_size=(0, 32))
    assert predict("laud_resnet14_small", "nano", mode="spatial", rate=0.3, input_size=(64, 64)).input_size == (64, 64)


def test_modes_of_a_transformer_are_words_for_its_options() -> None:
    def ms(mode: str | None, **rates: float) -> float:
        return predict("ada_deit_tiny", "nano", mode=mode, rate=Rates(**rates) if rates else None).latency_ms

    static = ms(None)
    assert ms("static") == static
    half = ms("token", token=0.5)
    # Attention falls with the square of the tokens.
    assert 0.4 * static < half < 0.55 * ms("token", token=1.0)
    assert ms("all", token=0.5, head=0.5, attention=0.5, mlp=0.5) < half
    with pytest.raises(UsageError, match=r"Unknown mode 'spatial'\. Known: all, head, layer, static, token"):
        ms("spatial")
