"""What a bundle says about itself: ``bundle.json`` as typed data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dyndeploy.errors import BundleError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output: name, shape and NumPy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MaskInfo:
    """A mask tensor of the graph (also a graph output).

    Attributes:
        name: Tensor name, e.g. ``"mask/layer1.0/spatial"``.
        block: Dotted module name of the block, e.g. ``"layer1.0"``.
        kind: ``"spatial"``, ``"channel"`` or ``"layer"``.
        shape: (N, 1, mh, mw), or (N, G) for a channel mask.
    """

    name: str
    block: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OperatorInfo:
    """A dynamic operator node: its name in the graph, ``op_type``, version, and the block it belongs to."""

    node: str
    op_type: str
    version: int
    block: str


@dataclass(frozen=True)
class NetworkInfo:
    """The network that was exported: registered name and every option it was built with."""

    name: str
    mode: str
    granularity: tuple[int, ...]
    channel_granularity: tuple[int, ...]
    num_classes: int
    options: dict[str, Any]
    checkpoint: str | None
    checkpoint_sha256: str | None


@dataclass(frozen=True)
class PreprocessingInfo:
    """How an image becomes the input: resize the shorter side, centre crop, scale to [0, 1], normalise."""

    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclass(frozen=True)
class ReferenceInfo:
    """What ``reference.npz`` holds: where the images come from and the rates that they cause.

    Attributes:
        source: Human-readable origin of the images.
        rates: Mean activation rate of every mask over the reference images, by mask name.
        flops_ratio: MACs needed over MACs of the static twin, averaged over the reference images.
    """

    source: str
    images: int
    rates: dict[str, float]
    flops_ratio: float


@dataclass(frozen=True)
class Manifest:
    """Content of ``bundle.json``.

    Attributes:
        network: What was exported.
        target: Name of the target.
        opset: ONNX opset of ``model.onnx``.
        ir_version: ONNX IR version.
        batch: Static batch size N.
        input_size: (H, W) in pixels.
        precision: ``"fp32"``.
        inputs: Graph inputs.
        outputs: Graph outputs without the masks.
        masks: Mask tensors in order of execution.
        operators: Dynamic operator nodes in order of execution.
        preprocessing: For images.
        reference: About the reference tensors.
        static_macs: MACs of convolutions and linear layers of the static twin per image.
        network_spec: The network as the predictor sees it (JSON of ``NetworkSpec``).
        files: SHA-256 of every other file of the bundle by relative path.
        tools: Versions of the tools that wrote the bundle.
        notes: What export had to change or leave out, in words; empty when nothing.
    """

    network: NetworkInfo
    target: str
    opset: int
    ir_version: int
    batch: int
    input_size: tuple[int, int]
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    masks: tuple[MaskInfo, ...]
    operators: tuple[OperatorInfo, ...]
    preprocessing: PreprocessingInfo
    reference: ReferenceInfo
    static_macs: int
    network_spec: dict[str, Any]
    files: dict[str, str]
    tools: dict[str, str]
    notes: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Parse ``bundle.json``.

        Raises:
            BundleError: Another schema version, or a field is missing or malformed.
        """
        version = value.get("schema_version") if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"The bundle has schema version {version!r}; this release reads version {SCHEMA_VERSION}. "
                "Export it again with this release."
            )
        try:
            return cls(
                network=NetworkInfo(
                    **{
                        **value["network"],
                        "granularity": tuple(value["network"]["granularity"]),
                        "channel_granularity": tuple(value["network"]["channel_granularity"]),
                    }
                ),
                target=value["target"],
                opset=value["opset"],
                ir_version=value["ir_version"],
                batch=value["batch"],
                input_size=_pair(value["input_size"]),
                precision=value["precision"],
                inputs=tuple(TensorInfo(**_shaped(item)) for item in value["inputs"]),
                outputs=tuple(TensorInfo(**_shaped(item)) for item in value["outputs"]),
                masks=tuple(MaskInfo(**_shaped(item)) for item in value["masks"]),
                operators=tuple(OperatorInfo(**item) for item in value["operators"]),
                preprocessing=PreprocessingInfo(
                    **{
                        **value["preprocessing"],
                        "mean": tuple(value["preprocessing"]["mean"]),
                        "std": tuple(value["preprocessing"]["std"]),
                    }
                ),
                reference=ReferenceInfo(**value["reference"]),
                static_macs=value["static_macs"],
                network_spec=value["network_spec"],
                files=dict(value["files"]),
                tools=dict(value["tools"]),
                notes=tuple(value["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"bundle.json is malformed ({type(error).__name__}: {error}).") from error


def _shaped(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "shape": tuple(item["shape"])}


def _pair(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)
