"""The layers of a built engine as TensorRT's inspector lists them, and whether its plugins have the plan's types.

This machine and boards read engines with it: like :mod:`.tensorrt_device` it is sent to a board as it stands, runs on
Python 3.6 with nothing but the standard library, and imports nothing of dyndeploy.

The inspector's JSON has no specification. What is known of it was read in the recordings and in the readers of
TensorRT's own tools (trt-engine-explorer from 8.4 to 10.13, Polygraphy up to 11.1) and in the log of TensorRT-RTX 1.7,
which is the same list as text. Up to 9 a tensor's type and layout are one sentence (``"Row major linear FP16
format"``), later one word (``"Half"``), and in RTX two entries. What cannot be read is said, and is no error: an engine
is refused only for what the inspector says of it.
"""

import ctypes
import json
import os
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

Tensor = Dict[str, Any]
Layer = Dict[str, Any]
Types = Mapping[str, Mapping[str, List[str]]]

ANY = "any"
"""Of a planned type: whatever the plugin's first input has."""

NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
"""What a layer's metadata say of a node that it computes."""

# Type by the word that stands for it; what a sentence of 8.x says is looked for word by word.
TYPES = {
    "float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bfloat16": "bfloat16",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "fp8": "float8",
}  # fmt: skip
_ROW_MAJOR = "row major linear"
_VECTORS = ("channel major", "channel vectorized", "wide channel")


class UnreadableError(Exception):
    """The inspector cannot be asked, or its answer has an unknown form; the message says which."""


def inspected(trt: Any, logger: Any, engine: bytes) -> str:
    """What the inspector says of a serialised engine, whose plugins are loaded; needs the GPU that it was built for.

    Raises:
        UnreadableError: The engine cannot be loaded, or the inspector says nothing.
    """
    try:
        runtime = trt.Runtime(logger)
        built = runtime.deserialize_cuda_engine(engine)
    except TypeError:  # What the bindings make of a null pointer.
        built = None
    if built is None:
        raise UnreadableError("TensorRT cannot load the engine that it has just built")
    inspector = built.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    # The inspector reads the engine, the engine its runtime.
    del inspector, built, runtime
    if not text:
        raise UnreadableError("TensorRT's inspector says nothing of the engine")
    return str(text)


