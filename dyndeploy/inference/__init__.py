"""Inputs in, outputs out: what ``dyndeploy run`` does."""

from dyndeploy.inference.running import (
    Classification,
    Failure,
    Item,
    OpenBundle,
    Result,
    classified,
    classify,
    classify_images,
    opened_bundle,
    read_array,
    read_arrays,
    run_images,
    run_inputs,
)

__all__ = [
    "Classification",
    "Failure",
    "Item",
    "OpenBundle",
    "Result",
    "classified",
    "classify",
    "classify_images",
    "opened_bundle",
    "read_array",
    "read_arrays",
    "run_images",
    "run_inputs",
]
