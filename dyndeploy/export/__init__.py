"""From any trained network to a bundle: swap, capture, passes, reference tensors."""

from dyndeploy.export.exporter import ExportSettings, export_model
from dyndeploy.export.graph import build_graph
from dyndeploy.export.sources import Source, find_source, require_told, weight_notes
from dyndeploy.export.subject import ExampleInputs

__all__ = [
    "ExampleInputs",
    "ExportSettings",
    "Source",
    "build_graph",
    "export_model",
    "find_source",
    "require_told",
    "weight_notes",
]
