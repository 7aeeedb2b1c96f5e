"""What the stand-ins say of a node, without TensorRT: sizes, attributes and the fields that an engine keeps."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dyndeploy.files import shipped_folder
from dyndeploy.graphs.tensorrt import HALF_ONLY, LARGEST_BATCH, TIMED_MASKS, TIMING_RATES, TUNING
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes.tensorrt_stand_ins import (
    FORMAT,
    FORMAT_FIELD,
    TACTIC_FIELD,
    StandInError,
    bind_sizes,
    described,
    plugin_attributes,
    stored_fields,
)

SPEC = OPERATORS["SpatialChannelBottleneckProjection"]
ATTRIBUTES = {"strides": [2, 2], "dilations": [1, 1], "pads": [1] * 4, "group": [2]}
SHAPES = [
    *[(3, 9, 8, 6), (3, 1, 4, 4), (3, 2)],  # x, masks
    *[(6, 4), (4,), (2, 18, 2), (4,), (4, 10), (10,), (6, 10), (10,)],
    *[(16, 4), (10,)],
]


def fields(**values: Any) -> list[Any]:
    return [SimpleNamespace(name=name, data=np.asarray(value)) for name, value in values.items()]


def test_sizes() -> None:
    sizes = bind_sizes(SPEC, SHAPES, ATTRIBUTES)
    expected = {"N": 3, "H": 9, "W": 8, "C": 6, "M": 4, "Co": 10, "G": 2, "mh": 4, "group": 2}
    assert {name: sizes[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (3, (4, 6), "dimension 0 of w1 is 4, expected 6 (C)"),
        (5, (2, 9, 2), "dimension 1 of w2 is 9, expected 18 or 50 (9|25*M/group)"),
        (11, (15, 4), "dimension 0 of border_bias is 15, expected 16 (16)"),
        (4, (4, 1), "b1 has 2 dimensions, expected 1"),
    ],
)
def test_sizes_that_do_not_fit(index: int, shape: tuple[int, ...], message: str) -> None:
    shapes = [*SHAPES]
    shapes[index] = shape
    with pytest.raises(StandInError, match=re.escape(f"SpatialChannelBottleneckProjection: {message}")):
        bind_sizes(SPEC, shapes, ATTRIBUTES)


def test_a_wrong_number_of_inputs_is_told_as_the_library_tells_it() -> None:
    with pytest.raises(StandInError, match="the node has 12 inputs and 1 outputs, expected 13 and 1"):
        bind_sizes(SPEC, SHAPES[:-1], ATTRIBUTES)
    source = (shipped_folder("plugins") / "adapters/tensorrt/plugin_core.cpp").read_text(encoding="utf-8")
    assert '" outputs, expected "' in source and '"the node has "' in source


def test_attributes_are_those_of_the_operator() -> None:
    given = fields(**ATTRIBUTES, plugin_version=[49], plugin_namespace=[])
    added = {HALF_ONLY: [0], LARGEST_BATCH: [0], TIMING_RATES: [0] * TIMED_MASKS, TUNING: [1]}
    assert plugin_attributes(SPEC, given) == {**ATTRIBUTES, **added}
    planned = plugin_attributes(SPEC, [*given, *fields(**{LARGEST_BATCH: [16]})])
    assert planned[LARGEST_BATCH] == [16]
    assert {name: list(values) for name, values in stored_fields(SPEC, planned)}[LARGEST_BATCH] == [16]
    with pytest.raises(StandInError, match=r"attribute plugin_largest_batch is \[-1\], expected 0 or more"):
        plugin_attributes(SPEC, [*given, *fields(**{LARGEST_BATCH: [-1]})])
    assert plugin_attributes(SPEC, [*given, *fields(**{TUNING: [0]})])[TUNING] == [0]
    with pytest.raises(StandInError, match=r"attribute plugin_tuning is \[2\], expected 0 or 1"):
        plugin_attributes(SPEC, [*given, *fields(**{TUNING: [2]})])
    half = fields(**{HALF_ONLY: [1]})
    assert plugin_attributes(SPEC, [*half, *given])[HALF_ONLY] == [1]
    with pytest.raises(StandInError, match=r"attribute plugin_half_only is \[2\], expected 0 or 1"):
        plugin_attributes(SPEC, [*given, *fields(**{HALF_ONLY: [2]})])
    with pytest.raises(StandInError, match="unknown attribute axis"):
        plugin_attributes(SPEC, [*given, *fields(axis=[1])])
    with pytest.raises(StandInError, match="attribute group is missing"):
        plugin_attributes(SPEC, fields(**{name: v for name, v in ATTRIBUTES.items() if name != "group"}))
    with pytest.raises(StandInError, match="attribute strides has 3 values, expected 2"):
        plugin_attributes(SPEC, fields(**{**ATTRIBUTES, "strides": [1, 1, 1]}))


def test_the_engine_keeps_what_the_library_would_read() -> None:
    given = {**ATTRIBUTES, HALF_ONLY: [1], TIMING_RATES: [500, 0, 0, 0], TUNING: [1]}
    stored = stored_fields(SPEC, given)
    assert [name for name, _ in stored] == [*ATTRIBUTES, HALF_ONLY, FORMAT_FIELD, TACTIC_FIELD]
    assert all(values.dtype == np.int32 for _, values in stored)
    header = (shipped_folder("plugins") / "adapters/tensorrt/attributes.h").read_text(encoding="utf-8")
    assert f"kVersion = {FORMAT};" in header and f'kVersionField = "{FORMAT_FIELD}"' in header
    assert f'kTacticField = "{TACTIC_FIELD}"' in header and stored[-1][1].tolist() == [0]
    assert described([SPEC]) == "stand-ins, operator version 1"


def test_scratch_memory_of_a_small_bottleneck() -> None:
    workspace = SPEC.kernels["tensorrt"].workspace
    assert workspace is not None
    sizes = bind_sizes(SPEC, SHAPES, ATTRIBUTES)
    parts = [3 * 72 * 4 * 2, 3 * 20 * 4 * 2, 4 * 16, 3 * 72 * 4, 3 * 20 * 4, 3 * 4 * 4, 3 * 3 * 4]
    assert workspace(sizes, {"strides": [2, 2], "dilations": [1, 1], "group": 2}, 2) == sum(
        -(-part // 256) * 256 for part in parts
    )
    assert OPERATORS["SpatialMasker"].kernels["tensorrt"].workspace is None


def test_attributes_that_are_no_integers() -> None:
    spec = OPERATORS["TokenTransformerBlock"]
    given = fields(epsilon=[np.float32(1e-6)], scale=[np.float32(0.125)], token_mlp=[1], head_mode=[0])
    read = plugin_attributes(spec, given)
    assert read["scale"] == [0.125] and read["epsilon"] == [float(np.float32(1e-6))] and read["token_mlp"] == [1]
    stored = dict(stored_fields(spec, read))
    names = ("epsilon", "scale", "token_mlp", "head_mode", HALF_ONLY, LARGEST_BATCH, FORMAT_FIELD)
    assert [stored[name].dtype for name in names] == [*[np.dtype(np.float32)] * 2, *[np.dtype(np.int32)] * 5]
