"""The registry of dynamic operators: ours, those of installed packages, and those that a program registers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping

from dyndeploy.errors import UsageError
from dyndeploy.ops import (
    byte_conversions,
    channel_bottleneck,
    channel_masker,
    channel_se_bottleneck,
    class_token_masker,
    layer_bottleneck,
    layer_se_bottleneck,
    multiscale_deformable_attention,
    pyramid_roi_align,
    quantized_channel_bottleneck,
    quantized_channel_masker,
    quantized_channel_se_bottleneck,
    quantized_image_convolution,
    quantized_layer_bottleneck,
    quantized_layer_se_bottleneck,
    quantized_spatial_bottleneck,
    quantized_spatial_channel_bottleneck,
    quantized_spatial_channel_se_bottleneck,
    quantized_spatial_masker,
    quantized_spatial_se_bottleneck,
    spatial_bottleneck,
    spatial_channel_bottleneck,
    spatial_channel_se_bottleneck,
    spatial_masker,
    spatial_se_bottleneck,
    token_masker,
    transformer_block,
)
from dyndeploy.ops.base import OperatorSpec
from dyndeploy.ops.gates import register_gate_kind

ENTRY_POINTS = "dyndeploy.operators"
"""Entry-point group of installed packages; each entry is an :class:`OperatorSpec`, or several in a list or tuple."""

_MODULES = (
    spatial_masker,
    channel_masker,
    spatial_bottleneck,
    layer_bottleneck,
    channel_bottleneck,
    spatial_channel_bottleneck,
    spatial_se_bottleneck,
    layer_se_bottleneck,
    channel_se_bottleneck,
    spatial_channel_se_bottleneck,
    token_masker,
    class_token_masker,
    transformer_block,
    quantized_spatial_masker,
    quantized_channel_masker,
    quantized_spatial_bottleneck,
    quantized_layer_bottleneck,
    quantized_channel_bottleneck,
    quantized_spatial_channel_bottleneck,
    quantized_spatial_se_bottleneck,
    quantized_layer_se_bottleneck,
    quantized_channel_se_bottleneck,
    quantized_spatial_channel_se_bottleneck,
    quantized_image_convolution,
    byte_conversions,
    pyramid_roi_align,
    multiscale_deformable_attention,
)


class Operators(Mapping[str, OperatorSpec]):
    """Operators by ONNX ``op_type``. Those of installed packages are loaded when one is first asked for."""

    def __init__(self, specs: Iterable[OperatorSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._loaded = False

    def __getitem__(self, name: str) -> OperatorSpec:
        if name not in self._specs:
            self._load()
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._specs)

    def __len__(self) -> int:
        self._load()
        return len(self._specs)

    def add(self, spec: OperatorSpec) -> None:
        """See :func:`register_operator`."""
        if not isinstance(spec, OperatorSpec):
            raise UsageError(f"Only an OperatorSpec can be registered, not {type(spec).__name__}.")
        spec.check()
        if spec.name in self._specs:
            raise UsageError(
                f"An operator named {spec.name} is already registered. Give yours another name: graphs know operators "
                "by their names alone."
            )
        for kind in spec.gates.values():
            register_gate_kind(kind)
        self._specs[spec.name] = spec

    def remove(self, name: str) -> None:
        """Forget a registered operator; nothing happens where there is none."""
        self._specs.pop(name, None)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            package = "an installed package" if entry.dist is None else f"the package {entry.dist.name}"
            try:
                found = entry.load()
                for spec in found if isinstance(found, (list, tuple)) else (found,):
                    self.add(spec)
            except Exception as error:
                raise UsageError(
                    f"The operator '{entry.name}' of {package} cannot be loaded ({entry.value}: {error}). Update or "
                    "remove that package."
                ) from error


SPECS = tuple(spec for module in _MODULES for spec in module.SPECS)
"""The operators of this package, those with native kernels among them."""

OPERATORS = Operators(SPECS)
"""Every operator of domain ``dyndeploy`` by ONNX ``op_type``."""


def register_operator(spec: OperatorSpec) -> None:
    """Make an operator known: export, verification, profiles, predictions and the TensorRT copy take it from then on.

    Args:
        spec: The operator; kinds of gates that its masks are of are registered with it.

    Raises:
        UsageError: An operator of that name exists, or the parts of the specification contradict each other.
    """
    OPERATORS.add(spec)
