from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.errors import InputError, UsageError
from dyndeploy.nets import LaudResNet, create_model, model_info, model_names
from dyndeploy.prediction import Prediction, Rates
from dyndeploy.prediction.laudnet import (
    BlockSpec,
    Fix,
    MaskerSpec,
    NetworkSpec,
    Operator,
    Predictor,
    StemSpec,
    network_names,
    network_spec,
    operator_kinds,
    predict_network,
)
from tests.prediction.laudnet.helpers import following

_DYNAMIC = ("spatial", "channel", "layer", "both")
_DEVICES = ("v100", "rtx3090", "rtx3060", "tx2", "nano")

_SMALL = NetworkSpec(
    name="small",
    input_size=(33, 47),
    stem=StemSpec(3, 16, 3, 1),
    stages=(2, 1),
    blocks=(
        BlockSpec("layer1.0", 16, 8, 32, 33, 47, projection=True, mask_before_norm=True),
        BlockSpec("layer1.1", 32, 8, 32, 33, 47, mask_before_norm=True),
        BlockSpec("layer2.0", 32, 16, 64, 33, 47, stride=2, projection=True, mask_before_norm=True),
    ),
    classes=10,
    maskers=(MaskerSpec(layers=1),),
)


@st.composite
def _blocks(draw):
    groups = draw(st.sampled_from([1, 2]))
    width = groups * draw(st.integers(1, 40))
    return BlockSpec(
        "block",
        c_in=draw(st.integers(1, 80)),
        width=width,
        c_out=draw(st.integers(1, 160)),
        height=draw(st.integers(2, 40)),
        map_width=draw(st.integers(2, 40)),
        stride=draw(st.sampled_from([1, 2])),
        groups=groups,
        dilation=draw(st.sampled_from([1, 2])),
        squeezed=draw(st.sampled_from([0, 4])),
        projection=draw(st.booleans()),
        mask_before_norm=draw(st.booleans()),
    )


def _latency(block, mode, rate, *, device="v100", batch=1, granularity=2, compat=None):
    predictor = Predictor(device, batch=batch, compat=compat)
    part = predictor.predict_block(block, mode=mode, granularity=granularity, channel_granularity=2, rate=rate)
    return part.latency_ms * batch


# Properties of the repaired model.