def read_inspection(text: str) -> List[Layer]:
    """Layers from the inspector's JSON, in the order in which they run.

    Returns:
        For each layer ``name``, ``kind`` (the builder's word), ``plugin`` (whether it is one), ``nodes`` (of the graph,
        as far as it says so), ``inputs``, ``constants``, ``outputs`` and ``tactic``; a tensor has ``name``, ``shape``,
        ``type`` (NumPy's name, or the inspector's words where that is unknown) and ``packed`` (whether it lies row by
        row without gaps).

    Raises:
        UnreadableError: It is no such JSON, or has no details of the layers.
    """
    try:
        entries = json.loads(text)["Layers"]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UnreadableError("TensorRT's inspector gives no details of the layers")
        return [_layer(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadableError("TensorRT's inspector answers in an unknown form") from None


def _layer(entry: Mapping[str, Any]) -> Layer:
    kind = str(entry["LayerType"])
    name = str(entry["Name"])
    nodes = NODE.findall(str(entry.get("Metadata", "")))
    return {
        "name": name,
        "kind": kind,
        "plugin": is_plugin(kind),
        # Before 8.6 a plugin's layer has its node's name and says no more.
        "nodes": list(dict.fromkeys(nodes)) or [name],
        "inputs": [_tensor(item) for item in entry.get("Inputs", [])],
        "constants": [_tensor(item) for item in entry.get("Constants", [])],
        "outputs": [_tensor(item) for item in entry.get("Outputs", [])],
        "tactic": str(entry.get("TacticName") or entry.get("TacticValue") or ""),
    }


def is_plugin(kind: str) -> bool:
    """Whether the builder's word for a kind of layer is that of a plugin."""
    return kind == "custom_layer" or kind.startswith("Plugin")


def _tensor(item: Mapping[str, Any]) -> Tensor:
    shape = [int(size) for size in item["Dimensions"]]
    layout = str(item.get("Format/Datatype", item.get("Format", "")))
    strides = item.get("Strides")
    return {
        "name": str(item["Name"]),
        "shape": shape,
        "type": tensor_type(str(item.get("Datatype", layout))),
        "packed": _linear(layout) if strides is None else is_packed(shape, [int(stride) for stride in strides]),
    }


def tensor_type(text: str) -> str:
    """NumPy's name of the type in a tensor's description; the description itself where it names none."""
    for word in re.findall(r"\w+", text.lower()):
        if word in TYPES:
            return TYPES[word]
    return text


def _linear(layout: str) -> bool:
    """Whether a layout in words is row-major; one that is not described is, as far as is known."""
    text = layout.lower()
    return _ROW_MAJOR in text or not any(words in text for words in _VECTORS)


def is_packed(shape: List[int], strides: List[int]) -> bool:
    """Whether strides are those of a row-major tensor; how far apart entries of an axis of one lie does not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return len(shape) == len(strides)


# ---------------------------------------------------------------- against the plan


def check_types(layers: List[Layer], nodes: Mapping[str, str], types: Types) -> Tuple[List[str], List[str]]:
    """Compare the types of an engine's plugins with those of its build plan.

    Args:
        layers: As of :func:`read_inspection`.
        nodes: Operator of every node that is to be a plugin, by the node's name.
        types: By operator, what it ``reads`` and ``writes``: NumPy's names of types, or :data:`ANY`.

    Returns:
        What is wrong, in clauses, and what could not be read.
    """
    by_node = {node: layer for layer in layers if layer["plugin"] for node in layer["nodes"]}
    wrong, unread = [], []
    for node, operator in sorted(nodes.items()):
        layer = by_node.get(node)
        if layer is None:
            unread.append("%s is not listed as a plugin" % node)
            continue
        read = [tensor["type"] for tensor in layer["inputs"] + layer["constants"]]
        written = [tensor["type"] for tensor in layer["outputs"] if not is_scratch(tensor)]
        unknown = sorted(set(read + written) - set(TYPES.values()))
        if unknown or not read:
            unread.append("%s reads %s" % (node, ", ".join(unknown) or "nothing that is listed"))
            continue
        wrong += wrong_types(node, operator, read, written, types[operator])
        gaps = [tensor["name"] for tensor in layer["inputs"] + layer["outputs"] if not tensor["packed"]]
        if gaps:
            wrong.append("%s is given %s in a layout that plugins cannot read" % (node, ", ".join(gaps)))
    return wrong, unread


def is_scratch(tensor: Mapping[str, Any]) -> bool:
    """Whether what a builder lists among a plugin's outputs is its scratch memory."""
    return tensor["type"] == "uint8" and "_wksp" in tensor["name"]


def wrong_types(
    node: str, operator: str, read: List[str], written: List[str], planned: Mapping[str, List[str]]
) -> List[str]:
    """What a plugin reads or writes otherwise than planned, in clauses.

    Args:
        node: Name of its node.
        operator: Its operator.
        read: Types of all that it reads, in any order, but x first.
        written: Types of its outputs.
        planned: What it ``reads`` and ``writes``, as of :func:`check_types`.
    """
    problems = []
    x = read[0] if read else ANY
    reads = [x if name == ANY else name for name in planned["reads"]]
    if len(read) != len(reads):
        problems.append("%s reads %d tensors, and %s has %d inputs" % (node, len(read), operator, len(reads)))
    elif sorted(read) != sorted(reads):
        problems.append("%s reads %s, and the plan gives it %s" % (node, _listed(read), _listed(reads)))
    if len(written) != len(planned["writes"]):
        problems.append(
            "%s writes %d tensors, and %s has %d outputs" % (node, len(written), operator, len(planned["writes"]))
        )
    elif written != list(planned["writes"]):
        problems.append("%s writes %s, and the plan says %s" % (node, ", ".join(written), ", ".join(planned["writes"])))
    return problems


def _listed(types: List[str]) -> str:
    return ", ".join("%d x %s" % (types.count(name), name) for name in sorted(set(types)))


def read_back(
    trt: Any, logger: Any, engine: bytes, plan: Mapping[str, Any]
) -> Tuple[Optional[List[Layer]], List[str], str]:
    """Ask the inspector about an engine, and compare its plugins with the plan.

    Args:
        trt: The ``tensorrt`` package.
        logger: Takes TensorRT's messages.
        engine: The serialised engine.
        plan: JSON of a :class:`dyndeploy.runtimes.tensorrt_plan.BuildPlan`.

    Returns:
        The layers (None where they cannot be read), what is wrong, and why the types of a plugin could not be read:
        empty where all were seen.
    """
    nodes = {name: node["operator"] for name, node in plan["plugin_nodes"].items()}
    try:
        layers = read_inspection(inspected(trt, logger, engine))
    except UnreadableError as error:
        return None, [], "the types of the plugins were not read back: %s" % error
    wrong, unread = check_types(layers, nodes, plan["plugin_types"])
    note = ""
    if unread:
        note = "the types of %d of %d plugins were not read back: %s" % (len(unread), len(nodes), unread[0])
    return layers, wrong, note


def plugin_facts(
    layers: List[Layer], plan: Mapping[str, Any], library: Optional[str] = None
) -> Dict[str, Dict[str, Any]]:
    """What an engine's plugins run in, for its results.

    Args:
        layers: As of :func:`read_inspection`.
        plan: JSON of the build plan.
        library: Path of the plugin library, which says what its kernels would do on the current GPU.

    Returns:
        By node: its ``operator``, the ``type`` of its data, the builder's ``tactic``, and ``kernels``: in the library's
        words, empty where it does not say.
    """
    by_node = {node: layer for layer in layers if layer["plugin"] for node in layer["nodes"]}
    untold = -1 if plan.get("tuning") else 0
    facts = {}
    for name, node in plan["plugin_nodes"].items():
        layer = by_node.get(name)
        if layer is None or not layer["inputs"]:
            continue
        kind = layer["inputs"][0]["type"]
        facts[name] = {
            "operator": node["operator"],
            "type": kind,
            "tactic": layer["tactic"],
            "kernels": kernels(library, node, kind == "float16", tactic=_number(layer["tactic"]) or untold)
            if library
            else "",
        }
    return facts


def _number(tactic: str) -> int:
    """A plugin's tactic as a number (``"0x0000000000000003"``), 0 where TensorRT names none."""
    try:
        number = int(tactic, 0)
    except ValueError:
        return 0
    return number if 0 < number < 1 << 31 else 0


def kernels(
    library: str,
    node: Mapping[str, Any],
    half: bool,
    capability: int = 0,
    processors: int = 0,
    tactic: int = 0,
) -> str:
    """Which kernels a plugin library would run for a node, in its words; empty where it does not say.

    Args:
        library: Its path; it is loaded.
        node: Of a plan's ``plugin_nodes``: ``operator``, ``attributes`` and the ``shapes`` of its inputs.
        half: Whether its data are half.
        capability: Ten times the compute capability; 0 asks for the current GPU.
        processors: Of that GPU.
        tactic: The builder's; 0 for the library's formula, -1 where it was tuned and the builder does not tell how.
    """
    shapes = [number for shape in node["shapes"] for number in [len(shape)] + list(shape)]
    if not node["shapes"] or any(size < 0 for size in shapes):
        return ""
    try:
        # Not loaded anew: what is asked is what registered the plugins.
        function = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_NOW).DyndeployKernels
    except (OSError, AttributeError):
        return ""
    function.restype = ctypes.c_int32
    values = node["attributes"]
    text = ctypes.create_string_buffer(400)
    length = function(
        node["operator"].encode(),
        (ctypes.c_int32 * max(1, len(values)))(*values),
        ctypes.c_int32(len(values)),
        (ctypes.c_int64 * len(shapes))(*shapes),
        ctypes.c_int32(len(shapes)),
        ctypes.c_int32(int(half)),
        ctypes.c_int32(capability),
        ctypes.c_int32(processors),
        text,
        ctypes.c_int32(len(text)),
        ctypes.c_int32(tactic),
    )
    return text.value.decode("utf-8", "replace") if length > 0 else ""


def refusal(wrong: List[str]) -> str:
    """What to say of an engine whose plugins are not those of the plan."""
    return "the engine is not what its plan says: %s" % "; ".join(wrong)
