"""Lowering: from a trainable network to one whose blocks are dynamic operators with folded batch norm.

A lowered network is an ordinary module: it runs in PyTorch (through the operators' references) and is captured as
an ONNX graph in which every dynamic block is one node. Between dynamic blocks activations stay channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNet
from dyndeploy.nets.maskers import ConvLinearChannelMasker, MlpChannelMasker, SpatialMasker
from dyndeploy.nets.results import mask_name
from dyndeploy.ops import operator


@dataclass(frozen=True)
class MaskOutput:
    """A mask of a lowered network: output name, block, kind ("spatial", "layer" or "channel")."""

    name: str
    block: str
    kind: str


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``conv`` followed by ``norm`` in evaluation, computed in double precision."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _keep_minus_skip(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a layer with compute logits followed by skip logits into one with their differences."""
    groups = bias.numel() // 2
    rows = weight.flatten(1).double()
    difference = (rows[:groups] - rows[groups:]).to(weight.dtype)
    return difference, (bias[:groups].double() - bias[groups:].double()).to(bias.dtype)


class _Weights(nn.Module):
    """Named constants of a lowered module; buffers, so that they move and are captured with it."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().clone().contiguous())

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.names)


class LoweredSpatialMasker(_Weights):
    """``SpatialMasker`` operator of a block."""

    def __init__(self, masker: SpatialMasker, mask_size: tuple[int, int]) -> None:
        assert masker.conv.bias is not None
        weight, bias = _keep_minus_skip(masker.conv.weight.detach(), masker.conv.bias.detach())
        super().__init__(weight=weight, bias=bias)
        self.mask_size = mask_size

    def forward(self, x: Tensor) -> Tensor:
        attributes = {"mask_height": self.mask_size[0], "mask_width": self.mask_size[1]}
        mask: Tensor = operator("SpatialMasker").emit((x, *self.tensors()), attributes)
        return mask


class LoweredChannelMasker(nn.Module):
    """``ChannelMasker`` operator of a block; a convolutional masker is a 1x1 convolution in front of it."""

    def __init__(self, masker: MlpChannelMasker | ConvLinearChannelMasker) -> None:
        super().__init__()
        self.features: _Weights | None = None
        hidden: dict[str, Tensor] = {}
        if isinstance(masker, ConvLinearChannelMasker):
            conv, norm = masker.conv[0], masker.conv[1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            weight, bias = fold_batch_norm(conv, norm)
            self.features = _Weights(weight=weight.flatten(1), bias=bias)
            last = masker.linear
        elif isinstance(masker.conv, nn.Sequential):
            first, final = masker.conv[0], masker.conv[2]
            assert isinstance(first, nn.Linear) and isinstance(final, nn.Linear)
            hidden = {"hidden_weight": first.weight, "hidden_bias": first.bias}
            last = final
        else:
            last = masker.conv
        weight, bias = _keep_minus_skip(last.weight.detach(), last.bias.detach())
        self.decision = _Weights(**hidden, weight=weight, bias=bias)
        self.op_type = "ChannelMaskerHidden" if hidden else "ChannelMasker"

    def forward(self, x: Tensor) -> Tensor:
        if self.features is not None:
            x = F.relu(F.linear(x, *self.features.tensors()))
        mask: Tensor = operator(self.op_type).emit((x, *self.decision.tensors()), {})
        return mask


_OPERATOR_OF_MODE = {
    "spatial": "SpatialBottleneck",
    "layer": "LayerBottleneck",
    "channel": "ChannelBottleneck",
    "both": "SpatialChannelBottleneck",
}


def _folded_convolutions(block: LaudBottleneck) -> dict[str, Tensor]:
    w1, b1 = fold_batch_norm(block.conv1, block.bn1)
    w2, b2 = fold_batch_norm(block.conv2, block.bn2)
    w3, b3 = fold_batch_norm(block.conv3, block.bn3)
    tensors = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": w3, "b3": b3}
    if block.downsample is not None:
        conv, norm = block.downsample[0], block.downsample[1]
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        tensors["wd"], tensors["bd"] = fold_batch_norm(conv, norm)
    return tensors


class LoweredBottleneck(nn.Module):
    """A dynamic bottleneck as maskers and one fused operator, channels-last."""

    channels_last = True

    def __init__(self, block: LaudBottleneck, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.block_name = block.name
        self.mask_outputs: list[MaskOutput] = []
        self.masker_spatial: LoweredSpatialMasker | None = None
        self.masker_channel: LoweredChannelMasker | None = None
        if block.masker_spatial is not None:
            if block.masker_spatial.groups != 1:
                raise UsageError(
                    f"{block.name} has {block.masker_spatial.groups} spatial mask groups: the operators skip whole "
                    "pixels and need spatial_groups=1 (as all published LAUDNet models have)."
                )
            kind = block.spatial_kind
            self.masker_spatial = LoweredSpatialMasker(block.masker_spatial, block.mask_size(*input_size))
            self.mask_outputs.append(MaskOutput(mask_name(block.name, kind), block.name, kind))
        if block.masker_channel is not None:
            self.masker_channel = LoweredChannelMasker(block.masker_channel)
            self.mask_outputs.append(MaskOutput(mask_name(block.name, "channel"), block.name, "channel"))
        tensors = _folded_convolutions(block)
        for name in ("w1", "w3", "wd"):
            if name in tensors:
                tensors[name] = tensors[name].flatten(1)
        self.weights = _Weights(**tensors)
        self.op_type = _OPERATOR_OF_MODE[block.mode] + ("Projection" if "wd" in tensors else "")
        self.attributes = {
            "strides": [block.stride] * 2,
            "dilations": [block.dilation] * 2,
            "pads": [block.dilation] * 4,
            "group": block.groups,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        masks = [m(x) for m in (self.masker_spatial, self.masker_channel) if m is not None]
        return operator(self.op_type).emit((x, *masks, *self.weights.tensors()), self.attributes), masks


class StaticBottleneck(nn.Module):
    """A bottleneck without maskers as plain convolutions, NCHW."""

    channels_last = False

    def __init__(self, block: LaudBottleneck) -> None:
        super().__init__()
        self.block_name = block.name
        self.mask_outputs: list[MaskOutput] = []
        tensors = _folded_convolutions(block)
        self.conv1 = _convolution(tensors["w1"], tensors["b1"])
        self.conv2 = _convolution(tensors["w2"], tensors["b2"], block.stride, block.dilation, block.groups)
        self.conv3 = _convolution(tensors["w3"], tensors["b3"])
        self.downsample = _convolution(tensors["wd"], tensors["bd"], block.stride) if "wd" in tensors else None

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(y) + (x if self.downsample is None else self.downsample(x))), []


def _convolution(weight: Tensor, bias: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    kernel = weight.shape[-1]
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=groups,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(bias)
    return conv


class LoweredNetwork(nn.Module):
    """A network ready for capture: images (N, 3, H, W) -> (logits, masks in order of execution).

    Attributes:
        mask_outputs: What the masks are, in the order of the outputs.
    """

    def __init__(self, network: LaudResNet, input_size: tuple[int, int], *, static: bool) -> None:
        super().__init__()
        kernel = network.architecture.stem_kernel
        weight, bias = fold_batch_norm(network.conv1, network.bn1)
        self.stem = _convolution(weight, bias, network.architecture.stem_stride)
        assert self.stem.padding == (kernel // 2, kernel // 2)
        self.maxpool = network.maxpool
        size = _conv_size(input_size, network.architecture.stem_stride)
        if network.architecture.stem_pool:
            size = _conv_size(size, 2)
        blocks: list[nn.Module] = []
        for _, block in network.named_blocks():
            dynamic = block.mode != "static" and not static
            blocks.append(LoweredBottleneck(block, size) if dynamic else StaticBottleneck(block))
            size = block.output_size(*size)
        self._block_names = [name for name, _ in network.named_blocks()]
        for name, lowered in zip(self._block_names, blocks, strict=True):
            # Module names may hold no dots; the exporter turns them back into the network's names.
            self.add_module(name.replace(".", "_"), lowered)
        self.fc = nn.Linear(network.fc.in_features, network.fc.out_features, dtype=network.fc.weight.dtype)
        self.fc.load_state_dict(network.fc.state_dict())
        self.mask_outputs = [output for lowered in blocks for output in lowered.mask_outputs]  # type: ignore[union-attr]

    def scopes(self) -> dict[str, str]:
        """Dotted block name by module name."""
        return {name.replace(".", "_"): name for name in self._block_names}

    def _blocks(self) -> Iterator[LoweredBottleneck | StaticBottleneck]:
        for name in self._block_names:
            block = self.get_submodule(name.replace(".", "_"))
            assert isinstance(block, (LoweredBottleneck, StaticBottleneck))
            yield block

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.maxpool(F.relu(self.stem(x)))
        masks: list[Tensor] = []
        channels_last = False
        for block in self._blocks():
            if block.channels_last and not channels_last:
                x = x.permute(0, 2, 3, 1)
            elif channels_last and not block.channels_last:
                x = x.permute(0, 3, 1, 2)
            channels_last = block.channels_last
            x, block_masks = block(x)
            masks += block_masks
        features = _channels_last_mean(x) if channels_last else F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(features), *masks


def _channels_last_mean(x: Tensor) -> Tensor:
    """Mean of (N, H, W, C) over the pixels, (N, C).

    A product with a constant row: runtimes reduce leading axes of channels-last maps many times slower.
    """
    pixels = x.shape[1] * x.shape[2]
    return (x.new_full((1, pixels), 1 / pixels) @ x.flatten(1, 2)).flatten(1)


def _conv_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


_LOWERINGS: dict[type[nn.Module], Callable[..., LoweredNetwork]] = {LaudResNet: LoweredNetwork}


def require_exportable(network: object) -> None:
    """Raise ``UsageError`` unless there is a lowering rule for the network's family."""
    if not isinstance(network, tuple(_LOWERINGS)):
        known = ", ".join(kind.__name__ for kind in _LOWERINGS)
        raise UsageError(
            f"{type(network).__name__} cannot be exported: there are lowering rules for {known} only, and DynPerceiver "
            "needs none."
        )


def lower(network: nn.Module, input_size: tuple[int, int], *, static: bool = False) -> LoweredNetwork:
    """Lower a network of the zoo for a given input size.

    Args:
        network: A trained network; it is not changed.
        input_size: (H, W) in pixels; the maskers' mask sizes follow from it.
        static: Leave the maskers out and compute everything: the static twin.

    Raises:
        UsageError: The family cannot be exported, or an option has no operator.
    """
    require_exportable(network)
    build = next(build for kind, build in _LOWERINGS.items() if isinstance(network, kind))
    return build(network, input_size, static=static).eval()
