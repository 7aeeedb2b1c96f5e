"""What each exit of a Dynamic Perceiver costs: counted exactly, and as the reference code counts it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets.backbone import SqueezeExcitation
from dyndeploy.nets.dyn_perceiver import (
    PARTS,
    SELF_ATTENTIONS,
    Z2X_REDUCTION,
    DynPerceiver,
)


def _twin(network: DynPerceiver) -> DynPerceiver:
    """Return the network without weights, in eval mode, to be walked through at no cost."""
    with torch.device("meta"):
        return DynPerceiver(network.name, network.architecture, network.config).eval().requires_grad_(False)


def _meta_images(input_size: tuple[int, int]) -> Tensor:
    if min(input_size) < 1:
        raise UsageError(f"input_size={input_size!r} is not valid: give (height, width), at least 1 each.")
    return torch.empty(1, 3, *input_size, device="meta")


def official_flops(network: DynPerceiver, input_size: tuple[int, int] = (224, 224)) -> tuple[int, ...]:
    """Return what the reference code writes to flops.txt, times 1e9.

    Its counter leaves out the squeeze-and-excitation of RegNets, the second inter-stage connection and most
    heads of earlier exits, and counts the token expanders on twice their tokens. :func:`exit_macs` is exact.

    Args:
        network: A network with all parts.
        input_size: (height, width) in pixels.

    Returns:
        One number per exit.

    Raises:
        UsageError: A ResNet, which that counter does not know, a network without some part, or a size below 1.
    """
    config, kind = network.config, network.architecture.kind
    absent = [flag for flag in PARTS if not getattr(config, flag)]
    if kind == "resnet" or absent:
        reason = f"{absent[0]}=False" if absent else "a ResNet"
        raise UsageError(f"The reference code counts no FLOPs of {network.name} ({reason}): use exit_macs.")
    convolved, pixels = _official_convolutions(network, input_size)
    channels, tokens, grid = network.channels, network.architecture.tokens(), network.architecture.grid**2
    classes, widening = config.num_classes, config.sa_widening_factor
    c4, last, n4 = channels[3], channels[4], tokens[3]

    def attention(queries: int, keys: int, c_query: int, c_key: int, width: int) -> int:
        projections = 2 * queries * c_query * width + 2 * keys * c_key * width
        return projections + 2 * queries * keys * width

    def cross(queries: int, keys: int, c_query: int, c_key: int, width: int) -> int:
        return attention(queries, keys, c_query, c_key, width) + 2 * queries * c_query**2

    def latents(i: int) -> int:
        n, c = tokens[i], channels[i]
        layer = attention(n, n, c, c, c) + 2 * widening * n * c**2
        reading = (49 + 1) * c * pixels[i] + cross(n, grid, c, c, c)
        return reading + SELF_ATTENTIONS[i] * config.depth_factor[i] * layer

    def entering(i: int) -> int:
        n, c = tokens[i - 1], channels[i - 1]
        mixing = c * n * tokens[i] + n * c * channels[i]
        writing = cross(pixels[i], tokens[i], channels[i], channels[i], channels[i] // Z2X_REDUCTION)
        return mixing + writing + latents(i)

    shared = convolved[0] + latents(0) + convolved[1] + entering(1) + convolved[2] + entering(2)
    exit1 = shared + classes * channels[2]
    shared += convolved[3] + entering(3) + n4 * c4
    exit2 = shared + 2 * c4 * classes + classes * c4
    exit3 = shared + convolved[4] + last * pixels[4] + _linear_macs(network.classifier_cnn)
    exit4 = exit3 + cross(pixels[4], n4, last, c4, last // Z2X_REDUCTION) + last * pixels[4]
    return exit1, exit2, exit3, exit4 + _linear_macs(network.classifier_merge)


def _linear_macs(head: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in head.modules() if isinstance(layer, nn.Linear))


def _official_convolutions(network: DynPerceiver, input_size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return MACs of stem and stages as the reference code counts them, and pixels of x0 to x4."""
    twin = _twin(network)
    counted = 0
    regnet_gates = {
        layer
        for module in twin.modules()
        if isinstance(module, SqueezeExcitation) and network.architecture.kind == "regnet"
        for layer in (module.fc1, module.fc2)
    }

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        if isinstance(module, nn.Conv2d) and module not in regnet_gates:
            counted += module.weight.numel() * output.shape[2] * output.shape[3]
        elif isinstance(module, SqueezeExcitation) and network.architecture.kind == "mobilenet_v3":
            counted += inputs[0].numel()

    for module in twin.modules():
        module.register_forward_hook(count)
    macs, pixels = [], []
    x = _meta_images(input_size)
    with torch.no_grad():
        for path in ("cnn_stem", *twin.stage_paths):
            counted = 0
            x = twin.get_submodule(path)(x)
            macs.append(counted)
            pixels.append(x.shape[2] * x.shape[3])
    return macs, pixels
