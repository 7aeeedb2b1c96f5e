"""What a bundle carries for a device that builds its engines without Python: TensorRT copies, and how to build them.

The C++ runtime (``plugins/runtime``) cannot make a copy or a plan; it finds both here, fills in what only the device
knows (its TensorRT, its plugin library), and keys engines as :mod:`dyndeploy.runtimes.tensorrt_engine` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyndeploy import files
from dyndeploy.bundle.device_files import DEVICE_FOLDER
from dyndeploy.runtimes.tensorrt_engine import ENGINE_SCHEMA, graph_inputs
from dyndeploy.runtimes.tensorrt_plan import plan_build
from dyndeploy.runtimes.tensorrt_rtx import AHEAD_SCHEMA
from dyndeploy.targets import Target, load_device

if TYPE_CHECKING:
    import onnx

ENGINE_PLANS = f"{DEVICE_FOLDER}/engines.json"
"""The file, below the bundle's folder."""

ENGINE_COPIES = f"{DEVICE_FOLDER}/engines"
"""Folder of the TensorRT copies, below the bundle's folder."""

_SCHEMA = 1


def write_engine_plans(
    bundle: Path,
    graphs: Mapping[str, onnx.ModelProto],
    target: Target,
    precision: str,
    rates: Mapping[str, float] | None = None,
) -> None:
    """Write the TensorRT copy of every graph, and ``device/engines.json``.

    Args:
        bundle: Folder of a bundle that is being written.
        graphs: What the device runs, by file name in the bundle.
        target: A target of TensorRT.
        precision: ``"fp32"`` or ``"fp16"``.
        rates: Activation rates of the reference images by mask, at which TensorRT times the plugins.

    Raises:
        UsageError: There is no plan for the precision on the target's TensorRT.
    """
    described: dict[str, Any] = {}
    for name, model in graphs.items():
        plan, copy = plan_build(model, precision, str(target.runtime_version), rates=rates)
        path = f"{ENGINE_COPIES}/{Path(name).stem}.onnx"
        (bundle / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle / path).write_bytes(copy.SerializeToString(deterministic=True))
        described[name] = {
            "copy": path,
            "graph": model.graph.name,
            "inputs": graph_inputs(copy),
            "described": plan.precision_plan.description,
            "plan": plan.to_json(),
        }
    capability = load_device(target.name).hardware.compute_capability if target.ahead_of_time else None
    files.write_json(
        bundle / ENGINE_PLANS,
        {
            "schema_version": _SCHEMA,
            "engine_schema": ENGINE_SCHEMA,
            "ahead_schema": AHEAD_SCHEMA,
            "capability": None if capability is None else str(capability),
            "graphs": described,
        },
    )
