from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dyndeploy.blocks import Block, Gate, LoweredCall, PooledGate, Tape, fold_batch_norm, skip
from dyndeploy.blocks.block import run_dense
from dyndeploy.errors import UsageError
from dyndeploy.export.swap import Captured, dry_run, swap
from tests.blocks.networks import Pyramid, Residual, liven
from tests.export.conftest import MODES, lively_network


def swapped(network: nn.Module, images: Tensor) -> tuple[Captured, tuple[str, ...]]:
    """A copy whose blocks run through the operators' references, with its masks as outputs."""
    twin = copy.deepcopy(network).eval()
    run = dry_run(twin, [images])
    found = swap(twin, run)
    return Captured(found.network, found.recorder, list(run.outputs), found.masks, in_order=False), found.masks


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *[(mode, {}) for mode in MODES],
        ("spatial", {"granularity": (3, 5, 2, 1)}),
        ("channel", {"channel_masker": "conv_linear"}),
        ("channel", {"channel_masker_layers": 1, "channel_granularity": (4, 8, 1, 2)}),
        ("both", {"groups": 2}),
        ("spatial", {"replace_stride_with_dilation": (False, True, True)}),
        (("spatial", "static", "channel", "layer"), {}),
        ("static", {}),
    ],
)
@settings(max_examples=3, deadline=None)
@given(size=st.tuples(st.integers(32, 45), st.integers(32, 45)), seed=st.integers(0, 1000))
def test_a_swapped_network_computes_the_same(
    mode: str, options: dict[str, object], size: tuple[int, int], seed: int
) -> None:
    network = lively_network(mode, seed, **options).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        lowered, names = swapped(network, images)
        with Tape(network) as tape:
            expected = network(images).logits
        logits, *masks = lowered(images)
    assert list(names) == list(tape.masks)
    for got, want in zip(masks, tape.masks.values(), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=0)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


def test_masks_do_vary_in_these_tests() -> None:
    with torch.no_grad(), Tape(lively_network("both")) as tape:
        tape.module(torch.randn(8, 3, 32, 32))
    rates = torch.stack([mask.mean() for mask in tape.masks.values()])
    assert ((rates > 0.05) & (rates < 0.95)).sum() >= 5


def test_dense_blocks_are_those_with_every_bit_set() -> None:
    network = lively_network("both").double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        with Tape(network, force=lambda name, mask: torch.ones_like(mask)):
            expected = network(images).logits
        run_dense(network, [name for name, _ in network.named_blocks()])
        lowered, names = swapped(network, images)
        (logits,) = lowered(images)
    assert not names
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


def test_a_network_of_ones_own_with_two_outputs() -> None:
    network, images = liven(Pyramid()).double(), torch.randn(2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        lowered, names = swapped(network, images)
        scores, boxes, *_ = lowered(images)
        expected = network(images)
    torch.testing.assert_close(scores, expected["scores"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(boxes, expected["boxes"], rtol=1e-9, atol=1e-9)
    assert names == ("mask/body.a/spatial", "mask/body.b/spatial", "mask/body.b/channel")


def test_a_block_that_sees_negative_numbers_gets_its_relu() -> None:
    network = liven(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), _First(Pyramid().body["a"])))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        lowered, _ = swapped(network, images)
        output, mask = lowered(images)
        torch.testing.assert_close(output, network(images), rtol=1e-5, atol=1e-5)
    assert mask.mean() < 1 and (network[0](images) < 0).any(), "the test means nothing where nothing is skipped"


class _First(nn.Module):
    """The first result of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x)[0]
        return result


class _Stubborn(Block):
    """A block whose forward keeps its masks to itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.gate, self.body, self.how = PooledGate(4), Residual(4), how

    def gates(self) -> Mapping[str, Gate]:
        return {"layer": self.gate}

    def compute(self, x: Tensor, layer: Tensor | None = None) -> Tensor:
        y: Tensor = self.body(x)
        return y if layer is None else torch.where(layer > 0.5, y, x)

    def lower(self, *shapes: tuple[int, ...]) -> LoweredCall:
        return LoweredCall("LayerBottleneck", {"w1": torch.zeros(1)})

    def forward(self, x: Tensor) -> Tensor:
        mask = self.gate(x)
        if self.how == "changed":
            return self.compute(x, layer=mask * 0.5)
        return self.compute(x, layer=mask) if self.how == "weights" else self.body(x) * mask


@pytest.mark.parametrize(
    ("how", "match"),
    [("kept", "does not hand the mask of layer"), ("changed", "as its gate made it"), ("weights", "takes the weights")],
)
def test_blocks_that_cannot_be_swapped_are_refused(how: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        swapped(nn.Sequential(_Stubborn(how)), torch.randn(1, 4, 6, 6))


def test_a_block_used_twice_and_inputs_that_do_not_fit_are_refused() -> None:
    block = skip(Residual(4))
    with pytest.raises(UsageError, match="used twice"):
        swapped(nn.Sequential(block, block), torch.randn(1, 4, 6, 6))
    with pytest.raises(UsageError, match=r"cannot run on the example inputs \(\(1, 3, 6, 6\)\)"):
        swapped(nn.Sequential(nn.Conv2d(4, 4, 1)), torch.randn(1, 3, 6, 6))


def test_blocks_that_forward_does_not_use_are_named() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = skip(Residual(4)), skip(Residual(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    assert dry_run(Lazy().eval(), [torch.randn(1, 4, 6, 6)]).unreached == ("unused",)


def test_fold_batch_norm_with_a_convolution_bias() -> None:
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(3, 4, 3, bias=True).double(), nn.BatchNorm2d(4).double().eval()
    norm.running_mean = torch.randn(4, dtype=torch.float64)
    norm.running_var = torch.rand(4, dtype=torch.float64) + 0.1
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    weight, bias = fold_batch_norm(conv, norm)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias), norm(conv(x)))


def test_spatial_groups_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="spatial_groups=1"):
        swapped(lively_network("spatial", spatial_groups=2), torch.randn(1, 3, 32, 32))