@given(
    _blocks(),
    st.sampled_from(_DYNAMIC),
    st.sampled_from(_DEVICES),
    st.integers(1, 130),
    st.integers(1, 9),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_latency_is_positive_and_grows_with_the_rate(block, mode, device, batch, granularity, a, b):
    low, high = sorted((a, b))
    at_low, at_high = (
        _latency(block, mode, rate, device=device, batch=batch, granularity=granularity) for rate in (low, high)
    )
    assert 0 < at_low <= at_high * (1 + 1e-9)


@given(
    _blocks(),
    st.sampled_from(("static", *_DYNAMIC)),
    st.sampled_from(_DEVICES),
    st.integers(1, 64),
    st.integers(1, 64),
    st.floats(0, 1),
)
@settings(max_examples=80, deadline=None)
def test_batch_latency_grows_with_the_batch(block, mode, device, a, b, rate):
    few, many = (_latency(block, mode, rate, device=device, batch=batch) for batch in sorted((a, b)))
    assert few <= many * (1 + 1e-9)


@given(_blocks(), st.sampled_from(_DEVICES), st.integers(1, 130), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_masked_block_at_rate_1_is_the_static_block_plus_its_masker(block, device, batch, granularity):
    predictor = Predictor(device, batch=batch)
    static = predictor.predict_block(block)
    for mode in _DYNAMIC:
        dynamic = predictor.predict_block(block, mode=mode, granularity=granularity, rate=1.0)
        body = sum(o.latency_ms for o in dynamic.operators if not o.name.startswith(("masker", "constants")))
        assert body == pytest.approx(static.latency_ms, rel=1e-9)
        assert dynamic.latency_ms > static.latency_ms


@given(_blocks(), st.sampled_from(("static", "spatial", "channel", "layer")), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_reference_reading_is_positive_on_any_block(block, mode, rate):
    assert _latency(block, mode, rate, batch=128, compat="laudnet") > 0


def test_layer_mode_at_batch_1_is_the_rate_times_the_block():
    block = network_spec("resnet50").blocks[1]
    predictor = Predictor("tx2", batch=1)
    static = predictor.predict_block(block).latency_ms
    always = predictor.predict_block(block, mode="layer", rate=0.0).latency_ms
    half = predictor.predict_block(block, mode="layer", rate=0.5).latency_ms
    assert half - always == pytest.approx(0.5 * static, rel=1e-9)


def test_layer_mode_of_a_batch_pays_full_launches():
    block = network_spec("resnet50").blocks[1]
    predictor = Predictor("v100", batch=128)
    convolution = predictor.predict_block(block, mode="layer", rate=0.25).operators[-2]
    assert convolution.name == "conv3"
    assert convolution.launch_ms * 128 == pytest.approx(8e-3, rel=1e-9)
    full = predictor.predict_block(block).operators[-2]
    assert convolution.compute_ms == pytest.approx(0.25 * full.compute_ms, rel=1e-9)


def test_channel_mode_computes_inputs_times_outputs():
    block = network_spec("resnet50").blocks[8]
    repaired, reference = Predictor("nano", batch=1), Predictor("nano", batch=1, compat="laudnet")

    def compute(predictor, name, mode):
        part = predictor.predict_block(block, mode=mode, rate=0.5)
        return next(o.compute_ms for o in part.operators if o.name == name)

    dense = compute(repaired, "conv3", "static")
    assert compute(repaired, "conv3", "channel") == pytest.approx(0.5 * dense, rel=1e-9)
    assert compute(reference, "conv3", "channel") < 0.35 * dense
    # On one processing element the busiest tile can be all channels, so conv2 comes close to rate squared.
    assert 0.25 <= compute(repaired, "conv2", "channel") / compute(repaired, "conv2", "static") < 0.32


def test_linear_layer_cost_follows_its_size():
    predictor, reference = Predictor("v100"), Predictor("v100", compat="laudnet")
    sizes = [Operator("linear", "fc", {"c_in": i, "c_out": o}) for i, o in ((64, 16), (4096, 4096))]
    small, large = predictor.predict_operators(sizes).operators
    assert large.compute_ms > 500 * small.compute_ms
    # Weights once per batch: 64 MiB at 700 GB/s over 128 images, and the L2 traffic of the tiles on top.
    dram = (4096 * 4096 + 8192 * 128) / (700e9 / 4) * 1e3 / 128
    assert dram < large.memory_ms < 12 * dram
    small, large = reference.predict_operators(sizes).operators
    assert large.compute_ms == small.compute_ms


def test_coarser_channel_groups_cost_more_convolution_and_less_masker():
    block = network_spec("resnet101").blocks[5]
    predictor = Predictor("rtx3060", batch=1)
    parts = {g: predictor.predict_block(block, mode="channel", channel_granularity=g, rate=0.5) for g in (1, 2, 16)}
    convolution = {
        g: sum(o.latency_ms for o in part.operators if o.name.startswith("conv")) for g, part in parts.items()
    }
    masker = {g: next(o.macs for o in part.operators if o.name == "masker.fc2") for g, part in parts.items()}
    assert convolution[1] < convolution[2] < convolution[16]
    assert masker == {1: 16 * 256, 2: 16 * 128, 16: 16 * 16}


def test_strided_pointwise_reads_half_the_rows():
    shape = {"c_in": 64, "c_out": 64, "height": 14, "width": 14, "stride": 2}
    cost = {}
    for compat in (None, "laudnet"):
        cost[compat] = Predictor("nano", batch=1, compat=compat).predict_operators([Operator("conv", "down", shape)])
    saved = cost["laudnet"].operators[0].memory_ms - cost[None].operators[0].memory_ms
    assert saved >= 64 * 14 * 28 * 4 / 25.6e9 * 1e3


def test_first_stage_projection_stem_and_head_exist_only_when_repaired():
    repaired = predict_network("resnet50", device="v100")
    reference = predict_network("resnet50", device="v100", compat="laudnet")
    assert [b.name for b in repaired.blocks][:2] == ["stem", "layer1.0"]
    assert repaired.blocks[-1].name == "head"
    assert len(reference.blocks) == 16
    assert "downsample" in [o.name for o in repaired.blocks[1].operators]
    assert "downsample" not in [o.name for o in reference.blocks[0].operators]
    assert "downsample" in [o.name for o in reference.blocks[3].operators]


def test_static_macs_of_the_network():
    # 4089 MMAC of convolutions and classifier (4.1 GMAC in the literature) plus elementwise operators.
    prediction = predict_network("resnet50", device="v100")
    macs = sum(o.macs for b in prediction.blocks for o in b.operators if o.kind in ("conv", "linear"))
    assert macs == 4_089_184_256


def test_squeeze_excite_keeps_the_inside_of_a_block_dense():
    block = following(network_spec("laud_regnety_400mf").blocks[2])
    predictor = Predictor("tx2", batch=1)

    def macs(granularity, rate):
        part = predictor.predict_block(block, mode="spatial", granularity=granularity, rate=rate)
        return {o.name: o.macs for o in part.operators}

    dense, half = macs(1, 1.0), macs(1, 0.5)
    assert half["conv2"] == pytest.approx(dense["conv2"], rel=1e-6)
    assert half["conv3"] == pytest.approx(0.5 * dense["conv3"])
    whole = macs(28, 0.5)
    assert whole["conv2"] == pytest.approx(0.5 * dense["conv2"])


def test_measured_densities_override_the_derived_ones():
    block = network_spec("resnet50").blocks[1]
    predictor = Predictor("tx2", batch=1)
    derived = predictor.predict_block(block, mode="spatial", granularity=4, rate=0.5)
    measured = predictor.predict_block(block, mode="spatial", granularity=4, rate=Rates(0.5, conv1=0.6, conv2=0.5))
    macs = [next(o.macs for o in part.operators if o.name == "conv1") for part in (derived, measured)]
    dense = 256 * 64 * 56 * 56
    assert macs[1] == pytest.approx(0.6 * dense)
    assert 0.7 * dense < macs[0] < 0.8 * dense
    assert measured.latency_ms < derived.latency_ms
    assert measured.rates == {"spatial": 0.5, "conv1": 0.6, "conv2": 0.5}


def test_every_fix_is_in_force_by_default_and_none_in_compat():
    repaired = predict_network("resnet50", device="tx2")
    reference = predict_network("resnet50", device="tx2", compat="laudnet")
    assert set(repaired.fixes) == {fix.value for fix in Fix}
    assert reference.fixes == ()
    assert all(len(fix.summary) > 40 for fix in Fix)


# Networks and arguments.


@pytest.mark.parametrize("name", network_names())
@pytest.mark.parametrize("mode", ["static", *_DYNAMIC])
def test_every_network_in_every_mode(name, mode):
    prediction = predict_network(name, mode=mode, device="tx2", rate=0.5)
    assert prediction.latency_ms > 0
    assert prediction.kind == "predicted"
    assert prediction.coverage.by_count == 1.0
    assert prediction.coverage.by_flops == 1.0
    assert prediction.latency_ms == pytest.approx(sum(b.latency_ms for b in prediction.blocks), rel=1e-12)
    for block in prediction.blocks:
        assert block.latency_ms == pytest.approx(sum(o.latency_ms for o in block.operators), rel=1e-12)
        assert all(
            o.latency_ms == pytest.approx(o.compute_ms + o.memory_ms + o.launch_ms, rel=1e-12) for o in block.operators
        )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("laud_resnet50", "resnet50"),
        ("uni_resnet101", "laud_resnet101"),
        ("regnety004", "laud_regnety_400mf"),
        ("regnet_y_800mf", "regnety008"),
        ("lad_regnet_y_400mf", "regnet_y_400mf"),
    ],
)
def test_names_of_one_network(one, other):
    assert network_spec(one).blocks == network_spec(other).blocks


def test_other_input_sizes():
    spec = network_spec("resnet50", (96, 130))
    assert [(b.height, b.map_width) for b in spec.blocks if b.name.endswith(".0")] == [
        (24, 33),
        (24, 33),
        (12, 17),
        (6, 9),
    ]
    assert spec.blocks[-1].out_size == (3, 5)
    small = predict_network("resnet50", device="nano", input_size=(96, 130)).latency_ms
    assert small < 0.5 * predict_network("resnet50", device="nano").latency_ms


def test_own_network_and_mode_per_stage():
    prediction = predict_network(_SMALL, mode=("spatial", "channel"), granularity=(3, 1), device="tx2", batch=2)
    assert [b.mode for b in prediction.blocks] == ["static", "spatial", "spatial", "channel", "static"]
    assert prediction.input_size == (33, 47)
    assert prediction.batch == 2
    # A one-layer masker has one linear layer.
    assert "masker.fc" in [o.name for o in prediction.blocks[3].operators]
    linear = dataclasses.replace(_SMALL, maskers=(MaskerSpec(channel="conv_linear"),))
    names = [o.name for o in predict_network(linear, mode="channel", device="tx2").blocks[1].operators]
    assert names[:3] == ["masker.conv", "masker.pool", "masker.fc"]


def test_maskers_differ_by_stage():
    spec = dataclasses.replace(_SMALL, maskers=(MaskerSpec(layers=1), MaskerSpec(channel="conv_linear", reduction=4)))
    parts = predict_network(spec, mode="channel", device="tx2").blocks
    maskers = [[o.name for o in part.operators if o.name.startswith("masker")] for part in parts[1:-1]]
    assert maskers[0] == maskers[1]
    assert "masker.conv" not in maskers[0]
    assert maskers[2][:3] == ["masker.conv", "masker.pool", "masker.fc"]
    assert NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(UsageError, match="3 maskers for 2 stages"):
        dataclasses.replace(_SMALL, maskers=(MaskerSpec(),) * 3)


def _described(name, **options):
    model = create_model(name, **options)
    assert isinstance(model, LaudResNet)
    return NetworkSpec.from_json(model.describe(model_info(name).input_size))


@pytest.mark.parametrize("name", model_names("laud_resnet"))
def test_registered_networks_are_described_as_they_are_built(name):
    assert network_spec(name) == _described(name)
    prediction = predict_network(name, mode="spatial", device="tx2")
    assert prediction.input_size == model_info(name).input_size
    assert len(prediction.blocks) == sum(network_spec(name).stages) + 2


def test_describe_states_the_masker_of_every_stage():
    spec = _described(
        "laud_resnet14_small",
        mode="channel",
        channel_masker=("mlp", "conv_linear", "mlp", "conv_linear"),
        channel_masker_layers=(1, 2, 2, 2),
        reduction=(16, 8, 4, 2),
        spatial_groups=(1, 2, 4, 8),
    )
    assert spec.maskers == (
        MaskerSpec("mlp", 1, 16, 1),
        MaskerSpec("conv_linear", 2, 8, 2),
        MaskerSpec("mlp", 2, 4, 4),
        MaskerSpec("conv_linear", 2, 2, 8),
    )
    assert NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "damage",
    [
        {"input_size": [0, 32]},
        {"input_size": "32"},
        {"classes": -1},
        {"classes": 10**400},
        {"stages": [1, True]},
        {"stages": [1, 1.0]},
        {"stem": {"c_in": 3, "c_out": 8, "kernel": 10**6, "stride": 1}},
        {"stem": []},
        {"maskers": [{"channel": ["mlp"]}]},
        {"maskers": [{"layers": 3}]},
        {"maskers": []},
        {"name": 3},
    ],
)
def test_descriptions_with_impossible_values_are_refused(damage):
    with pytest.raises(UsageError):
        NetworkSpec.from_json({**_SMALL.to_json(), **damage})


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None, True, [8], 2**17])
@pytest.mark.parametrize("key", ["c_in", "width", "height", "stride", "groups", "kernel"])
def test_blocks_with_impossible_values_are_refused(key, value):
    described = _SMALL.to_json()
    described["blocks"] = [{**block, key: value} for block in described["blocks"]]
    with pytest.raises(UsageError):
        NetworkSpec.from_json(described)


