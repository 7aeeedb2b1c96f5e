"""Metrics of a Triton server are read, and what is written is read again."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dyndeploy.errors import InputError
from dyndeploy.watching.prometheus import Exported, read_metrics
from dyndeploy.watching.reading import Histogram, read_line
from tests.watching.helpers import line

PAGE = """\
# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="exits",version="1"} 40
# HELP nv_gpu_power_usage GPU power usage in watts
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{gpu_uuid="GPU-1"} 71.5
# HELP dyndeploy_images_total Images
# TYPE dyndeploy_images_total counter
dyndeploy_images_total{model="exits",version="1"} 40
dyndeploy_images_total{model="masks",version="2"} 8
# TYPE dyndeploy_ms_sum counter
dyndeploy_ms_sum{model="exits",version="1"} 120.5
# TYPE dyndeploy_latency_ms_bucket counter
dyndeploy_latency_ms_bucket{model="exits",version="1",le="2"} 10
dyndeploy_latency_ms_bucket{model="exits",version="1",le="5"} 39
dyndeploy_latency_ms_bucket{model="exits",version="1",le="+Inf"} 40
# TYPE dyndeploy_rate_sum counter
dyndeploy_rate_sum{model="masks",version="2",mask="mask/layer1.0/spatial"} 2
# TYPE dyndeploy_exits_total counter
dyndeploy_exits_total{model="exits",version="1",exit="1"} 30
dyndeploy_exits_total{model="exits",version="1",exit="3"} 10
"""


def test_models_of_a_server_are_read_apart() -> None:
    exits, masks = read_metrics(PAGE, 5.0)
    assert (exits.name, masks.name, exits.time, exits.started) == ("exits/1", "masks/2", 5.0, None)
    assert exits.counters.images == 40 and exits.counters.ms == 120.5
    assert exits.counters.exits == {"1": 30, "3": 10}
    assert exits.counters.histogram == Histogram((2.0, 5.0), (10, 29, 1))
    assert masks.counters.mean_rates == {"mask/layer1.0/spatial": 0.25} and masks.counters.histogram is None
    assert exits.power == (71500.0, "card GPU-1")


def test_a_server_without_our_models_has_no_readings() -> None:
    assert read_metrics("# TYPE nv_inference_count counter\nnv_inference_count 3\n", 0.0) == []


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("dyndeploy_images_total{model=", "no text of Prometheus"),
        ("<html>not found</html>", "no text of Prometheus"),
        ('dyndeploy_images_total{model="a"} NaN', "is no count"),
        ('dyndeploy_images_total{model="a"} -1', "is no count"),
    ],
)
def test_what_is_no_page_of_metrics_is_refused(page: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_metrics(page, 0.0)


def test_what_is_written_is_read_again() -> None:
    exported, registry = Exported(), CollectorRegistry()
    registry.register(exported)
    assert generate_latest(registry).decode().splitlines()[-1] == "dyndeploy_up 0.0"
    reading = read_line(line(200, rails_mw={"VDD_IN": 4000.0}, temperatures_c={'a "b"\\': 50.0}))
    exported.readings[reading.name] = reading
    exported.drift[reading.name] = {"exit 1": True, "mask/a": False}
    exported.up = True
    page = generate_latest(registry).decode()
    (again,) = read_metrics(page, reading.time)
    assert again.counters == reading.counters and again.model == "net"
    lines = page.splitlines()
    assert 'dyndeploy_power_watts{model="net",rail="VDD_IN",version=""} 4.0' in lines
    assert 'dyndeploy_drift{model="net",version="",what="exit 1"} 1.0' in lines
    assert 'dyndeploy_latency_ms_bucket{le="+Inf",model="net",version=""} 200.0' in lines
    assert 'dyndeploy_temperature_celsius{model="net",sensor="a \\"b\\"\\\\",version=""} 50.0' in lines
    assert "dyndeploy_up 1.0" in lines
