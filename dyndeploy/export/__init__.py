"""From any trained network to a bundle: swap, capture, passes, reference tensors."""

from dyndeploy.export.exporter import ExportSettings, export_model
from dyndeploy.export.graph import build_graph
from dyndeploy.export.subject import ExampleInputs

__all__ = ["ExampleInputs", "ExportSettings", "build_graph", "export_model"]
