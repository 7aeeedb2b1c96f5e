from __future__ import annotations

import torch
from torch import nn

from dyndeploy.blocks import fold_batch_norm


def layers() -> tuple[nn.Conv2d, nn.BatchNorm2d, torch.Tensor]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5).eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return conv, norm, torch.randn(2, 3, 7, 7)


def test_the_folded_layer_gives_what_both_do() -> None:
    conv, norm, x = layers()
    weight, bias = fold_batch_norm(conv, norm)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias, padding=1), norm(conv(x)), atol=1e-5, rtol=1e-5)


def test_gradients_through_the_folded_layer_are_those_of_both() -> None:
    conv, norm, x = layers()
    parameters = [conv.weight, conv.bias, norm.weight, norm.bias]
    assert all(isinstance(parameter, nn.Parameter) for parameter in parameters)
    towards = torch.randn(2, 5, 7, 7)
    expected = torch.autograd.grad((norm(conv(x)) * towards).sum(), parameters)  # type: ignore[arg-type]
    weight, bias = fold_batch_norm(conv, norm)
    folded = (nn.functional.conv2d(x, weight, bias, padding=1) * towards).sum()
    for one, other in zip(torch.autograd.grad(folded, parameters), expected, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
