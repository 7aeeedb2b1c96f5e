"""Deployment targets as data: one TOML file each in ``platforms/``, and the rules of what can run where."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.ops import OPERATORS
from dyndeploy.precisions import PRECISIONS
from dyndeploy.targets.laziness import LazinessRecord

_FOLDER = Path(__file__).parent / "platforms"
_OPERATORS = Path(__file__).parent / "tensorrt_operators.toml"
_DETECTION = Path(__file__).parent / "tensorrt_detection.toml"

PORTABLE = "cpu"
"""Target of the one graph of a network that its own target runs in parts: what can be verified anywhere."""

ENGINE, PLUGIN, HOST, NOWHERE = "engine", "plugin", "host", "none"
"""Where an operator runs: in the engine, there as a plugin of ours, on the host between two engines, or not at all."""


@dataclass(frozen=True)
class PrecisionRule:
    """Whether a precision can be exported for a target, and if not, why."""

    supported: bool
    reason: str = ""


@dataclass(frozen=True)
class PowerMode:
    """A mode of ``nvpmodel`` that limits clocks least.

    Attributes:
        id: As given to ``nvpmodel -m``.
        name: As ``nvpmodel -q`` says it.
        since: First release of Jetson Linux that has it, e.g. ``36.4.3``; empty for any.
    """

    id: int
    name: str
    since: str = ""


@dataclass(frozen=True)
class Placement:
    """Where an operator runs.

    Attributes:
        runs: :data:`ENGINE`, :data:`PLUGIN`, :data:`HOST` or :data:`NOWHERE`.
        why: The reason, as a clause.
    """

    runs: str
    why: str


@dataclass(frozen=True)
class Target:
    """A platform that bundles are made for.

    Attributes:
        name: As given to ``--target``; the name of its TOML file.
        title: Product name.
        runtime: ``"onnxruntime"`` or ``"tensorrt"``.
        runtime_version: Last version that exists there, or None for any current one.
        software: What the platform's last system image brings, or None.
        opset: ONNX opset that is written.
        ir_version: ONNX IR version that is written.
        operator_kernels: Kernel family that runs dynamic operators natively: ``"cpu"`` or ``"tensorrt"``.
        allowed_operators: Standard operators that may stand in the graph besides the dynamic ones; None means all.
        precisions: By name, whether a precision can be exported, and if not, why.
        refused: Features that the platform lacks, with the reason.
        power_modes: The fastest power modes; of releases with several, the newest release's first.
        ahead_of_time: Whether TensorRT-RTX supports its GPU: engines can then be built on any machine.
        source: Where these facts come from.
        detection: Where what detectors need runs, by name of the ONNX operator, or by the kind of an operator of
            ours; empty where all of it is in one graph.
    """

    name: str
    title: str
    runtime: str
    runtime_version: str | None
    software: str | None
    opset: int
    ir_version: int
    operator_kernels: str
    allowed_operators: frozenset[str] | None
    precisions: dict[str, PrecisionRule]
    refused: dict[str, str]
    power_modes: tuple[PowerMode, ...]
    source: str
    ahead_of_time: bool = False
    detection: Mapping[str, Placement] = field(default_factory=dict)

    @property
    def is_card(self) -> bool:
        """Whether it is a GPU in some computer, without the power modes that boards have as a whole."""
        return self.runtime == "tensorrt" and not self.power_modes

    def require_precision(self, precision: str) -> None:
        """Raise ``UsageError`` with the reason unless the precision can be exported for this target."""
        if precision not in self.precisions:
            raise unknown_name("precision", precision, self.precisions)
        rule = self.precisions[precision]
        if not rule.supported:
            raise UsageError(f"{precision} cannot be exported for {self.name}: {rule.reason}.")

    def capabilities(self) -> list[dict[str, Any]]:
        """One row per dynamic operator: how it runs on this target."""
        rows = []
        for spec in OPERATORS.values():
            kernel = spec.kernels.get(self.operator_kernels)
            fused = kernel is not None
            names = () if kernel is None else kernel.precisions
            rules = [self.precisions[name] for name in names if name in self.precisions]
            if rules and not any(rule.supported for rule in rules):
                how, note = "none", f"cannot run there: {rules[0].reason}"
            elif self.runtime == "tensorrt" and fused:
                how = "plugin"
                note = (
                    f"TensorRT {self.runtime_version} plugin with a fused kernel, built on the device; "
                    "not yet confirmed on this device"
                )
            elif self.runtime == "tensorrt":
                how, note = "none", "cannot run there: TensorRT needs a plugin, and there is none"
            elif fused:
                how, note = "native", "fused kernel; the function body where the library is absent"
            else:
                how, note = "body", "standard operators of the function body"
            rows.append({"operator": spec.name, "version": spec.version, "runs": how, "note": note})
        return rows

    def takes_branches(self, record: LazinessRecord | None = None) -> tuple[bool, str]:
        """Whether skipping may be left to ``If``: whether the runtime leaves out the branch that is not taken.

        Args:
            record: Result of ``dyndeploy probe`` for this target: what was measured decides. None takes what is known
                of the platform: ONNX Runtime skips, TensorRT counts as running both branches.

        Returns:
            The answer, and the reason as one clause.

        Raises:
            InputError: The record is of another target.
        """
        if record is not None:
            if record.target != self.name:
                raise InputError(
                    f"The record was made for {record.target}, not for {self.name}. Run 'dyndeploy probe --target "
                    f"{self.name}'."
                )
            return record.standard.lazy, f"measured: leaving a branch takes {record.standard.ratio:.0%} of taking it"
        if "If" in self.refused:
            return False, self.refused["If"]
        if self.runtime == "tensorrt":
            return False, "TensorRT may run both branches, and this target was not probed"
        return True, "ONNX Runtime runs only the branch that is taken"

    def to_json(self) -> dict[str, Any]:
        """Everything that is known, as plain JSON types."""
        return {
            "name": self.name,
            "title": self.title,
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "software": self.software,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "precisions": {
                name: {"supported": rule.supported, "reason": rule.reason or None}
                for name, rule in self.precisions.items()
            },
            "operators": self.capabilities(),
            "branches": dict(zip(("taken", "reason"), self.takes_branches(), strict=True)),
            "allowed_operators": None if self.allowed_operators is None else sorted(self.allowed_operators),
            "refused": dict(self.refused),
            "ahead_of_time": self.ahead_of_time,
            "detection": {name: asdict(place) for name, place in self.detection.items()},
            "source": self.source,
        }


def _read(path: Path) -> Target:
    data = files.read_toml(path)
    return Target(
        name=path.stem,
        title=data["title"],
        runtime=data["runtime"],
        runtime_version=data.get("runtime_version"),
        software=data.get("software"),
        opset=data["opset"],
        ir_version=data["ir_version"],
        operator_kernels=data["operator_kernels"],
        allowed_operators=parser_operators(data["runtime_version"]) if data["runtime"] == "tensorrt" else None,
        precisions={name: PrecisionRule(**data["precision"][name]) for name in PRECISIONS},
        refused=dict(data.get("refused", {})),
        power_modes=tuple(PowerMode(**mode) for mode in data.get("power_modes", ())),
        source=data["source"],
        ahead_of_time=data.get("ahead_of_time", False),
        detection=detection_operators(data["runtime_version"]) if data["runtime"] == "tensorrt" else {},
    )


def parser_operators(version: str) -> frozenset[str]:
    """Standard ONNX operators that may stand in a graph for a release of TensorRT, e.g. ``"8.5.2"``."""
    releases = files.read_toml(_OPERATORS)["release"]
    known = [release for release in releases if _numbers(release["since"]) <= _numbers(version)]
    return frozenset(name for release in known for name in release["adds"])


def detection_operators(version: str) -> dict[str, Placement]:
    """Where a release of TensorRT, e.g. ``"8.5.2"``, runs what detectors need, by name of the ONNX operator."""
    releases = files.read_toml(_DETECTION)["release"]
    known = [release for release in releases if _numbers(release["since"]) <= _numbers(version)]
    newest = max(known, key=lambda release: _numbers(release["since"]))
    return {name: Placement(**value) for name, value in newest.items() if name != "since"}


def refused_ahead() -> dict[str, str]:
    """ONNX operators that TensorRT-RTX does not build where there is no GPU, with the reason as a clause."""
    return dict(files.read_toml(_DETECTION)["ahead"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@functools.lru_cache(maxsize=1)
def _targets() -> dict[str, Target]:
    return {path.stem: _read(path) for path in sorted(_FOLDER.glob("*.toml"))}


def target_names() -> list[str]:
    """Names of all targets, sorted."""
    return sorted(_targets())


def load_target(name: str) -> Target:
    """Look a target up by name; raises ``UsageError`` that suggests the nearest name."""
    targets = _targets()
    if name.lower() not in targets:
        raise unknown_name("target", name, targets)
    return targets[name.lower()]
