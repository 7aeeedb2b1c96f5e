"""From a trained network to a bundle: lowering, capture, passes, reference tensors."""

from dyndeploy.export.exporter import ExportSettings, build_graph, export_model
from dyndeploy.export.lowering import lower

__all__ = ["ExportSettings", "build_graph", "export_model", "lower"]
