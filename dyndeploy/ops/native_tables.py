"""The operator tables of the native adapters, written from the specifications.

``plugins/adapters/common/operator_tables.h`` is a generated file that is kept with the sources, so that a build needs
no Python; ``python -m dyndeploy.ops.native_tables`` writes it anew after an operator of this package has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from dyndeploy.errors import UsageError
from dyndeploy.files import shipped_folder, write_text
from dyndeploy.ops.base import Element, OperatorSpec, Port
from dyndeploy.ops.registry import SPECS

HEADER = "adapters/common/operator_tables.h"
"""Path of the generated header below ``plugins/``."""

COMMAND = "python -m dyndeploy.ops.native_tables"
"""What writes the header."""

FAMILIES = {"cpu": "CPU", "tensorrt": "TENSORRT"}
"""Kernel families that have an adapter, and their names in the header."""

LETTERS = {
    "Co": "O",
    "Ho": "P",
    "Wo": "Q",
    "mh": "h",
    "mw": "w",
    "group": "g",
    "9|25*M/group": "k",
    "M/group": "m",
    "16": "#",
    **{
        f"{axis}{level}": letter
        for axis, letters in (("H", "HIJK"), ("W", "WXYZ"))
        for level, letter in enumerate(letters)
    },
}
"""One letter for each symbolic size that is longer; others are their own letter."""

_TOP = """\
// The operators of domain dyndeploy that have native kernels. Generated from dyndeploy/ops; do not edit:
// {command}
// clang-format off
#pragma once

namespace dyndeploy {{
namespace tables {{

enum class Role {{ kActivation, kMask, kWeight }};

// kData: the type that the operator computes in, the same for all such ports of a node. kFloat: always float. kIndex:
// 64-bit integers, in TensorRT 32-bit ones. The others are integers of these sizes.
enum class Element {{ kData, kFloat, kIndex, kUint8, kInt8, kInt32 }};

// Which kind of decision an input is; kNone for all that are no masks.
enum class Gate {{ {gates} }};

// One letter per axis: equal letters of an operator are equal sizes, digits are themselves and '#' is the 16
// border classes.
struct Port {{
  const char* name;
  Role role;
  Gate gate;
  Element element;
  const char* axes;
}};

// Integers, or numbers with a fraction; every attribute must be given.
struct Attribute {{
  const char* name;
  int length;
  bool real;
}};

struct Operator {{
  const char* name;
  int version;
  const char* plugin_version;  // the same, as TensorRT's creators tell it
  // As in ONNX.
  const Port* inputs;
  int input_count;
  // As in the TensorRT copy of a graph, whose weights are packed.
  const Port* plugin_inputs;
  int plugin_input_count;
  Port output;
  const Attribute* attributes;
  int attribute_count;
}};
"""

_BOTTOM = """
}  // namespace tables
}  // namespace dyndeploy
"""


def operator_tables(specs: Sequence[OperatorSpec] = SPECS) -> str:
    """Text of the header: C++14 that includes nothing, one entry a line.

    Args:
        specs: Operators; those without kernels of an adapter's family are left out.

