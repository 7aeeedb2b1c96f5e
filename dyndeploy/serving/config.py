"""``config.pbtxt``: what Triton is told about a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dyndeploy.bundle import Manifest
from dyndeploy.errors import UsageError
from dyndeploy.serving.policy import Policy
from dyndeploy.serving.text_format import Word

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
PYTHON, ONNXRUNTIME, TENSORRT = "python", "onnxruntime", "tensorrt"
BACKENDS = (PYTHON, ONNXRUNTIME, TENSORRT)
"""Triton's backends that a bundle can be served by."""

_TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}


def python_config(name: str, manifest: Manifest, policy: Policy, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Configuration of a bundle in the Python backend.

    Args:
        name: Of the model.
        manifest: Of the bundle.
        policy: How requests are batched, and how many wait.
        parameters: What ``triton_model.py`` reads.
    """
    return {
        "name": name,
        "backend": PYTHON,
        "max_batch_size": policy.max_batch,
        "input": [
            _tensor("IMAGE", "TYPE_UINT8", (-1, -1, 3), allow_ragged_batch=True, optional=True),
            _tensor("JPEG", "TYPE_STRING", (1,), allow_ragged_batch=True, optional=True),
        ],
        "output": _outputs(manifest),
        "dynamic_batching": policy.dynamic_batching(),
        "instance_group": [{"count": policy.instances, "kind": Word("KIND_CPU")}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }


def tensor_config(
    name: str, manifest: Manifest, backend: str, policy: Policy, libraries: Sequence[str] = ()
) -> dict[str, Any]:
    """Configuration of a bundle's graph in Triton's ONNX Runtime or TensorRT backend: prepared images, tensors back.

    Args:
        name: Of the model.
        manifest: Of the bundle.
        backend: :data:`ONNXRUNTIME` or :data:`TENSORRT`.
        policy: Only its number of instances matters: the graph's batch is fixed.
        libraries: Operator libraries, where the server finds them.

    Raises:
        UsageError: A tensor has a type that Triton lacks.
    """
    tensors = [*manifest.inputs, *manifest.outputs]
    unknown = sorted({info.dtype for info in tensors} - _TRITON_TYPES.keys())
    if unknown:
        raise UsageError(
            f"Triton's {backend} backend is not given {', '.join(unknown)}. Serve it with --backend python."
        )
    masks = [_tensor(mask.name, "TYPE_FP32", mask.shape) for mask in manifest.masks]
    outputs = [_tensor(info.name, _TRITON_TYPES[info.dtype], info.shape) for info in manifest.outputs]
    config: dict[str, Any] = {
        "name": name,
        # TensorRT's backend has another name than its platform.
        **({"backend": ONNXRUNTIME} if backend == ONNXRUNTIME else {"platform": "tensorrt_plan"}),
        "max_batch_size": 0,
        "input": [_tensor(info.name, _TRITON_TYPES[info.dtype], info.shape) for info in manifest.inputs],
        "output": outputs + masks,
        "instance_group": [
            {"count": policy.instances, "kind": Word("KIND_CPU" if backend == ONNXRUNTIME else "KIND_GPU")}
        ],
    }
    if backend == ONNXRUNTIME:
        config["parameters"] = [
            {"key": key, "value": {"string_value": str(policy.threads)}}
            for key in ("intra_op_thread_count", "inter_op_thread_count")
        ]
        if libraries:
            config["model_operations"] = {"op_library_filename": list(libraries)}
    return config


def class_names(manifest: Manifest) -> tuple[str, ...]:
    """Names of the classes in the order of their labels; empty where the bundle holds none."""
    return manifest.network.class_names if manifest.detection is None else manifest.detection.classes


def _tensor(name: str, kind: str, shape: Sequence[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": Word(kind), "dims": list(shape), **more}


def _outputs(manifest: Manifest) -> list[dict[str, Any]]:
    """Outputs of ``triton_model.py``, by row of a request."""
    names = bool(class_names(manifest))
    rates = [_tensor("rates", "TYPE_FP32", (len(manifest.masks),))] if manifest.masks else []
    last = [*rates, _tensor("ms", "TYPE_FP32", (1,))]
    if manifest.detection is not None:
        return [
            _tensor("count", "TYPE_INT32", (1,)),
            _tensor("boxes", "TYPE_FP32", (-1, 4)),
            _tensor("scores", "TYPE_FP32", (-1,)),
            _tensor("labels", "TYPE_INT64", (-1,)),
            _tensor("category_ids", "TYPE_INT64", (-1,)),
            *([_tensor("class_names", "TYPE_STRING", (-1,))] if names else []),
            *([_tensor("masks", "TYPE_STRING", (-1,))] if manifest.detection.masks else []),
            _tensor("image_size", "TYPE_INT32", (2,)),
            *last,
        ]
    classes = manifest.network.num_classes or 0
    return [
        _tensor("label", "TYPE_INT32", (1,)),
        _tensor("score", "TYPE_FP32", (1,)),
        *([_tensor("class_name", "TYPE_STRING", (1,))] if names else []),
        _tensor("logits", "TYPE_FP32", (classes,), **({"label_filename": LABELS} if names else {})),
        *([_tensor("exit", "TYPE_INT32", (1,))] if manifest.exits is not None else []),
        *last,
    ]
