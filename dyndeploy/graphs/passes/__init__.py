"""Graph passes between capture and bundle: one file per pass, applied in order by the pipeline."""

from __future__ import annotations

from dyndeploy.graphs.passes.batch_norm import fold_batch_norm
from dyndeploy.graphs.passes.boxes import write_boxes
from dyndeploy.graphs.passes.confidence import add_confidence
from dyndeploy.graphs.passes.constants import fold_constants
from dyndeploy.graphs.passes.finish import attach_functions, check, strip_metadata
from dyndeploy.graphs.passes.gelu import order_gelu
from dyndeploy.graphs.passes.legalise import legalise_opset, with_all_bodies
from dyndeploy.graphs.passes.mean import channels_last_means
from dyndeploy.graphs.passes.names import name_nodes, name_tensors
from dyndeploy.graphs.passes.pipeline import COMMON, OF_TARGET, PIPELINE, Context, Pass, run_pipeline
from dyndeploy.graphs.passes.pooled_depthwise import fold_pooled_depthwise
from dyndeploy.graphs.passes.strides import reshape_strides
from dyndeploy.graphs.passes.transposes import cancel_transposes

__all__ = [
    "COMMON",
    "OF_TARGET",
    "PIPELINE",
    "Context",
    "Pass",
    "add_confidence",
    "attach_functions",
    "cancel_transposes",
    "channels_last_means",
    "check",
    "fold_batch_norm",
    "fold_constants",
    "fold_pooled_depthwise",
    "legalise_opset",
    "name_nodes",
    "name_tensors",
    "order_gelu",
    "reshape_strides",
    "run_pipeline",
    "strip_metadata",
    "with_all_bodies",
    "write_boxes",
]
