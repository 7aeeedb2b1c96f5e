"""TensorRT engines of a bundle against the static twin's engine, on this machine's GPU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import PREFIX, forced_masks, replace_masks
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.runtimes import TensorRTSession
from dyndeploy.runtimes.tensorrt_engine import EngineSettings

ENGINE_RATES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class EngineRate:
    """One forced rate.

    Attributes:
        rate: Forced on every mask.
        dynamic_ms: Samples of the dynamic engine, milliseconds on the device.
        static_ms: Samples of the static twin's engine taken between them.
        ideal_speedup: MACs of the twin over those that the masks need.
    """

    rate: float
    dynamic_ms: tuple[float, ...]
    static_ms: tuple[float, ...]
    ideal_speedup: float

    @property
    def realised_speedup(self) -> float:
        """Median of the twin over that of the dynamic engine."""
        return statistics.median(self.static_ms) / statistics.median(self.dynamic_ms)

    @property
    def realisation(self) -> float:
        """Part of the skipped computation that became time saved."""
        return self.realised_speedup / self.ideal_speedup


@dataclass(frozen=True)
class EngineProfile:
    """Result of :func:`profile_engine`.

    Attributes:
        network: Name.
        mode: Of the masks.
        batch: N.
        plan: Precision plan.
        device: GPU and compute capability.
        tensorrt: Version.
        plugins: Plugin library and its checksum.
        graph_note: Empty if runs were launched as a CUDA graph, else why not.
        rates: In the order they were asked for.
    """

    network: str
    mode: str
    batch: int
    plan: str
    device: str
    tensorrt: str
    plugins: str
    graph_note: str
    rates: tuple[EngineRate, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with what follows from the samples."""
        rows = [
            {**asdict(rate), "realised_speedup": rate.realised_speedup, "realisation": rate.realisation}
            for rate in self.rates
        ]
        return {**asdict(self), "rates": rows}


def profile_engine(
    bundle: Bundle,
    settings: EngineSettings | None = None,
    *,
    rates: Sequence[float] = ENGINE_RATES,
    rounds: int = 5,
    runs: int = 50,
    cuda_graph: bool = True,
    device: int = 0,
) -> EngineProfile:
    """Time the dynamic engine under forced masks next to the engine of its static twin.

    Both engines are open at once and take turns, so that both see the same clocks. Times are those between two events
    on the device, transfers left out. Forced masks say nothing about accuracy.

    Args:
        bundle: A bundle that was exported with its static twin.
        settings: How both engines are built.
        rates: Activation rates to force.
        rounds: Visits to each engine per rate; every visit of the dynamic one has other masks.
        runs: Runs per visit.
        cuda_graph: Launch runs as a CUDA graph where possible.
        device: Index of the GPU.

    Raises:
        BundleError: No static twin.
        UsageError: No plan for the precision, no plugin library, or a bad rate or count.
        DyndeployError: TensorRT is missing or failed.
    """
    if rounds < 1 or runs < 1 or not rates:
        raise UsageError(f"rounds={rounds}, runs={runs}, {len(rates)} rates: give at least one of each.")
    settings = settings or EngineSettings()
    settings = replace(settings, precision=settings.precision or bundle.manifest.precision)
    masks, batch = bundle.manifest.masks, bundle.manifest.batch
    drawn = {rate: [forced_masks(masks, rate, seed) for seed in range(rounds)] for rate in rates}
    counter = MacCounter(bundle.load_model())
    twin_macs = float(MacCounter(bundle.load_static()).count().per_sample.sum())
    images = {"input": bundle.reference()["input"][:batch]}
    options: dict[str, Any] = {"cuda_graph": cuda_graph, "device": device}
    dynamic, built = TensorRTSession.from_graph(replace_masks(bundle.load_model(), masks), settings, **options)
    with dynamic:
        static, _ = TensorRTSession.from_graph(bundle.load_static(), settings, **options)
        with static:
            static.run(images)
            results = []
            for rate in rates:
                dynamic_ms: list[float] = []
                static_ms: list[float] = []
                for values in drawn[rate]:
                    dynamic.run({**images, **{PREFIX + name: value for name, value in values.items()}})
                    static_ms += static.device_times(runs)
                    dynamic_ms += dynamic.device_times(runs)
                needed = statistics.mean(float(counter.count(values).per_sample.sum()) for values in drawn[rate])
                results.append(EngineRate(rate, tuple(dynamic_ms), tuple(static_ms), twin_macs / needed))
        info = dynamic.info
        return EngineProfile(
            network=bundle.manifest.network.name,
            mode=bundle.manifest.network.mode,
            batch=batch,
            plan=str(built.metadata["plan"]),
            device=info.provider,
            tensorrt=info.version,
            plugins=info.native.description,
            graph_note=dynamic.graph_note,
            rates=tuple(results),
        )
