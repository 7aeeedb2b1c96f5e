"""Metrics in Prometheus' text form: those of a Triton server are read, those of whatever is watched are written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from dyndeploy.errors import InputError
from dyndeploy.watching.reading import Counters, Reading, histogram_of

IMAGES, MS, LATENCY, RATE, EXITS, FAILED = (
    "dyndeploy_images_total",
    "dyndeploy_ms_sum",
    "dyndeploy_latency_ms_bucket",
    "dyndeploy_rate_sum",
    "dyndeploy_exits_total",
    "dyndeploy_failed_total",
)
"""Counters by model and version; of ``LATENCY`` cumulative by ``le``, of ``RATE`` by mask, of ``EXITS`` by exit."""

_OURS = (IMAGES, MS, LATENCY, RATE, EXITS, FAILED)
_GPU_POWER = "nv_gpu_power_usage"
"""Triton's own, in watts."""


def read_metrics(text: str, time: float) -> list[Reading]:
    """Read the models of a metrics page.

    Args:
        text: The page.
        time: When it was asked for, in seconds since 1970.

    Returns:
        A reading for every model and version that counts images; none where the page has other metrics only.

    Raises:
        InputError: The page is no Prometheus text, or a counter of ours is no count.
    """
    found: dict[tuple[str, str], dict[str, list[tuple[Mapping[str, str], float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    rails = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                # The parser calls every counter something with _total.
                name = sample.name if sample.name in _OURS else sample.name.removesuffix("_total")
                if name in _OURS:
                    if not 0 <= sample.value < math.inf:
                        raise InputError(f"The metric {name} is {sample.value}: it is no count.")
                    key = sample.labels.get("model", ""), sample.labels.get("version", "")
                    found[key][name].append((sample.labels, sample.value))
                elif sample.name == _GPU_POWER and 0 <= sample.value < math.inf:
                    rails[f"card {sample.labels.get('gpu_uuid', '')}".strip()] = 1000 * sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"The page is no text of Prometheus: {error}.") from error
    readings = []
    for (model, version), metrics in sorted(found.items()):
        buckets = [(float(labels.get("le", "nan")), value) for labels, value in metrics[LATENCY]]
        counters = Counters(
            int(_total(metrics[IMAGES])),
            _total(metrics[MS]),
            histogram_of(buckets),
            {labels.get("mask", ""): value for labels, value in metrics[RATE]},
            {labels.get("exit", ""): int(value) for labels, value in metrics[EXITS]},
            int(_total(metrics[FAILED])),
        )
        readings.append(Reading(model, time, counters, version, rails_mw=rails))
    return readings


def _total(samples: Iterable[tuple[Mapping[str, str], float]]) -> float:
    return sum(value for _, value in samples)


class Exported(Collector):
    """What is watched as metrics, for ``prometheus_client``: the names of :func:`read_metrics`, and gauges.

    Attributes:
        readings: The latest one of every model.
        drift: By model and by what was compared ("exit 1", a mask) whether it drifted.
        up: Whether the source answers.
    """

    def __init__(self) -> None:
        self.readings: dict[str, Reading] = {}
        self.drift: dict[str, dict[str, bool]] = {}
        self.up = False

    def collect(self) -> Iterator[Metric]:
        """Metrics as they are now."""
        labels = ["model", "version"]
        yield GaugeMetricFamily("dyndeploy_up", "Whether the source that is watched answers.", value=float(self.up))
        images = CounterMetricFamily("dyndeploy_images", "Images that gave a result.", labels=labels)
        failed = CounterMetricFamily("dyndeploy_failed", "Images that gave none.", labels=labels)
        latency = Metric("dyndeploy_latency_ms", "Milliseconds of the network on an image.", "histogram")
        # Triton has it as a counter of this name, which is part of no histogram here.
        ms = Metric(MS, "Milliseconds of the network, summed over the images.", "unknown")
        rate = Metric(RATE, "Share of active bits, summed over the images.", "unknown")
        exits = CounterMetricFamily("dyndeploy_exits", "Images that left at an exit.", labels=[*labels, "exit"])
        power = GaugeMetricFamily("dyndeploy_power_watts", "Power of a rail.", labels=[*labels, "rail"])
        heat = GaugeMetricFamily("dyndeploy_temperature_celsius", "Temperature.", labels=[*labels, "sensor"])
        drift = GaugeMetricFamily(
            "dyndeploy_drift", "1 where rates or exits are not those of the calibration.", labels=[*labels, "what"]
        )
        for reading in self.readings.values():
            own, counters = [reading.model, reading.version], reading.counters
            named = dict(zip(labels, own, strict=True))
            images.add_metric(own, counters.images)
            failed.add_metric(own, counters.failed)
            ms.add_sample(MS, named, counters.ms)
            if counters.histogram is not None:
                total = 0
                bounds = [*map(_bound, counters.histogram.bounds), "+Inf"]
                for bound, count in zip(bounds, counters.histogram.counts, strict=True):
                    total += count
                    latency.add_sample(LATENCY, {**named, "le": bound}, total)
                latency.add_sample("dyndeploy_latency_ms_count", named, total)
                latency.add_sample("dyndeploy_latency_ms_sum", named, counters.ms)
            for mask, value in counters.rates.items():
                rate.add_sample(RATE, {**named, "mask": mask}, value)
            for number, value in counters.exits.items():
                exits.add_metric([*own, number], value)
            for name, value in reading.rails_mw.items():
                power.add_metric([*own, name], value / 1000)
            for name, value in reading.temperatures_c.items():
                heat.add_metric([*own, name], value)
            for what, drifted in self.drift.get(reading.name, {}).items():
                drift.add_metric([*own, what], float(drifted))
        for family in (images, failed, latency, ms, rate, exits, power, heat, drift):
            if family.samples:
                yield family


def _bound(value: float) -> str:
    return f"{value:g}"