def test_rates_per_block():
    one = predict_network("resnet50", mode="layer", rate=0.5, device="tx2")
    listed = predict_network("resnet50", mode="layer", rate=[0.5] * 16, device="tx2")
    assert listed == one
    ramp = predict_network("resnet50", mode="layer", rate=np.linspace(0, 1, 16).tolist(), device="tx2")
    assert [b.rates["spatial"] for b in ramp.blocks[1:-1]] == pytest.approx(np.linspace(0, 1, 16))


def test_numpy_numbers_are_accepted_and_leave_as_python_numbers():
    prediction = predict_network(
        "resnet50", mode="both", rate=np.float32(0.5), granularity=np.int64(2), device="tx2", batch=np.int32(2)
    )
    value = json.loads(json.dumps(prediction.to_json()))
    assert (value["batch"], value["granularity"], value["blocks"][1]["rates"]["spatial"]) == (2, [2] * 4, 0.5)


def test_network_description_survives_json():
    for spec in (_SMALL, network_spec("laud_regnety_800mf"), dataclasses.replace(_SMALL, stem=None)):
        assert NetworkSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_prediction_survives_json():
    unknown = Operator("einsum", "mystery")
    prediction = predict_network("laud_resnet50", mode="both", device="v100", extra_operators=[unknown])
    value = json.loads(json.dumps(prediction.to_json(), allow_nan=False))
    assert value["kind"] == "predicted"
    assert Prediction.from_json(value) == prediction
    with pytest.raises(InputError, match="not a prediction"):
        Prediction.from_json({"latency_ms": 1})
    with pytest.raises(InputError, match="schema 99"):
        Prediction.from_json({**value, "schema": 99})
    del value["coverage"]
    with pytest.raises(InputError, match="incomplete"):
        Prediction.from_json(value)


