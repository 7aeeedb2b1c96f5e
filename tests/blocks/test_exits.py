from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dyndeploy.blocks import StagedNetwork, early_exits
from dyndeploy.blocks.macs import exit_macs
from dyndeploy.confidences import CONFIDENCES, confidences
from dyndeploy.errors import UsageError


def network() -> nn.Module:
    stages = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)) for width in (4, 6, 8)]
    return early_exits(stages, heads, confidence="margin").eval()


@pytest.mark.parametrize("exits", [(1, 2, 3), (2, 3), (1, 3), (3,)])
def test_segments_in_a_row_give_the_logits_of_forward(exits: tuple[int, ...]) -> None:
    net, x = network(), torch.randn(2, 3, 16, 16)
    assert isinstance(net, StagedNetwork)
    expected, values = net(x), {"images": x}
    for segment in net.segments(exits):
        values |= dict(zip(segment.outputs, segment(*(values[name] for name in segment.inputs)), strict=True))
        torch.testing.assert_close(values["logits"], expected[segment.exit - 1])
    assert set(dict(segment.named_parameters())) <= set(dict(net.named_parameters()))


def test_macs_of_the_exits_by_hand() -> None:
    convolutions = [3 * 4 * 9 * 64, 4 * 6 * 9 * 16, 6 * 8 * 9 * 4]
    heads = [4 * 5, 6 * 5, 8 * 5]
    each = [c + h for c, h in zip(convolutions, heads, strict=True)]
    assert exit_macs(network(), (16, 16)) == tuple(np.cumsum(each))  # type: ignore[arg-type]
    assert exit_macs(network(), (16, 16), (3,)) == (sum(convolutions) + heads[-1],)  # type: ignore[arg-type]


def test_what_is_no_chain_of_exits_is_refused() -> None:
    conv, head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
    for arguments, match in (
        (([conv], [head]), "at least two"),
        (([conv, conv], [head, nn.Linear(3, 2)]), "two places"),
        (([conv, "x"], [head, nn.Linear(3, 2)]), "not str"),
        (([conv, nn.Conv2d(3, 3, 1)], [head, nn.Linear(3, 2)], "entropie"), "Did you mean 'entropy'"),
    ):
        with pytest.raises(UsageError, match=match):
            early_exits(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ascending"):
        network().segments((2, 1))  # type: ignore[operator]


def test_confidences_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]], np.float32))
    np.testing.assert_allclose(confidences(logits), [0.5, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(confidences(logits, "margin"), [0.2, 0.0], atol=1e-6)
    entropy = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2)) / np.log(3)
    np.testing.assert_allclose(confidences(logits, "entropy"), [1 - entropy, 0.0], atol=1e-6)
    sure = np.array([[200.0, 0.0]], np.float32)
    assert all(measure(sure)[0] == pytest.approx(1.0) for measure in CONFIDENCES.values())
