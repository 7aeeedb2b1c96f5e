"""What a prediction says: latencies per network, block and operator, always labelled as predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy.errors import InputError, UsageError
from dyndeploy.graphs.memory import MemoryPrediction
from dyndeploy.graphs.parts import has_parts, sums

SCHEMA = 2


@dataclass(frozen=True)
class OperatorPrediction:
    """One operator. Latencies are milliseconds per image.

    Attributes:
        name: Label within its block.
        kind: Kind of operator.
        latency_ms: Predicted latency; ``None`` for a kind that the predictor does not know.
        compute_ms: Part of it spent computing.
        memory_ms: Part of it spent moving data.
        launch_ms: Part of it spent launching.
        macs: Executed multiply-accumulates per image; ``None`` if unknown.
        interval_ms: 90 % interval of the latency; ``None`` where the predictor gives none.
    """

    name: str
    kind: str
    latency_ms: float | None
    compute_ms: float | None
    memory_ms: float | None
    launch_ms: float | None
    macs: float | None
    interval_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class BlockPrediction:
    """One residual block, or a group of other operators (``mode`` "static": stem, head).

    Attributes:
        name: E.g. ``"layer1.0"``, ``"stem"``.
        mode: How the block is executed: the kinds of its decisions, joined by ``+``, or ``"static"``.
        rates: Activation rates by kind of decision.
        latency_ms: Sum over the known operators, milliseconds per image.
        operators: The operators in execution order.
        interval_ms: 90 % interval of the latency; ``None`` where the predictor gives none.
    """

    name: str
    mode: str
    rates: dict[str, float]
    latency_ms: float
    operators: tuple[OperatorPrediction, ...]
    interval_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class PartPrediction:
    """A part of a detector, per image.

    Attributes:
        name: One of :data:`~dyndeploy.tasks.parts.PARTS`.
        latency_ms: Of its blocks and other operators.
        macs: Executed multiply-accumulates.
        share: Of the network's latency.
    """

    name: str
    latency_ms: float
    macs: float
    share: float


@dataclass(frozen=True)
class ExitPrediction:
    """Images that leave at one exit of a network that exits early.

    Attributes:
        exit: Number of the exit.
        share: Share of images that leaves there.
        latency_ms: Milliseconds per image, of all stages up to this exit.
        interval_ms: 90 % interval of the latency.
    """

    exit: int
    share: float
    latency_ms: float
    interval_ms: tuple[float, float]


@dataclass(frozen=True)
class Coverage:
    """How much of the network the prediction accounts for.

    Attributes:
        by_count: Fraction of operators that are known.
        by_flops: Fraction of FLOPs in known operators; ``None`` when an unknown operator did not state its own.
        operators: Number of operators.
        unknown: ``"block.operator (kind)"`` of each operator that the predictor does not know. The reference gives
            it no latency; the kernel predictor prices it by its bytes, with a wide interval.
        by_time: Fraction of the predicted latency in known operators; ``None`` where unknown ones have no latency.
    """

    by_count: float
    by_flops: float | None
    operators: int
    unknown: tuple[str, ...]
    by_time: float | None = None


@dataclass(frozen=True)
class Prediction:
    """A predicted latency.

    Attributes:
        network: Name of the network.
        device: Name of the device model.
        mode: Mode of each stage, or of all; ``("static",)`` where none was asked for.
        granularity: Patch side of each stage, likewise; empty where none was asked for.
        channel_granularity: Channels per group of each stage, likewise.
        batch: Images per batch.
        input_size: (height, width).
        compat: ``"laudnet"`` (the reference with its quirks) or ``None``.
        fixes: Names of the repairs of the reference in force.
        mem_concurrent: Floats per memory sector of the reference; ``None`` for the kernel predictor.
        seed: Seed of the sampled channel densities; ``None`` when they are expectations.
        latency_ms: Milliseconds per image, unknown operators left out (see ``coverage``).
        latency_batch_ms: Milliseconds per batch.
        blocks: The parts, in execution order; their latencies add up to ``latency_ms``.
        coverage: What the figure leaves out.
        kind: Always ``"predicted"``.
        predictor: ``"kernels"`` or ``"reference"``.
        precision: Of activations and weights.
        runtime: Whose fusions and launches are assumed; ``None`` for the reference, which knows none.
        interval_ms: 90 % interval of ``latency_ms``; ``None`` for the reference.
        basis: What the device model rests on.
        notes: What a reader should know, e.g. which skipped blocks the platform computes anyway.
        exits: Of a network that exits early: ``latency_ms`` is their mean by their shares.
        memory: What it needs of the device's; None for the reference.
    """

    network: str
    device: str
    mode: tuple[str, ...]
    granularity: tuple[int, ...]
    channel_granularity: tuple[int, ...]
    batch: int
    input_size: tuple[int, int]
    compat: str | None
    fixes: tuple[str, ...]
    mem_concurrent: int | None
    seed: int | None
    latency_ms: float
    latency_batch_ms: float
    blocks: tuple[BlockPrediction, ...]
    coverage: Coverage
    kind: str = "predicted"
    predictor: str = "reference"
    precision: str = "fp32"
    runtime: str | None = None
    interval_ms: tuple[float, float] | None = None
    basis: str = ""
    notes: tuple[str, ...] = ()
    exits: tuple[ExitPrediction, ...] = ()
    memory: MemoryPrediction | None = None

    @property
    def parts(self) -> tuple[PartPrediction, ...]:
        """What the blocks of a detector add up to; empty for other networks."""
        if not has_parts({block.name for block in self.blocks}):
            return ()
        ms = sums({block.name: block.latency_ms for block in self.blocks})
        macs = sums({block.name: math.fsum(o.macs or 0.0 for o in block.operators) for block in self.blocks})
        whole = max(self.latency_ms, 1e-12)
        return tuple(PartPrediction(name, value, macs[name], value / whole) for name, value in ms.items())

    def require_rates(self) -> None:
        """Raise ``UsageError`` where nothing obeys a rate: one that was given would change nothing."""
        if any(block.rates for block in self.blocks):
            return
        if self.exits:
            raise UsageError(f"{self.network} exits early and skips nothing else: give --exit-mix instead of the rate.")
        from dyndeploy.nets import model_info, model_names

        if self.network in model_names() and "mode" in model_info(self.network).defaults:
            raise UsageError(
                f"{self.network} without a mode is its static twin, in which a rate changes nothing. Say what is "
                "skipped, with --mode spatial, channel, layer or both, or leave the rate out."
            )
        raise UsageError(f"{self.network} is static: nothing in it skips, so leave the rate out.")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; :meth:`from_json` reads it back."""
        parts = [asdict(part) for part in self.parts]
        memory = None if self.memory is None else self.memory.to_json()
        return {"schema": SCHEMA, **asdict(self), "memory": memory, **({"parts": parts} if parts else {})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Prediction:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: It is not such an object, or of another schema version.
        """
        if not isinstance(value, Mapping) or value.get("kind") != "predicted":
            raise InputError('This JSON is not a prediction: it has no "kind": "predicted".')
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"The prediction has schema {value.get('schema')}, this release reads {SCHEMA}. Predict again."
            )
        try:
            values = {key: item for key, item in value.items() if key not in ("schema", "parts")}
            lists = ("mode", "granularity", "channel_granularity", "input_size", "fixes", "notes")
            values.update({key: tuple(values.get(key, ())) for key in lists})
            values["exits"] = tuple(
                ExitPrediction(**{**item, "interval_ms": (item["interval_ms"][0], item["interval_ms"][1])})
                for item in values.get("exits", ())
            )
            values["interval_ms"] = _interval(values["interval_ms"])
            values["blocks"] = tuple(
                BlockPrediction(
                    **{
                        **block,
                        "interval_ms": _interval(block["interval_ms"]),
                        "operators": tuple(
                            OperatorPrediction(**{**item, "interval_ms": _interval(item["interval_ms"])})
                            for item in block["operators"]
                        ),
                    }
                )
                for block in value["blocks"]
            )
            memory = values.get("memory")
            values["memory"] = None if memory is None else MemoryPrediction.from_json(memory)
            coverage = value["coverage"]
            values["coverage"] = Coverage(**{**coverage, "unknown": tuple(coverage["unknown"])})
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The prediction is incomplete: {error!r}.") from error


def _interval(value: Sequence[float] | None) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))