# Coverage.


def test_unknown_operators_are_named_and_never_free():
    operators = [
        Operator("linear", "fc", {"c_in": 100, "c_out": 100}),
        Operator("fft", "mixer", macs=30_000),
    ]
    without = predict_network(_SMALL, device="tx2")
    prediction = predict_network(_SMALL, device="tx2", extra_operators=operators)
    extra = prediction.blocks[-1]
    assert extra.operators[1].latency_ms is None
    assert prediction.coverage.unknown == ("extra.mixer (fft)",)
    count = without.coverage.operators + 2
    assert prediction.coverage.by_count == pytest.approx(1 - 1 / count)
    total = sum(o.macs for b in without.blocks for o in b.operators) + 10_000 + 30_000
    assert prediction.coverage.by_flops == pytest.approx(1 - 30_000 / total)
    assert prediction.latency_ms == pytest.approx(without.latency_ms + extra.operators[0].latency_ms)
    silent = predict_network(_SMALL, device="tx2", extra_operators=[Operator("fft", "mixer")])
    assert silent.coverage.by_flops is None


def test_transformer_operators_are_known():
    operators = [
        Operator("matmul", "qk", {"rows": 7 * 197, "c_in": 64, "c_out": 197}),
        Operator("softmax", "softmax", {"rows": 7, "tokens": 197, "channels": 197}),
        Operator("layernorm", "norm", {"rows": 1, "tokens": 197, "channels": 448}),
        Operator("elementwise", "gelu", {"rows": 1, "tokens": 197, "channels": 1344}),
    ]
    part = Predictor("v100", batch=1, compat="laudnet").predict_operators(operators)
    matmul, softmax, norm, _ = part.operators
    # n = 1379 rows become 37 x 37 pixels of a 1x1 convolution.
    conv = {"c_in": 64, "c_out": 197, "height": 37, "width": 37}
    as_conv = Predictor("v100", batch=1, compat="laudnet").predict_operators([Operator("conv", "c", conv)])
    assert matmul.latency_ms == as_conv.latency_ms
    assert softmax.launch_ms == norm.launch_ms == pytest.approx(8e-3)


