"""Runs in the Python 3.9 of TensorRT 8.5.3.1: ``python3.9 python_contract.py libdyndeploy_tensorrt.so CASES.json``.

CASES.json maps operators to ``{"attributes": {name: [integers]}, "wrong": {what: {name: [integers]}}}``. Prints what
the registry says as JSON; stops with an AssertionError where the contract is broken.
"""

from __future__ import annotations

import array
import ctypes
import json
import sys
from typing import Any

import tensorrt as trt  # type: ignore[import-not-found, unused-ignore]

DYNAMIC_EXT = 3
"""What IPluginV2DynamicExt puts above TensorRT's version, so that the library sees which interface a plugin has."""


def create(creator: Any, attributes: dict[str, list[float]]) -> Any:
    """A plugin from attributes as TensorRT's parser hands them over, None when they are refused."""
    # A field only points at its data.
    kinds = {"i": trt.PluginFieldType.INT32, "f": trt.PluginFieldType.FLOAT32}
    data = {n: array.array("f" if isinstance(v[0], float) else "i", v) for n, v in attributes.items()}
    fields = [trt.PluginField(name, values, kinds[values.typecode]) for name, values in data.items()]
    return creator.create_plugin("node", trt.PluginFieldCollection(fields))


def check(creator: Any, case: dict[str, Any], others: list[Any]) -> dict[str, int]:
    """Create, serialise, deserialise, clone and refuse; return the fields that the creator declares."""
    plugin = create(creator, case["attributes"])
    assert plugin is not None, creator.name
    assert (plugin.plugin_type, plugin.plugin_version, plugin.plugin_namespace) == (creator.name, "1", "")
    assert plugin.num_outputs == 1
    assert plugin.tensorrt_version >> 24 == DYNAMIC_EXT, plugin.tensorrt_version

    state = bytes(plugin.serialize())
    assert len(state) == plugin.serialization_size
    again = creator.deserialize_plugin("node", state)
    assert again is not None and bytes(again.serialize()) == state
    clone = again.clone()
    del again
    assert bytes(clone.serialize()) == state
    clone.plugin_namespace = "elsewhere"
    assert clone.plugin_namespace == "elsewhere" and plugin.plugin_namespace == ""

    for damaged in (b"", state[:-1], state + b"\0", b"DYLE" + state[4:], state[:4] + b"\3" + state[5:]):
        assert creator.deserialize_plugin("node", damaged) is None, damaged
    for other in others:
        assert other is creator or other.deserialize_plugin("node", state) is None, other.name
    for what, attributes in case["wrong"].items():
        assert create(creator, attributes) is None, f"{creator.name}: {what}"
    return {field.name: field.size for field in creator.field_names}


def main(library: str, cases: dict[str, Any]) -> None:
    """See the module."""
    before = {creator.name for creator in trt.get_plugin_registry().plugin_creator_list}
    ctypes.CDLL(library)
    ctypes.CDLL(library)
    registry = trt.get_plugin_registry()
    added = [creator for creator in registry.plugin_creator_list if creator.name not in before]
    assert len({creator.name for creator in added}) == len(added), "registered twice"
    creators = {name: registry.get_plugin_creator(name, "1", "") for name in cases}
    declared = {name: check(creator, cases[name], list(creators.values())) for name, creator in creators.items()}
    print(json.dumps({"added": [creator.name for creator in added], "fields": declared}))


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        main(sys.argv[1], json.load(file))
