"""Every kind of bundle is built by NVIDIA's own builder, without a GPU, and has the layers that were recorded."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
import torch

import dyndeploy
from dyndeploy.ops import OPERATORS, Role
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead
from dyndeploy.runtimes.tensorrt_layers import EngineLayers
from tests.tensorrt_rtx.kinds import FUSED, KINDS, export
from tests.tensorrt_rtx.recorded import CAPABILITY, COMMAND, RECORD, build_kind, recorded, section


def weight_copies(built: EngineLayers) -> list[str]:
    """What plugins read besides activations and masks that another layer makes in every run: copies of weights."""
    made = {tensor.name for layer in built.layers for tensor in layer.outputs}
    found = []
    for layer in built.plugins():
        # A block may have several maskers of a kind, which the exporter numbers.
        (name,) = {re.sub(r"_\d+$", "", node.rsplit("/", 1)[-1]) for node in layer.nodes} & set(OPERATORS)
        activations = sum(port.role is not Role.WEIGHT for port in OPERATORS[name].inputs)
        read = [tensor.name for tensor in (*layer.inputs, *layer.constants) if tensor.name in made]
        if len(read) > activations:
            found.append(f"{layer.name} reads {', '.join(read)}")
    return found


def test_dense_blocks_among_dynamic_ones_cost_no_transposition(rtx: BuilderPackage, tmp_path: Path) -> None:
    """The graph has a Transpose on either side of a dynamic block among dense ones; the builder needs none of them."""
    torch.manual_seed(0)
    network = dyndeploy.create_model("laud_resnet50", mode="spatial", granularity=(1, 1, 1, 1))
    dynamic = {"layer1.1", "layer2.2", "layer3.3", "layer4.1"}
    blocks = {f"layer{stage}.{index}" for stage, depth in enumerate((3, 4, 6, 3), 1) for index in range(depth)}
    bundle = export(network, tmp_path / "b", dense=tuple(sorted(blocks - dynamic)), input_size=(64, 64))
    source = bundle.load_model()
    kinds = [node.op_type for node in source.graph.node]
    assert (kinds.count("Transpose"), kinds.count("Conv")) == (8, 1 + 12 * 3 + 4)
    built = build_ahead(source, "fp16", capabilities=(CAPABILITY,)).built
    assert len(built.plugins()) == 8 and not weight_copies(built)
    # A convolution each, the pooling of the stem, and the packing of the image; head and plugins stand apart.
    body = [layer for layer in built.layers if not layer.is_plugin and not any("head/" in n for n in layer.nodes)]
    assert len(body) == kinds.count("Conv") + 2, [layer.name for layer in body]


PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""


def test_the_record_is_of_this_builder(rtx: BuilderPackage) -> None:
    assert rtx.text in RECORD.read_text(encoding="utf-8").splitlines()[0], f"Run {COMMAND} and look at what changed."


def test_the_kinds_have_every_operator() -> None:
    text = RECORD.read_text(encoding="utf-8")
    # What detectors read maps with is built in test_detectors.
    dynamic = [name for name, spec in PLUGINS.items() if spec.gates or spec.decides]
    assert [name for name in dynamic if f"/{name}\n" not in text and f"/{name}," not in text] == []


@pytest.mark.parametrize("kind", KINDS)
def test_engines_have_their_layers(kind: str, rtx: BuilderPackage, tmp_path: Path) -> None:
    engines = build_kind(KINDS[kind](tmp_path / "b"))
    changed = list(difflib.unified_diff(recorded(kind), section(kind, engines), "recorded", "built", lineterm="", n=1))
    assert not changed, "\n".join([f"Other layers than recorded. If they are right: {COMMAND}", *changed])
    for name, engine in engines.items():
        plugins = engine.built.plugins()
        assert engine.plugins == ("stand-ins, operator version 1" if plugins else ""), name
        assert engine.metadata()["plan"]["capabilities"] == ["8.6"]
        assert not weight_copies(engine.built), name
        # With masks from outside, maskers are outputs of their own: they may run behind the head.
        if kind in FUSED and name.startswith("model"):
            assert plugins and not engine.built.between_blocks(), name
    if "static, fp16" in engines:
        for precision in ("fp32", "fp16"):
            dynamic, static = (engines[f"{graph}, {precision}"].built for graph in ("model", "static"))
            assert dynamic.activation_bytes is not None and static.activation_bytes is not None
            if kind == "resnet50":
                assert dynamic.activation_bytes <= static.activation_bytes