    Raises:
        UsageError: The adapters have no form for something that an operator has: several outputs, optional inputs,
            an
            index tensor first in TensorRT, or a size whose symbol has no letter.
    """
    specs = [spec for spec in specs if FAMILIES.keys() & spec.kernels.keys()]
    for spec in specs:
        _check(spec)
    gates = dict.fromkeys(_camel(kind.name) for spec in specs for kind in spec.gates.values())
    ports = [[*spec.inputs, *_plugin_inputs(spec), *spec.outputs] for spec in specs]
    limits = {
        "kMaxInputs": max(max(len(spec.inputs), len(_plugin_inputs(spec))) for spec in specs),
        "kMaxRank": max(len(port.shape) for entries in ports for port in entries),
        "kMaxAttributes": max(len(spec.attributes) for spec in specs),
        "kMaxValues": max(sum(attribute.length or 1 for attribute in spec.attributes) for spec in specs),
    }
    lines = [_TOP.format(command=COMMAND, gates=", ".join(f"k{name}" for name in ("None", *gates)))]
    lines += [f"constexpr int {name} = {value};" for name, value in limits.items()]
    arrays: dict[tuple[str, ...], str] = {}
    for spec in specs:
        lines += ["", *_operator(spec, arrays)]
    for family, name in FAMILIES.items():
        lines += ["", *_list(name, [spec for spec in specs if family in spec.kernels])]
    return "\n".join(lines) + "\n" + _BOTTOM


def _check(spec: OperatorSpec) -> None:
    problems = []
    if len(spec.outputs) != 1:
        problems.append(f"{len(spec.outputs)} outputs")
    problems += [f"the optional input {port.name}" for port in spec.inputs if port.optional]
    ports = [*spec.inputs, *_plugin_inputs(spec), *spec.outputs]
    if "tensorrt" in spec.kernels and spec.inputs[0].element is Element.INDEX:
        # Its type is what TensorRT chooses for all data.
        problems.append(f"the index tensor {spec.inputs[0].name}")
    letters: dict[str, str] = {}
    for symbol in dict.fromkeys(symbol for port in ports for symbol in port.shape):
        letter = LETTERS.get(symbol, symbol)
        if len(letter) != 1 or letters.setdefault(letter, symbol) != symbol:
            problems.append(f"the size {symbol}, which needs a letter of its own in LETTERS")
    if problems:
        raise UsageError(
            f"The native adapters have no form for {', '.join(problems)} of {spec.name}. Teach them, or leave its "
            "native kernels out."
        )


def _plugin_inputs(spec: OperatorSpec) -> tuple[Port, ...]:
    return spec.native_inputs("tensorrt") if "tensorrt" in spec.kernels else spec.inputs


def _operator(spec: OperatorSpec, arrays: dict[tuple[str, ...], str]) -> list[str]:
    """Lines of one operator's tables; arrays that an earlier operator has are used again."""
    lines: list[str] = []

    def array(kind: str, suffix: str, entries: Sequence[str]) -> list[str]:
        if not entries:
            return ["nullptr", "0"]
        key = (kind, *entries)
        if key not in arrays:
            arrays[key] = f"k{spec.name}{suffix}"
            lines.extend([f"constexpr {kind} {arrays[key]}[] = {{", *(f"    {entry}," for entry in entries), "};"])
        return [arrays[key], str(len(entries))]

    attributes = [
        f'{{"{entry.name}", {entry.length or 1}, {"true" if entry.type is float else "false"}}}'
        for entry in spec.attributes
    ]
    values = [
        f'"{spec.name}"',
        str(spec.version),
        f'"{spec.version}"',
        *array("Port", "Inputs", [_port(spec, port) for port in spec.inputs]),
        *array("Port", "PluginInputs", [_port(spec, port) for port in _plugin_inputs(spec)]),
        _port(spec, spec.outputs[0]),
        *array("Attribute", "Attributes", attributes),
    ]
    return [*lines, f"constexpr Operator k{spec.name} = {{", *(f"    {value}," for value in values), "};"]


def _port(spec: OperatorSpec, port: Port) -> str:
    gate = _camel(spec.gates[port.name].name) if port.name in spec.gates else "None"
    axes = "".join(LETTERS.get(symbol, symbol) for symbol in port.shape)
    role, element = port.role.name.capitalize(), port.element.name.capitalize()
    return f'{{"{port.name}", Role::k{role}, Gate::k{gate}, Element::k{element}, "{axes}"}}'


def _list(family: str, specs: Sequence[OperatorSpec]) -> list[str]:
    entries = [f"  DO({spec.name}, {_camel(spec.kind)})" for spec in specs]
    lines = [f"#define DYNDEPLOY_{family}_OPERATORS(DO)", *entries]
    width = max(map(len, lines[:-1]))
    return [
        "// DO(operator, kind): operators of one kind share their kernels.",
        *(f"{line:{width}} \\" for line in lines[:-1]),
        lines[-1],
    ]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


if __name__ == "__main__":
    path = shipped_folder("plugins") / HEADER
    write_text(path, operator_tables())
    print(f"Wrote {path}")
