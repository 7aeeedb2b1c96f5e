"""The bundle: a folder that carries all that a device needs, and says what it is."""

from dyndeploy.bundle.folder import MANIFEST, MODEL, REFERENCE, STATIC, Bundle, write_manifest
from dyndeploy.bundle.manifest import (
    SCHEMA_VERSION,
    Manifest,
    MaskInfo,
    NetworkInfo,
    OperatorInfo,
    PreprocessingInfo,
    ReferenceInfo,
    TensorInfo,
    sealed,
)

__all__ = [
    "MANIFEST",
    "MODEL",
    "REFERENCE",
    "SCHEMA_VERSION",
    "STATIC",
    "Bundle",
    "Manifest",
    "MaskInfo",
    "NetworkInfo",
    "OperatorInfo",
    "PreprocessingInfo",
    "ReferenceInfo",
    "TensorInfo",
    "sealed",
    "write_manifest",
]
