"""The CUDA kernels as a library: its C interface called with tensors of PyTorch, on a GPU or on the host."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyndeploy.errors import UsageError
from dyndeploy.ops import OperatorSpec, Role
from dyndeploy.ops.gates import CHANNEL

TENSORS = ("w1", "w2", "w3", "wd", "b1", "b2", "b3", "bd", "border_bias", "skipped_output")
EXCITATION = ("ws", "we", "bs", "be")
"""Order of the constants in the C interface (tests/plugins/kernels_cuda_c.cpp)."""
KINDS = {torch.float32: 0, torch.float16: 1}


class Kernels:
    """One build of the kernels.

    Args:
        path: ``libdyndeploy_cuda_*.so``, for a GPU or for the host.

    Raises:
        UsageError: It cannot be loaded.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UsageError(f"{path} cannot be loaded: {error}.") from error
        self._library.dyn_check_bottleneck.restype = ctypes.c_char_p
        self._library.dyn_bottleneck_workspace.restype = ctypes.c_size_t
        self._library.dyn_channel_masker_workspace.restype = ctypes.c_size_t

    def play(self, *, capability: int = 0, processors: int = 0, tiles: int = 0) -> None:
        """Take the tiles of another device, or of one size (1 small, 2 medium, 3 large); 0 leaves what is there."""
        self._library.dyn_play_device(capability, processors, tiles)

    def run(self, spec: OperatorSpec, inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
        """Launch one operator on the current stream; nothing waits for it.

        Args:
            spec: The operator.
            inputs: As its kernels take them (``native_inputs``), contiguous; the first is (N, H, W, C).
            attributes: Of the node.

        Returns:
            The output, channels last, or the mask.

        Raises:
            UsageError: The kernels refuse the shapes.
            RuntimeError: CUDA reports an error.
        """
        ports = spec.native_inputs("cuda")
        named = {port.name: value for port, value in zip(ports, inputs, strict=False)}
        for name, value in named.items():
            if not value.is_contiguous():
                raise UsageError(f"{spec.name}: the input {name} is not contiguous.")
        x = inputs[0]
        if spec.decides:
            return self._masker(spec, x, named, attributes)
        masks = {spec.gates[port.name]: named[port.name] for port in ports if port.role is Role.MASK}
        channel = masks.pop(CHANNEL, None)
        spatial = next(iter(masks.values()), None)
        batch, height, width, channels = x.shape
        stride, dilation = int(attributes["strides"][0]), int(attributes["dilations"][0])
        middle, outputs = named["w1"].shape[1], named["w3"].shape[1]
        sizes = _integers(
            [batch, height, width, channels, middle, outputs, int(attributes["group"]), stride, dilation]
            + [int("wd" in named)]
            + ([0, 0] if spatial is None else list(spatial.shape[2:]))
            + [0 if channel is None else channel.shape[1]]
            + [named["ws"].shape[1] if "ws" in named else 0, int(attributes.get("pool_active", 0))]
            + [int(named["w2"].shape[1] > 9 * middle)]
        )
        kind = KINDS[x.dtype]
        self._library.dyn_plan_batch(batch)  # as an engine of this batch
        message = self._library.dyn_check_bottleneck(sizes, kind)
        if message is not None:
            raise UsageError(f"{spec.name}: {message.decode()}.")
        y = x.new_empty(batch, (height - 1) // stride + 1, (width - 1) // stride + 1, outputs)
        workspace = _bytes(x, self._library.dyn_bottleneck_workspace(sizes, kind))
        given = [x, spatial, channel, *(named.get(name) for name in TENSORS), y]
        given += [named.get(name) for name in EXCITATION]
        pointers = (ctypes.c_void_p * len(given))(*(None if v is None else v.data_ptr() for v in given))
        _raise(spec, self._library.dyn_bottleneck(sizes, kind, pointers, _pointer(workspace), _stream(x)))
        return y

    def _masker(
        self, spec: OperatorSpec, x: Tensor, named: Mapping[str, Tensor], attributes: Mapping[str, Any]
    ) -> Tensor:
        batch, kind = x.shape[0], KINDS[x.dtype]
        groups = named["bias"].shape[0]
        weight, bias = _pointer(named["weight"]), _pointer(named["bias"])
        if "mask_height" in attributes:
            size = int(attributes["mask_height"]), int(attributes["mask_width"])
            mask = x.new_empty(batch, groups, *size, dtype=torch.float32)
            sizes = _integers([*x.shape, groups, *size])
            error = self._library.dyn_spatial_masker(sizes, kind, _pointer(x), weight, bias, _pointer(mask), _stream(x))
        else:
            hidden = named.get("hidden_weight")
            sizes = _integers([*x.shape, 0 if hidden is None else hidden.shape[0], groups])
            mask = x.new_empty(batch, groups, dtype=torch.float32)
            workspace = _bytes(x, self._library.dyn_channel_masker_workspace(sizes))
            first = _pointer(hidden), _pointer(named.get("hidden_bias"))
            error = self._library.dyn_channel_masker(
                sizes, kind, _pointer(x), *first, weight, bias, _pointer(mask), _pointer(workspace), _stream(x)
            )
        _raise(spec, error)
        return mask


def _integers(values: Sequence[int]) -> Any:
    return (ctypes.c_int * len(values))(*values)


def _bytes(like: Tensor, count: int) -> Tensor:
    return torch.empty(max(1, count), dtype=torch.uint8, device=like.device)


def _pointer(value: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def _stream(like: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else None)


def _raise(spec: OperatorSpec, error: int) -> None:
    if error:
        raise RuntimeError(f"{spec.name}: CUDA error {error}")
