"""The bundle: a folder that carries all that a device needs, and says what it is."""

from dyndeploy.bundle.folder import BRANCHED, MANIFEST, MODEL, REFERENCE, STATIC, Bundle, write_manifest
from dyndeploy.bundle.manifest import (
    CONFIDENCE,
    LOGITS,
    SCHEMA_VERSION,
    ExitsInfo,
    Manifest,
    MaskInfo,
    NetworkInfo,
    OperatorInfo,
    PreprocessingInfo,
    ReferenceInfo,
    StageInfo,
    TensorInfo,
    ThresholdInfo,
    sealed,
)

__all__ = [
    "BRANCHED",
    "CONFIDENCE",
    "LOGITS",
    "MANIFEST",
    "MODEL",
    "REFERENCE",
    "SCHEMA_VERSION",
    "STATIC",
    "Bundle",
    "ExitsInfo",
    "Manifest",
    "MaskInfo",
    "NetworkInfo",
    "OperatorInfo",
    "PreprocessingInfo",
    "ReferenceInfo",
    "StageInfo",
    "TensorInfo",
    "ThresholdInfo",
    "sealed",
    "write_manifest",
]
