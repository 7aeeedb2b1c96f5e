"""A plan: per stage what to train and export, per block whether it is worth running dynamically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dyndeploy.errors import InputError

SCHEMA = 1
FORMAT = "dyndeploy-plan"


@dataclass(frozen=True)
class Plan:
    """One choice for a whole network.

    Attributes:
        network: Registered name.
        input_size: (height, width).
        device: It was chosen for.
        threads: Of the session; None on a GPU, where they mean nothing.
        rate: Activation rate that every mask was assumed to have.
        mode: Per stage.
        granularity: Per stage.
        channel_granularity: Per stage.
        dense: Blocks of dynamic stages that run densely, because that is faster.
        latency_ms: Predicted, one image.
        interval_ms: It probably lies in here.
        static_ms: Predicted for the network without masks.
        macs: Multiply-accumulates that are computed.
        static_macs: Those of the network without masks.
        accuracy: Of a recipe with these settings, or None where none is known.
        reasons: Why, a sentence each.
        measured_ms: Of one image, where plans were measured against each other
            (:func:`~dyndeploy.planning.measure_plans`).
        measured_with: Which code ran its dynamic operators then (:func:`dyndeploy.runtimes.native.operator_code`); None
            where it has none.
        kind: Always ``"predicted"``: what all latencies but ``measured_ms`` are.
        basis: What the prices rest on: a calibration of the device, or its data sheet.
        runtime: Whose fusions are assumed.
        precision: Of activations and weights.
    """

    network: str
    input_size: tuple[int, int]
    device: str
    threads: int | None
    rate: float
    mode: tuple[str, ...]
    granularity: tuple[int, ...]
    channel_granularity: tuple[int, ...]
    dense: tuple[str, ...]
    latency_ms: float
    interval_ms: tuple[float, float]
    static_ms: float
    macs: float
    static_macs: float
    accuracy: float | None = None
    reasons: tuple[str, ...] = ()
    measured_ms: float | None = None
    measured_with: str | None = None
    kind: str = "predicted"
    basis: str = ""
    runtime: str = "onnxruntime"
    precision: str = "fp32"

    def options(self) -> dict[str, Any]:
        """Keywords for :func:`~dyndeploy.nets.create_model`; :attr:`dense` goes to the export's settings."""
        return {
            "mode": self.mode,
            "granularity": self.granularity,
            "channel_granularity": self.channel_granularity,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_json` reads them back."""
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any, source: str = "The plan") -> Plan:
        """Read what :meth:`to_json` wrote, or the JSON of ``dyndeploy plan``, whose chosen plan is taken.

        Raises:
            InputError: It is no plan, of another schema version, or damaged.
        """
        if isinstance(value, Mapping) and isinstance(value.get("chosen"), Mapping):
            value = value["chosen"]
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise InputError(f"{source} is not a plan: 'dyndeploy plan' writes one.")
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"{source} has schema {value.get('schema')!r:.20}, this release reads {SCHEMA}. Plan again."
            )
        try:
            fields = {key: item for key, item in value.items() if key not in ("format", "schema")}
            for key in ("input_size", "mode", "granularity", "channel_granularity", "dense", "interval_ms", "reasons"):
                if not isinstance(fields[key], (list, tuple)):
                    raise TypeError(f"{key} must be a list")
                fields[key] = tuple(fields[key])
            plan = cls(**fields)
            texts = (plan.network, plan.device, *plan.mode, *plan.dense, *plan.reasons)
            texts += (plan.kind, plan.basis, plan.runtime, plan.precision)
            threads = () if plan.threads is None else (plan.threads,)
            counts = (*plan.input_size, *threads, *plan.granularity, *plan.channel_granularity)
            if not all(isinstance(item, str) for item in texts) or not all(_is_count(item) for item in counts):
                raise TypeError("names must be text, sizes whole numbers of at least 1")
            return plan
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} is damaged: {error!r:.200}. Plan again.") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
