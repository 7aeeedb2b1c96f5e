"""Every kind of bundle is built by NVIDIA's own builder, without a GPU, and has the layers that were recorded."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage
from tests.tensorrt_rtx.kinds import FUSED, KINDS
from tests.tensorrt_rtx.recorded import COMMAND, RECORD, build_kind, recorded, section

PLUGINS = {name: spec for name, spec in OPERATORS.items() if "tensorrt" in spec.kernels}
"""Operators that have a plugin."""


def test_the_record_is_of_this_builder(rtx: BuilderPackage) -> None:
    assert rtx.text in RECORD.read_text(encoding="utf-8").splitlines()[0], f"Run {COMMAND} and look at what changed."


def test_the_kinds_have_every_operator() -> None:
    text = RECORD.read_text(encoding="utf-8")
    assert [name for name in PLUGINS if f"/{name}\n" not in text and f"/{name}," not in text] == []


@pytest.mark.parametrize("kind", KINDS)
def test_engines_have_their_layers(kind: str, rtx: BuilderPackage, tmp_path: Path) -> None:
    engines = build_kind(KINDS[kind](tmp_path / "b"))
    changed = list(difflib.unified_diff(recorded(kind), section(kind, engines), "recorded", "built", lineterm="", n=1))
    assert not changed, "\n".join([f"Other layers than recorded. If they are right: {COMMAND}", *changed])
    for name, engine in engines.items():
        plugins = engine.built.plugins()
        assert engine.plugins == ("stand-ins, operator version 1" if plugins else ""), name
        assert engine.metadata()["plan"]["capabilities"] == ["8.6"]
        # With masks from outside, maskers are outputs of their own: they may run behind the head.
        if kind in FUSED and name.startswith("model"):
            assert plugins and not engine.built.between_blocks(), name
    if "static, fp16" in engines:
        for precision in ("fp32", "fp16"):
            dynamic, static = (engines[f"{graph}, {precision}"].built for graph in ("model", "static"))
            assert dynamic.activation_bytes is not None and static.activation_bytes is not None
            if kind == "resnet50":
                assert dynamic.activation_bytes <= static.activation_bytes
