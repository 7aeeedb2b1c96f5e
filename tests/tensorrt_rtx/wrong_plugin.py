"""A worker whose stand-ins are wrong in one way: ``python wrong_plugin.py WAY FOLDER``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dyndeploy.runtimes import tensorrt_stand_ins, tensorrt_worker


def _float_output(plugin: Any) -> None:
    """Half plugins that give float."""
    import tensorrt_rtx_bindings as trt

    right = plugin.get_output_data_types
    plugin.get_output_data_types = lambda self, types: [trt.float32] * len(right(self, types))


def _three_outputs(plugin: Any) -> None:
    types, shapes, made = plugin.get_output_data_types, plugin.get_output_shapes, plugin.__init__

    def init(self: Any, spec: Any, attributes: Any) -> None:
        made(self, spec, attributes)
        self.num_outputs = 3

    plugin.__init__ = init
    plugin.get_output_data_types = lambda self, given: types(self, given) * 3
    plugin.get_output_shapes = lambda self, *given: shapes(self, *given) * 3


def _one_input_less(plugin: Any) -> None:
    made = plugin.__init__

    def init(self: Any, spec: Any, attributes: Any) -> None:
        kernel = spec.kernels["tensorrt"]
        shorter = replace(kernel, constants=kernel.constants[:-1])
        made(self, replace(spec, kernels={"tensorrt": shorter}) if kernel.constants else spec, attributes)

    plugin.__init__ = init


def _half_the_height(plugin: Any) -> None:
    import tensorrt_rtx_bindings as trt

    right = plugin.get_output_shapes

    def shapes(self: Any, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
        (result,) = right(self, inputs, shape_inputs, builder)
        if len(result) == 4 and self.spec.name.endswith("Projection"):
            result[1] = builder.operation(trt.DimensionOperation.CEIL_DIV, result[1], builder.constant(2))
        return [result]

    plugin.get_output_shapes = shapes


def _abort(plugin: Any) -> None:
    plugin.get_output_data_types = lambda self, types: os.abort()


WAYS: dict[str, Callable[[Any], None]] = {
    "float output": _float_output,
    "three outputs": _three_outputs,
    "one input less": _one_input_less,
    "half the height": _half_the_height,
    "abort": _abort,
}


def main(way: str, folder: Path) -> None:
    """See the module."""
    right = tensorrt_stand_ins.plugin_class

    def wrong(trt: Any, problems: list[str]) -> Any:
        plugin = right(trt, problems)
        WAYS[way](plugin)
        return plugin

    tensorrt_stand_ins.plugin_class = wrong
    tensorrt_worker.main(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
