from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dyndeploy.blocks import Tape, early_exits
from dyndeploy.blocks.macs import dense_macs
from dyndeploy.nets import create_model, full_flops
from dyndeploy.nets.laud_resnet import LaudResNet
from dyndeploy.ops import operator
from dyndeploy.training.flops import Costs
from tests.training.own_networks import Head, LaudStage, Residual, SmallCnn, three_exits


def counted(network: nn.Module, x: Tensor, masks: dict[str, Tensor], exits: int = 1) -> tuple[Costs, Tensor, Tensor]:
    """Costs of a network, total and ratios of a pass under forced masks."""
    network.eval()
    size = (x.shape[2], x.shape[3])
    with torch.no_grad(), Tape(network) as tape:
        output = network(x)
    costs = Costs(network, size, output, tape, exits)
    with torch.no_grad(), Tape(network, force=masks) as tape:
        output = network(x)
    return costs, *costs.count(output, tape)


def rows(*bits: float) -> Tensor:
    return torch.tensor(bits).reshape(-1, 1, 1, 1)


BODY = 12 * 12 * 9 * 64
FIXED = 3 * 12 * 9 * 64 + 12 * 10


def test_a_branch_costs_its_macs_times_its_rate() -> None:
    x = torch.rand(4, 3, 8, 8)
    masks = {"mask/blocks.0/layer": rows(1, 0, 0, 0), "mask/blocks.1/layer": rows(1, 1, 1, 0)}
    costs, total, ratios = counted(SmallCnn(blocks=2), x, masks)
    assert costs.full == FIXED + 2 * BODY == dense_macs(SmallCnn(blocks=2), [x[:1]]).total
    assert total.item() == pytest.approx(FIXED + BODY * (0.25 + 0.75), rel=1e-6)
    assert ratios.tolist() == pytest.approx([0.25, 0.75])
    assert costs.blocks == ("blocks.0", "blocks.1")


def test_blocks_within_a_branch_count_for_the_images_that_come_to_them() -> None:
    x = torch.rand(4, 3, 8, 8)
    outer, inner = "mask/blocks.0/layer", "mask/blocks.0.module.inner/layer"
    # The inner block would compute images 0 and 3, and only image 0 comes to it.
    costs, total, ratios = counted(
        SmallCnn(blocks=1, nested=True), x, {outer: rows(1, 1, 0, 0), inner: rows(1, 0, 0, 1)}
    )
    assert costs.full == FIXED + 2 * BODY
    assert total.item() == pytest.approx(FIXED + BODY * 0.5 + BODY * 0.25, rel=1e-6)
    assert dict(zip(costs.blocks, ratios.tolist(), strict=True)) == pytest.approx(
        {"blocks.0": (0.5 + 0.25) / 2, "blocks.0.module.inner": 0.25}
    )


def test_an_operator_costs_its_work_under_its_masks() -> None:
    torch.manual_seed(0)
    network = early_exits([nn.Conv2d(3, 16, 1), LaudStage(16)], [Head(16, 10), Head(16, 10)])
    x = torch.rand(3, 3, 8, 8)
    mask = torch.zeros(3, 1, 4, 4)
    mask[0, 0, 1, 1] = mask[1, 0, :2] = 1
    costs, total, ratios = counted(network, x, {"mask/stages.1.block/spatial": mask}, exits=2)
    spec = operator("SpatialBottleneck")
    shapes = [(3, 8, 8, 16), (3, 1, 4, 4), (4, 16), (4,), (4, 4, 3, 3), (4,), (16, 4), (16,)]
    attributes = {"strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4, "group": 1}
    work = spec.work(shapes, attributes, spec.counts(shapes, attributes, {"mask": mask.numpy()}), 4.0)
    dense = 64 * (16 * 4 + 4 * 4 * 9 + 4 * 16)
    assert ratios.item() == pytest.approx(work.macs.mean() / dense, rel=1e-6)
    assert total.item() == pytest.approx(costs.full - dense + work.macs.mean(), rel=1e-6)
    # The first exit lies before the block, the second behind it.
    assert costs.exits == (64 * 48 + 160, 64 * 48 + dense + 2 * 160)
    under = costs.exits_under({"stages.1.block": 0.25})
    assert under == (costs.exits[0], costs.exits[1] - 0.75 * dense)


def test_gradients_reach_every_gate() -> None:
    torch.manual_seed(0)
    network = SmallCnn(nested=True).train()
    x = torch.rand(4, 3, 8, 8)
    with Tape(network) as tape:
        output = network(x)
    flops = Costs(network, (8, 8), output, tape).count(output, tape)
    flops.total.backward()  # type: ignore[no-untyped-call]
    gates = [p for name, p in network.named_parameters() if ".gate." in name]
    assert len(gates) == 12
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates)
    network = three_exits().train()
    with Tape(network) as tape:
        output = network(x)
    Costs(network, (8, 8), output, tape, 3).count(output, tape).total.backward()
    masker = dict(network.named_parameters())["stages.1.block.masker_spatial.conv.weight"]
    assert masker.grad is not None
    assert masker.grad.abs().sum() > 0


def test_averages_are_the_tapes() -> None:
    network = SmallCnn(blocks=1).eval()
    with (
        torch.no_grad(),
        Tape(network, mean=lambda values: values.max(), force={"mask/blocks.0/layer": rows(1, 0)}) as tape,
    ):
        output = network(torch.rand(2, 3, 8, 8))
    assert Costs(network, (8, 8), output, tape).count(output, tape).total.item() == FIXED + BODY


def test_a_network_that_counts_itself_is_taken_at_its_word() -> None:
    network = create_model("laud_resnet14_small", mode="both", width_mult=0.1, channel_granularity=1).eval()
    assert isinstance(network, LaudResNet)
    with torch.no_grad(), Tape(network) as tape:
        output = network(torch.rand(2, 3, 16, 8))
    costs = Costs(network, (16, 8), output, tape)
    assert costs.full == full_flops(network, (16, 8))
    assert costs.count(output, tape).total is output.flops
    assert costs.blocks == ("layer1.0", "layer2.0", "layer3.0", "layer4.0")


def test_a_subclass_with_another_forward_is_counted() -> None:
    class Plain(LaudResNet):
        def forward(self, x: Tensor, temperature: float | Tensor | None = None) -> Tensor:  # type: ignore[override]
            return super().forward(x, temperature).logits

    base = create_model("laud_resnet14_small", mode="spatial", width_mult=0.1)
    assert isinstance(base, LaudResNet)
    network = Plain(base.name, base.architecture, base.config).eval()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad(), Tape(network) as tape:
        output = network(x)
    ones = {name: torch.ones_like(mask) for name, mask in tape.masks.items()}
    costs, total, ratios = counted(network, x, ones)
    assert total.item() == pytest.approx(costs.full, rel=1e-6)
    assert ratios.tolist() == pytest.approx([1.0] * 4)
    assert output.shape == (2, 10)


def test_a_network_without_gates_costs_the_same_always() -> None:
    costs, total, ratios = counted(nn.Sequential(Residual(3), Head(3, 10)), torch.rand(2, 3, 4, 4), {})
    assert total.item() == costs.full == 9 * 9 * 16 + 30
    assert ratios.shape == (0,)
    assert not costs.varies
