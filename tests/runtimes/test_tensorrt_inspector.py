"""The engine inspector's answers in the forms that they have had, and what is made of them."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dyndeploy.runtimes.tensorrt_inspector import (
    ANY,
    UnreadableError,
    check_types,
    inspected,
    is_packed,
    kernels,
    plugin_facts,
    read_back,
    read_inspection,
    tensor_type,
)

TYPES = {
    "LayerBottleneck": {"reads": ["float16", "float32", "float16"], "writes": ["float16"]},
    "SpatialMasker": {"reads": [ANY, "float32"], "writes": ["float32"]},
}
NODES = {"b/LayerBottleneck": "LayerBottleneck", "b/SpatialMasker": "SpatialMasker"}


def tensor(name: str, description: str, **further: Any) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 8, 8, 16], "Format/Datatype": description, **further}


def listed(half: str, full: str, **further: Any) -> list[dict[str, Any]]:
    """A masker and a bottleneck, types as a version writes them."""
    return [
        {
            "Name": "b/SpatialMasker",
            "LayerType": "PluginV2",
            "Inputs": [tensor("x", half), tensor("w", full)],
            "Outputs": [tensor("mask", full)],
            "TacticValue": "0x0000000000000000",
            **further,
        },
        {
            "Name": "b/LayerBottleneck",
            "LayerType": "PluginV2",
            "Inputs": [tensor("x", half), tensor("mask", full), tensor("w1", half)],
            "Outputs": [tensor("y", half)],
            "TacticValue": "0x0000000000000000",
        },
    ]


def text(layers: list[Any]) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["x"]})


# 8.4 to 9 as recorded by TensorRT's engine explorer, 10 as its reader and the documents of samples have it.
FORMS = {
    "8": listed("Row major linear FP16 format", "Row major linear FP32"),
    "10": listed("Half", "Float"),
    "11": listed("Row major linear FP16 format (kLINEAR)", "Row major linear FP32 format (kLINEAR)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    layers = read_inspection(text(FORMS[form]))
    assert check_types(layers, NODES, TYPES) == ([], [])
    assert layers[1]["plugin"] and layers[1]["nodes"] == ["b/LayerBottleneck"]
    assert [item["type"] for item in layers[1]["inputs"]] == ["float16", "float32", "float16"]
    plan = {"plugin_nodes": {name: {"operator": operator} for name, operator in NODES.items()}}
    assert plugin_facts(layers, plan)["b/SpatialMasker"] == {
        "operator": "SpatialMasker",
        "type": "float16",
        "tactic": "0x0000000000000000",
        "kernels": "",
    }


def test_separate_entries_and_nodes_in_the_metadata() -> None:
    """The form of TensorRT-RTX: strides tell the layout, the layer has a name of its own."""
    layout = {"Datatype": "Half", "Format": "(Linear) Row major linear format", "Strides": [1024, 128, 16, 1]}
    entry = {
        "Name": "b/LayerBottleneck_myl0_3",
        "LayerType": "custom_layer",
        "Inputs": [{"Name": "x", "Dimensions": [1, 8, 8, 16], **layout}],
        "Constants": [{"Name": "w", "Dimensions": [4], "Strides": [1], "Datatype": kind} for kind in ("Float", "Half")],
        "Outputs": [
            {"Name": "y", "Dimensions": [1, 8, 8, 16], **layout},
            {"Name": "b_wksp.1", "Dimensions": [512], "Strides": [1], "Datatype": "UInt8", "Format": "Row major"},
        ],
        "Metadata": "[ONNX Layer: b/LayerBottleneck]",
    }
    nodes = {"b/LayerBottleneck": "LayerBottleneck"}
    assert check_types(read_inspection(text([entry])), nodes, TYPES) == ([], [])
    entry["Inputs"][0]["Strides"] = [1024, 1, 128, 8]  # type: ignore[index]
    wrong, unread = check_types(read_inspection(text([entry])), nodes, TYPES)
    assert wrong == ["b/LayerBottleneck is given x in a layout that plugins cannot read"] and not unread


def test_plugins_in_float_are_wrong() -> None:
    wrong, unread = check_types(read_inspection(text(listed("Row major linear FP32", "Float"))), NODES, TYPES)
    assert wrong == [
        "b/LayerBottleneck reads 3 x float32, and the plan gives it 2 x float16, 1 x float32",
        "b/LayerBottleneck writes float32, and the plan says float16",
    ]
    assert not unread, "a masker takes x as it comes"


@pytest.mark.parametrize(
    ("description", "packed"),
    [
        ("Row major linear FP16 format", True),
        ("Channel major FP16 format where channel % 8 == 0", False),
        ("Two wide channel vectorized row major FP16 format", False),
        ("Half", True),
    ],
)
def test_layouts_in_words(description: str, packed: bool) -> None:
    entry = listed("Half", "Float")[1]
    entry["Inputs"][0]["Format/Datatype"] = description
    layers = read_inspection(text([entry]))
    assert layers[0]["inputs"][0]["packed"] is packed
    wrong, _ = check_types(layers, {"b/LayerBottleneck": "LayerBottleneck"}, TYPES)
    assert bool(wrong) is not packed


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear BOOL", "bool"),
        ("BFloat16", "bfloat16"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("N/A due to dynamic shapes", "N/A due to dynamic shapes"),
    ],
)
def test_types_in_words(description: str, expected: str) -> None:
    assert tensor_type(description) == expected


def test_packed() -> None:
    assert is_packed([2, 3, 4], [12, 4, 1]) and is_packed([1, 3, 4], [99, 4, 1]) and is_packed([], [])
    assert not is_packed([2, 3, 4], [12, 1, 3]) and not is_packed([2, 3], [1])


def test_what_cannot_be_read_is_no_fault() -> None:
    layers = read_inspection(text(listed("Half", "Float")[:1]))
    assert check_types(layers, NODES, TYPES) == ([], ["b/LayerBottleneck is not listed as a plugin"])
    unknown = read_inspection(text(listed("N/A", "Float")))
    wrong, unread = check_types(unknown, NODES, TYPES)
    assert not wrong and unread == ["b/LayerBottleneck reads N/A", "b/SpatialMasker reads N/A"]


@pytest.mark.parametrize(
    "answer", ["", "[]", "{}", '{"Layers": ["b/LayerBottleneck"]}', '{"Layers": [{"Name": "b"}]}', '{"Layers": 3}']
)
def test_another_answer_is_told(answer: str) -> None:
    with pytest.raises(UnreadableError, match=r"unknown form|no details"):
        read_inspection(answer)


SAYS = """
#include <stdint.h>
#include <stdio.h>
int32_t DyndeployKernels(const char* name, const int32_t* attributes, int32_t attribute_count, const int64_t* shapes,
                         int32_t shape_count, int32_t half, int32_t capability, int32_t processors, char* text,
                         int32_t size, int32_t tactic) {
  if (capability < 0) return -1;
  return snprintf(text, size, "%s %d/%d %d/%d %d %d.%d, %d", name, (int)attributes[1], attribute_count,
                  (int)shapes[shape_count - 1], shape_count, half, capability, processors, tactic);
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_is_asked_what_its_kernels_do(tmp_path: Path) -> None:
    (tmp_path / "says.c").write_text(SAYS)
    library, other = str(tmp_path / "says.so"), str(tmp_path / "other.so")
    for source, made in (("says.c", library), ("none.c", other)):
        (tmp_path / "none.c").write_text("int nothing;")
        subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / source), "-o", made], check=True)
    loaded = [ctypes.CDLL(made) for made in (library, other)]
    node = {"operator": "Operator", "attributes": [4, 5], "shapes": [[2, 3], [7]]}
    assert kernels(library, node, True, 87, 16) == "Operator 5/2 7/5 1 87.16, 0"
    assert kernels(library, node, True, 87, 16, 7) == "Operator 5/2 7/5 1 87.16, 7"
    assert kernels(library, node, False) == "Operator 5/2 7/5 0 0.0, 0"
    assert kernels(library, node, True, -1) == "", "it does not know"
    assert kernels(other, node, True) == kernels(str(tmp_path / "missing.so"), node, True) == ""
    for unknown in ([[-1, 3], [7]], []):
        assert kernels(library, {**node, "shapes": unknown}, True) == ""
    # The builder's tactic goes with it, or that there is one which it does not tell.
    tensor = {"name": "x", "type": "float16", "shape": [2, 3]}
    layer = {"plugin": True, "nodes": ["b"], "inputs": [tensor], "constants": [], "outputs": [tensor]}
    for plan, tactic, told in (
        ({"tuning": True}, "0x0000000000000007", 7),
        ({"tuning": True}, "0x0000000000000000", -1),
        ({"tuning": True}, "a name", -1),
        ({"tuning": True}, "0xffffffffffffffff", -1),
        ({"tuning": False}, "", 0),
        ({}, "", 0),
    ):
        facts = plugin_facts([{**layer, "tactic": tactic}], {**plan, "plugin_nodes": {"b": node}}, library)
        assert facts["b"]["kernels"] == f"Operator 5/2 7/5 1 0.0, {told}"
    assert len(loaded) == 2


class Package:
    """A package whose runtime gives an engine with an answer, or none."""

    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, answer: str | None) -> None:
        inspector = SimpleNamespace(get_engine_information=lambda form: answer if form == "json" else "")
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        self.Runtime = lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda data: engine if answer is not None else None
        )


def test_an_engine_that_cannot_be_loaded_is_told() -> None:
    plan = {"plugin_nodes": {}, "plugin_types": {}}
    with pytest.raises(UnreadableError, match="cannot load the engine"):
        inspected(Package(None), None, b"engine")
    assert read_back(Package(None), None, b"engine", plan) == (
        None,
        [],
        "the types of the plugins were not read back: TensorRT cannot load the engine that it has just built",
    )
    assert read_back(Package(text([])), None, b"engine", plan) == ([], [], "")
