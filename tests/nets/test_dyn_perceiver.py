from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets import DynPerceiver, DynPerceiverConfig, create_model, exit_macs, model_names, official_flops

from .perceiver_reference import Reference

DATA = Path(__file__).parent / "data"
SMALL = "resnet10_small_perceiver_t32"
HEADLINES = ("reg800m_perceiver_t128", "resnet50_0375_perceiver_t128", "mobilenetV3_0x75_perceiver_t128")
FLAGS = ("with_x2z", "with_z2x", "with_dwc", "with_last_ca", "with_isc")
SUBSETS = [(*early, 4) for count in range(4) for early in itertools.combinations((1, 2, 3), count)]

TABLE = {
    name: (tuple(map(int, channels.split(","))), int(parameters), macs.split("/"), code)
    for name, channels, parameters, macs, code in (
        line.split("\t") for line in (DATA / "dyn_perceivers.tsv").read_text().splitlines()
    )
}
"""Name: channels, parameters, cumulative MACs in millions, millions that the reference code writes."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(name: str = SMALL, **options: Any) -> DynPerceiver:
    model = create_model(name, **options)
    assert isinstance(model, DynPerceiver)
    return model


def meta(name: str = SMALL, **options: Any) -> DynPerceiver:
    with torch.device("meta"):
        return build(name, **options)


@torch.no_grad()
def randomize(model: DynPerceiver) -> DynPerceiver:
    """Give every parameter and statistic a value that matters; return the network in eval mode."""
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.rand_like(tensor)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise)
        elif name.endswith(("running_mean", "bias")) or name == "latent":
            tensor.copy_(0.6 * noise - 0.3)
        elif tensor.ndim == 1:
            tensor.copy_(0.5 + noise)
    return model.eval()


def test_registry_has_exactly_the_published_names_and_one_small_network() -> None:
    assert set(model_names("dyn_perceiver")) == {*TABLE, SMALL}
    assert len(TABLE) == 56


@pytest.mark.parametrize("name", sorted(TABLE))
def test_sizes_and_costs_equal_the_published_ones(name: str) -> None:
    channels, parameters, macs, code = TABLE[name]
    model = meta(name)
    assert model.channels == channels
    assert sum(p.numel() for p in model.parameters()) == parameters
    for ours, theirs in zip(exit_macs(model, (224, 224)), macs, strict=True):
        # The published figures were rounded to two digits and then to one.
        assert abs(ours / 1e6 - float(theirs)) < 0.0551
    if code == "-":
        with pytest.raises(UsageError, match="a ResNet"):
            official_flops(model)
    else:
        for ours, theirs in zip(official_flops(model), code.split("/"), strict=True):
            assert abs(ours / 1e6 - float(theirs)) < 0.00501


def test_costs_of_the_headline_networks_to_the_digit() -> None:
    expected = {
        HEADLINES[0]: (457.938, 1063.489, 1227.590, 1298.257),
        HEADLINES[1]: (619.347, 1007.321, 1121.888, 1190.166),
        HEADLINES[2]: (97.278, 181.323, 206.436, 266.078),
    }
    for name, millions in expected.items():
        assert tuple(round(macs / 1e6, 3) for macs in exit_macs(meta(name), (224, 224))) == millions
    assert official_flops(meta(HEADLINES[0])) == (459052672, 1064883200, 1227629456, 1298014880)
    assert official_flops(meta(HEADLINES[2])) == (97687392, 181993488, 206852448, 266409648)


@pytest.mark.parametrize("name", HEADLINES)
def test_keys_equal_the_reference(name: str) -> None:
    model = meta(name)
    parameters = dict(model.named_parameters())
    ours = [
        f"{key}\t{tuple(value.shape)}\t{str(value.dtype)[6:]}\t{'param' if key in parameters else 'buffer'}"
        for key, value in model.state_dict().items()
    ]
    assert sorted(ours) == sorted((DATA / f"{name}_keys.txt").read_text().splitlines())


SEGMENT_PARAMETERS = {
    HEADLINES[0]: (3_089_144, 11_706_476, 3_802_108, 3_200_632),
    HEADLINES[1]: (5_221_952, 8_850_488, 2_878_696, 3_332_200),
    HEADLINES[2]: (709_048, 2_730_304, 2_660_568, 3_199_120),
}


@pytest.mark.parametrize("name", HEADLINES)
def test_segments_own_the_parameters_of_their_part(name: str) -> None:
    model = meta(name)
    segments = model.segments()
    assert tuple(sum(p.numel() for p in s.parameters()) for s in segments) == SEGMENT_PARAMETERS[name]
    whole = dict(model.named_parameters())
    for segment in segments:
        for key, parameter in segment.named_parameters():
            assert parameter is whole[key]
    assert [s.exit for s in segments] == [1, 2, 3, 4]
    assert [(s.inputs, s.outputs) for s in segments] == [
        (("images",), ("logits", "x2", "z3", "logits1")),
        (("x2", "z3", "logits1"), ("logits", "x3", "z4", "logits2")),
        (("x3",), ("logits", "x4")),
        (("x4", "z4", "logits2"), ("logits",)),
    ]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (HEADLINES[0], [(144, 28, 28), (32, 144), (320, 14, 14), (16, 320), (784, 7, 7)]),
        (HEADLINES[1], [(192, 28, 28), (32, 192), (384, 14, 14), (16, 384), (768, 7, 7)]),
        (HEADLINES[2], [(64, 14, 14), (32, 64), (120, 7, 7), (16, 120), (720, 7, 7)]),
    ],
)
def test_carried_tensors_have_the_published_shapes(name: str, shapes: list[tuple[int, ...]]) -> None:
    values = run_segments(meta(name).eval(), torch.empty(2, 3, 224, 224, device="meta"), (1, 2, 3, 4))
    assert [tuple(values[key].shape[1:]) for key in ("x2", "z3", "x3", "z4", "x4")] == shapes
    assert all(values[f"logits{k}"].shape == (2, 1000) for k in range(1, 5))


def run_segments(model: DynPerceiver, images: Tensor, exits: tuple[int, ...]) -> dict[str, Tensor]:
    values = {"images": images}
    with torch.no_grad():
        for segment in model.segments(exits):
            outputs = segment(*(values[name] for name in segment.inputs))
            assert len(outputs) == len(segment.outputs)
            values.update(zip(segment.outputs, outputs, strict=True))
            values[f"logits{segment.exit}"] = values.pop("logits")
    return values


@pytest.mark.parametrize("exits", SUBSETS)
@pytest.mark.parametrize("off", [None, *FLAGS])
def test_segments_chain_to_the_forward_bit_for_bit(exits: tuple[int, ...], off: str | None) -> None:
    model = randomize(build(**({} if off is None else {off: False})))
    images = torch.randn(3, 3, 32, 24)
    with torch.no_grad():
        expected = model(images).exits
    values = run_segments(model, images, exits)
    for number in exits:
        assert torch.equal(values[f"logits{number}"], expected[number - 1])
    carried = [name for segment in model.segments(exits) for name in segment.outputs if name != "logits"]
    assert len(carried) == len(set(carried))


@pytest.mark.parametrize(
    ("name", "side"),
    [("reg400m_perceiver_t32", 32), ("resnet50_0375_perceiver_t64", 64), ("mobilenetV3_0x5_perceiver_t128", 32)],
)
def test_segments_of_every_backbone_chain_bit_for_bit(name: str, side: int) -> None:
    model = randomize(build(name, num_classes=10))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = model(images).exits
    for exits in ((1, 2, 3, 4), (1, 2, 4), (3, 4)):
        values = run_segments(model, images, exits)
        assert all(torch.equal(values[f"logits{k}"], expected[k - 1]) for k in exits)
    for number in range(1, 5):
        with torch.no_grad():
            (logits,) = model.truncated(number)(images)
        assert torch.equal(logits, expected[number - 1])


def test_a_disabled_exit_costs_its_head_only_where_it_is_read() -> None:
    model = meta()
    all_on, size = exit_macs(model, (32, 32)), (32, 32)
    # Exit 3 is read by nobody; exits 1 and 2 are, through the connection.
    assert all_on[3] - exit_macs(model, size, (1, 2, 4))[-1] == model.classifier_cnn.weight.numel()
    assert exit_macs(model, size, (4,))[-1] == exit_macs(model, size, (1, 2, 4))[-1]
    free = meta(with_isc=False)
    heads = free.early_classifier3.weight.numel() + free.classifier_att.weight.numel()
    assert exit_macs(free, size, (1, 2, 4))[-1] - exit_macs(free, size, (4,))[-1] == heads
    # With exit 2 off, its tokens are only computed after exit 3.
    assert exit_macs(model, size, (1, 3, 4))[1] < exit_macs(model, size)[2]
    assert "z4" not in model.segments((1, 3, 4))[1].outputs


@pytest.mark.parametrize("exits", [(), (1, 2), (2, 1, 4), (1, 1, 4), (0, 4), (4, 5), (1, 4, 4)])
def test_impossible_exits_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"exits=.*ascending"):
        meta().segments(exits)


def test_other_impossible_requests_are_refused() -> None:
    for number in (0, 5):
        with pytest.raises(UsageError, match="exits 1 to 4"):
            meta().truncated(number)
    with pytest.raises(UsageError, match="at least 1"):
        exit_macs(meta(), (0, 32))
    with pytest.raises(UsageError, match="with_isc=False"):
        official_flops(meta("reg400m_perceiver_t32", with_isc=False))
    with pytest.raises(UsageError, match="7 heads do not divide the 80 channels of stage 4"):
        meta("mobilenetV3_0x5_perceiver_t128", num_sa_heads=(1, 2, 4, 7))
    with pytest.raises(UsageError, match="only ResNets"):
        meta("reg400m_perceiver_t32", drop_path_rate=0.1)


REFERENCE = [
    (SMALL, (32, 32), {}),
    (SMALL, (37, 29), {"num_sa_heads": (2, 1, 8, 4), "sa_widening_factor": 1, "depth_factor": (0, 1, 0, 2)}),
    *((SMALL, (24, 16), {flag: False}) for flag in FLAGS),
    (SMALL, (16, 16), dict.fromkeys(FLAGS, False)),
    ("reg400m_perceiver_t32", (64, 96), {}),
    ("reg800m_perceiver_t32", (224, 224), {}),
    ("mobilenetV3_0x5_perceiver_t128", (224, 224), {}),
    ("mobilenetV3_0x75_perceiver_t128", (64, 48), {}),
    ("resnet50_0375_perceiver_t64", (64, 64), {}),
    ("resnet18_perceiver_t128", (96, 64), {}),
]


@pytest.mark.parametrize(("name", "size", "options"), REFERENCE)
def test_forward_equals_the_reference(name: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    model = randomize(build(name, **{"num_classes": 7, **options})).double()
    small = {"grid": 4, "stem_stride": 1, "stem_pool": False} if name == SMALL else {}
    reference = Reference(model.state_dict(), model.architecture.kind, model.config.num_sa_heads, **small)
    images = torch.randn(2 if name == SMALL else 1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = model(images).exits, reference(images)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == (len(images), 7)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    spread = torch.stack(theirs).std()
    assert spread > 0.05 and torch.isfinite(spread)


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    batch=st.integers(1, 3),
    flags=st.tuples(*(st.booleans() for _ in FLAGS)),
    exits=st.sampled_from(SUBSETS),
)
def test_every_combination_works(
    height: int, width: int, batch: int, flags: tuple[bool, ...], exits: tuple[int, ...]
) -> None:
    model = randomize(build(depth_factor=(1, 0, 0, 1), **dict(zip(FLAGS, flags, strict=True))))
    images = torch.randn(batch, 3, height, width)
    with torch.no_grad():
        expected = model(images).exits
    values = run_segments(model, images, exits)
    assert all(torch.equal(values[f"logits{k}"], expected[k - 1]) for k in exits)
    rebuilt = meta(**model.config.as_dict())
    assert rebuilt.config == model.config
    assert rebuilt.state_dict().keys() == model.state_dict().keys()
    costs = exit_macs(model, (height, width))
    assert list(costs) == sorted(set(costs))


def test_gradients_pass_the_connections_and_reach_everything() -> None:
    model = build(num_classes=5)
    images = torch.randn(4, 3, 32, 32)
    # Zero-initialised norms would hide the gradient of what lies before them.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    logits = model(images).exits
    logits[1].square().sum().backward(retain_graph=True)
    assert model.early_classifier3.weight.grad.abs().max() > 0
    model.zero_grad()
    logits[3].square().sum().backward(retain_graph=True)
    assert model.classifier_att.weight.grad.abs().max() > 0
    assert model.early_classifier3.weight.grad.abs().max() > 0
    assert model.classifier_cnn.weight.grad is None
    model.zero_grad()
    sum(exit_logits.square().sum() for exit_logits in logits).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_building_has_no_side_effects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = build("mobilenetV3_0x5_perceiver_t128")
    assert exit_macs(model, (64, 64)) and official_flops(model, (64, 64))
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert int(module.num_batches_tracked) == 0, name
            assert not module.running_mean.any() and bool((module.running_var == 1).all())
    assert model.training
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_initialisation() -> None:
    reg, mobile = build("reg400m_perceiver_t512"), build("mobilenetV3_0x5_perceiver_t128")
    res = build("resnet50_0375_perceiver_t64")
    assert reg.latent.std().item() == pytest.approx(0.02, rel=0.05)
    assert reg.classifier_cnn.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not reg.classifier_cnn.bias.any()
    block = reg.cnn_body.block4.get_submodule("block4-1").f
    assert block.b[0].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 440)), rel=0.05)
    assert block.se.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 110), rel=0.05)
    assert block.se.fc1.bias.any()
    last = mobile.cnn_body_stage4
    assert last[2][0].weight.std().item() == pytest.approx(math.sqrt(2 / 480), rel=0.05)
    assert not last[0].block[2].fc1.bias.any()
    # PyTorch's own initialisation is uniform with a bound of 1 / sqrt(fan in).
    bound = 1 / math.sqrt(mobile.classifier_cnn[0].in_features)
    assert 0.95 * bound < mobile.classifier_cnn[0].weight.abs().max().item() <= bound
    for stage in (1, 2, 3, 4):
        for res_block in res.get_submodule(f"cnn_body_stage{stage}"):
            assert not res_block.bn3.weight.any()
            assert bool((res_block.bn1.weight == 1).all())
    assert res.cnn_body_stage2[1].conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 48)), rel=0.05)
    for model in (reg, mobile, res):
        biases = [p for name, p in model.named_parameters() if name.endswith("relative_position_bias")]
        assert len(biases) == 4 and not any(p.any() for p in biases)


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    model = build(drop_rate=0.5, drop_path_rate=0.5, dropout=0.3)
    images = torch.randn(8, 3, 32, 32)
    rates = [module.rate for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5])
    first, second = model(images).exits, model(images).exits
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model.eval()
    with torch.no_grad():
        again = [model(images).exits for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))


def test_exit_4_reads_the_dropped_features_without_the_last_attention() -> None:
    torch.manual_seed(3)
    model = build(drop_rate=0.9, with_last_ca=False)
    seen: dict[str, Tensor] = {}
    model.classifier_cnn.register_forward_hook(lambda m, i, o: seen.update(cnn=i[0]))
    model.classifier_merge.register_forward_hook(lambda m, i, o: seen.update(merge=i[0]))
    model(torch.randn(4, 3, 32, 32))
    assert torch.equal(seen["merge"][:, : seen["cnn"].shape[1]], seen["cnn"])
    assert (seen["cnn"] == 0).float().mean() > 0.5


def test_copies_and_precisions() -> None:
    model = randomize(build())
    images = torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert not torch.equal(twin(images).exits[3], model(images).exits[3])
        # The segments of a copy are made of the copy.
        assert torch.equal(run_segments(twin, images, (4,))["logits4"], twin(images).exits[3])
        half = twin.to(torch.bfloat16)(images.bfloat16()).exits
    assert all(logits.dtype == torch.bfloat16 for logits in half)


def test_network_and_segments_can_be_captured() -> None:
    model = randomize(build(depth_factor=(1, 0, 0, 1)))
    images, other = torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: batch}})
    with torch.no_grad():
        expected = model(other).exits
        for ours, theirs in zip(program.module()(other).exits, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    values, small = {"images": other}, {"images": images}
    with torch.no_grad():
        for segment in model.segments():
            inputs = tuple(small[name] for name in segment.inputs)
            exported = torch.export.export(segment, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))
            assert set(exported.state_dict) <= set(model.state_dict())
            small.update(zip(segment.outputs, segment(*inputs), strict=True))
            outputs = exported.module()(*(values[name] for name in segment.inputs))
            values.update(zip(segment.outputs, outputs, strict=True))
            torch.testing.assert_close(values["logits"], expected[segment.exit - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_sa_heads": (1, 2, 4)}, "four whole numbers"),
        ({"num_sa_heads": "1248"}, "four whole numbers"),
        ({"depth_factor": (1, 1, 1, -1)}, "at least 0"),
        ({"depth_factor": (1, 1, 1, True)}, "at least 0"),
        ({"sa_widening_factor": 1.5}, "sa_widening_factor"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"drop_rate": "0.1"}, "from 0 to below 1"),
        ({"with_isc": 1}, "True or False"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DynPerceiverConfig(**options)