def test_operator_attributes_are_checked():
    predictor = Predictor("v100")
    kinds = operator_kinds()
    assert kinds["linear"] == {"c_in": True, "c_out": True}
    with pytest.raises(UsageError, match="lacks c_out"):
        predictor.predict_operators([Operator("linear", "fc", {"c_in": 3})])
    with pytest.raises(UsageError, match="unknown attributes bias"):
        predictor.predict_operators([Operator("linear", "fc", {"c_in": 3, "c_out": 3, "bias": 1})])
    with pytest.raises(UsageError, match="c_in must be positive"):
        predictor.predict_operators([Operator("linear", "fc", {"c_in": 0, "c_out": 3})])
    shape = {"channels": 3, "height": 4, "width": 4, "density": 1.5}
    with pytest.raises(UsageError, match=r"density must lie in \[0, 1\]"):
        predictor.predict_operators([Operator("add", "add", shape)])


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "resnet5"}, "Unknown network 'resnet5'"),
        ({"device": "v10"}, "Did you mean 'v100'"),
        ({"mode": "spatail"}, "Did you mean 'spatial'"),
        ({"mode": ("layer", "layer")}, "2 entries, the network has 4 stages"),
        ({"compat": "laud"}, "Unknown compat 'laud'. Did you mean 'laudnet'"),
        ({"compat": "laudnet", "mode": "both"}, "no mode 'both'"),
        ({"rate": 1.2}, "must be a number in"),
        ({"rate": float("nan")}, "must be a number in"),
        ({"rate": "half"}, "entries|number"),
        ({"rate": [0.5, 0.5]}, "2 entries, the network has 16 blocks"),
        ({"granularity": 0}, "positive whole numbers"),
        ({"granularity": (4, 4)}, "2 entries"),
        ({"channel_granularity": 1.5}, "whole numbers|number"),
        ({"batch": 0}, "positive whole number"),
        ({"batch": 1.5}, "positive whole number"),
        ({"seed": 1}, "compat='laudnet' only"),
        ({"compat": "laudnet", "seed": -1}, "seed must lie"),
        ({"mem_concurrent": 0}, "mem_concurrent"),
        ({"input_size": (0, 224)}, "must be positive"),
        ({"network": _SMALL, "input_size": (32, 32)}, "its own input size"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        predict_network(**{"network": "resnet50", "device": "v100", "mode": "layer", **arguments})


def test_bad_network_descriptions():
    value = _SMALL.to_json()
    with pytest.raises(UsageError, match="do not add up"):
        NetworkSpec.from_json({**value, "stages": [1, 1]})
    with pytest.raises(UsageError, match="unknown fields in NetworkSpec: depth"):
        NetworkSpec.from_json({**value, "depth": 3})
    with pytest.raises(UsageError, match="not valid"):
        NetworkSpec.from_json({"name": "x"})
    first, *rest = _SMALL.blocks
    with pytest.raises(UsageError, match=r"'layer1\.1' takes 32"):
        dataclasses.replace(_SMALL, blocks=(dataclasses.replace(first, c_out=48), *rest))
    with pytest.raises(UsageError, match="not divisible"):
        dataclasses.replace(_SMALL, blocks=(dataclasses.replace(first, groups=3), *rest))
    with pytest.raises(UsageError, match="height must be a whole number from 1"):
        dataclasses.replace(_SMALL, blocks=(dataclasses.replace(first, height=0), *rest))
