"""Fake quantisation: inside its context a network computes in integers, outside nothing is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyndeploy.blocks import Tape
from dyndeploy.errors import NotFiniteError, UsageError
from dyndeploy.nets import create_model
from dyndeploy.quantization import CalibrationTable, TensorScale
from dyndeploy.training.fake_quantization import FakeQuantization, StandardLayer

POINTS = {"stem/Conv:x": (0.02, 128), "stem/Conv:y": (0.03, 0)}
BLOCKS = ("layer1.0", "layer2.0", "layer3.0", "layer4.0")


def network() -> Any:
    """A LAUD-ResNet whose batch norms and maskers do something."""
    torch.manual_seed(0)
    made: Any = create_model("laud_resnet14_small", mode="spatial", granularity=[2, 2, 1, 1], width_mult=0.1).eval()
    for name, module in made.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        elif name.endswith("masker_spatial.conv"):
            assert isinstance(module, nn.Conv2d) and module.bias is not None
            nn.init.normal_(module.weight, 0, 2.0)
            nn.init.zeros_(module.bias)
    for block in BLOCKS:  # Half of the patches of every block are computed.
        with torch.no_grad(), Tape(made) as tape:
            made(images())
            made.get_submodule(block).masker_spatial.conv.bias[0] -= tape.margins[f"mask/{block}/spatial"].median()
    return made


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def table(precision: dict[str, str] | None = None, **changes: tuple[float, int]) -> CalibrationTable:
    points = dict(POINTS)
    for index, block in enumerate(BLOCKS):
        before = 0.03 if index < 1 else 0.04 + index / 100
        # The first block has an identity, whose two sides have one scale.
        points |= {f"{block}/x": (before, 0), f"{block}/y": (0.03 if not index else 0.05 + index / 100, 0)}
        points |= {f"{block}/h1": (0.02, 0), f"{block}/h2": (0.02, 0)}
    points["layer2.0/x"] = points["layer1.0/y"]
    points |= {name.replace("__", "/"): value for name, value in changes.items()}
    return CalibrationTable(
        network="laud_resnet14_small",
        mode="spatial",
        granularity=(2, 2, 1, 1),
        channel_granularity=(2, 2, 2, 2),
        weights_sha256="0" * 64,
        weight_bits=7,
        per_channel=True,
        method="minmax",
        settings={},
        data="made up",
        images=1,
        precision=precision or {},
        tensors={point: TensorScale(scale, zero, 0.0, 255 * scale, 1) for point, (scale, zero) in points.items()},
        tools={},
    )


def groups(known: CalibrationTable) -> list[list[str]]:
    """As in the graph: one scale from the stem to the second block, then one between neighbours."""
    joined = [
        ["stem/Conv:y", "layer1.0/x", "layer1.0/y", "layer2.0/x"],
        ["layer2.0/y", "layer3.0/x"],
        ["layer3.0/y", "layer4.0/x"],
    ]
    single = sorted(set(known.tensors) - {point for group in joined for point in group})
    return [*joined, *([point] for point in single)]


def largest(values: Tensor) -> tuple[float, int] | None:
    most = float(values.max())
    return (most / 255, 0) if most > 0 else None


def fake(of: Any, known: CalibrationTable | None = None, **options: Any) -> FakeQuantization:
    known = known or table()
    layers = {"stem/Conv": StandardLayer(of.conv1, of.bn1)}
    return FakeQuantization(of, layers, known, groups(known), images(2), **{"find_range": largest, **options})


def steps_off(values: Tensor, scale: float) -> float:
    """How far from a multiple of the scale, in steps."""
    steps = values.double() / torch.tensor(scale).double()
    return float((steps - steps.round()).abs().max())


def outputs_of(modules: Sequence[nn.Module], into: list[Tensor]) -> list[Any]:
    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        into.append(output[0] if isinstance(output, tuple) else output)

    return [module.register_forward_hook(see) for module in modules]


def test_values_are_bytes_inside_and_floats_outside() -> None:
    net, x = network(), images()
    with torch.no_grad():
        before, made = net(x).logits, fake(net)
        seen: list[Tensor] = []
        handles = outputs_of([net.relu, net.layer1[0], net.layer4[0]], seen)
        with made:
            inside = net(x).logits
        for handle in handles:
            handle.remove()
        assert torch.equal(net(x).logits, before), "nothing is left behind"
    stem, first, last = seen[0], seen[1], seen[-1]
    assert steps_off(stem, 0.03) < 1e-4 and steps_off(first, 0.03) < 1e-4 and steps_off(last, 0.08) < 1e-4
    assert float(first.min()) >= 0 and float(last.max()) <= 255 * 0.08 * 1.001
    assert 0 < float((inside - before).abs().max()) < 0.3 * float(before.abs().max())
    assert all("compute" not in block.__dict__ and not block.masker_spatial._forward_pre_hooks for block in net.layer1)
    assert "forward" not in net.conv1.__dict__ and "forward" not in net.bn1.__dict__


def test_gates_read_what_the_bytes_stand_for() -> None:
    net, x = network(), images()
    made, read = fake(net), list[Tensor]()
    handle = net.layer2[0].masker_spatial.register_forward_hook(lambda m, i, o: read.append(i[0]))
    with torch.no_grad(), made, Tape(net) as tape:
        net(x)
    handle.remove()
    assert steps_off(read[0], 0.03) < 1e-4
    assert 0 < float(tape.masks["mask/layer2.0/spatial"].mean()) < 1, "the test means nothing where nothing is skipped"


def test_a_block_that_the_table_leaves_in_floats_computes_in_floats() -> None:
    net, x = network(), images()
    made, seen = fake(net, table({"layer2.0": "fp32"})), list[Tensor]()
    outputs_of([net.layer2[0], net.layer3[0]], seen)
    with torch.no_grad(), made:
        net(x)
    assert steps_off(seen[0], 0.06) > 0.1 and steps_off(seen[1], 0.07) < 1e-4


def test_gradients_reach_all_that_deploys() -> None:
    net, x = network(), images()
    with fake(net):
        net(x).logits.square().sum().backward()
    missing = [
        name
        for name, parameter in net.named_parameters()
        if ".masker_" not in name and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert missing == []


def test_scales_move_together_and_freeze() -> None:
    net, x = network(), images()
    made = fake(net, momentum=0.25, freeze_after=2)
    first = made.ranges
    for _ in range(3):
        with made:
            made.observe()
            net(x)
        made.end_part()
        made.update()
    assert made.frozen and made.steps == 2
    last = made.ranges
    shared = {last[point] for point in ("stem/Conv:y", "layer1.0/x", "layer1.0/y", "layer2.0/x")}
    assert len(shared) == 1, "one tensor, one scale"
    moved = [point for point in first if last[point] != first[point]]
    assert {"layer1.0/h1", "layer2.0/y", "layer4.0/h2", "stem/Conv:x"} <= set(moved)
    # A quarter of the way to what every pass finds, twice; what is found in the images does not depend on the scales.
    target = float(x.max()) / 255
    assert last["stem/Conv:x"][0] == pytest.approx(target + 0.75**2 * (0.02 - target))
    with made:
        made.observe()
        net(x * 100)
    made.end_part()
    made.update()
    assert made.ranges == last


def test_parts_of_a_batch_count_together() -> None:
    net, x = network(), images()
    made = fake(net, momentum=1.0, freeze_after=9)
    for part in (x, 3 * x):
        with made:
            made.observe()
            net(part)
        made.end_part()
    made.update()
    assert made.steps == 1
    assert made.ranges["stem/Conv:x"][0] == pytest.approx(2 * float(x.max()) / 255)


def test_what_is_not_finite_is_named() -> None:
    net, x = network(), images()
    made = fake(net, freeze_after=1)
    x[0, 0, 0, 0] = torch.inf
    with made:
        made.observe()
        net(x)
    made.end_part()
    with pytest.raises(NotFiniteError, match="quantised at stem/Conv:x is NaN or infinite"):
        made.update()


def test_a_state_goes_on_where_it_was_saved() -> None:
    net, x = network(), images()
    made, again = (fake(net, momentum=0.3, freeze_after=4) for _ in range(2))
    with made:
        made.observe()
        net(x)
    made.end_part()
    made.update()
    again.load(made.state())
    assert again.ranges == made.ranges and again.steps == 1
    with pytest.raises(ValueError, match="another network"):
        again.load({"steps": 1, "ranges": {"layer1.0/x": (1.0, 0)}})


def test_what_cannot_be_quantised_is_refused() -> None:
    net, known = network(), table()
    lacking = {point: item for point, item in known.tensors.items() if point != "layer3.0/h2"}
    with pytest.raises(UsageError, match=r"no scale of layer3\.0/h2"):
        fake(net, CalibrationTable(**{**vars(known), "tensors": lacking}))
    with pytest.raises(UsageError, match="nothing that could be quantised"):
        FakeQuantization(nn.Linear(2, 2), {}, known, groups(known), torch.zeros(2, 2), find_range=largest)
