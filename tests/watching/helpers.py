"""Lines as ``dyndeploy-run --stats`` writes them, by hand."""

from __future__ import annotations

import json
from typing import Any

BOUNDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def line(images: int = 0, **changes: Any) -> str:
    """A line of a network with two exits and two masks; all images took between 5 and 10 ms.

    Args:
        images: Counted so far; 60 of 100 leave at the first exit.
        **changes: Fields, or ``rates`` and ``exits`` of the statistics.
    """
    first = round(0.6 * images)
    statistics: dict[str, Any] = {"images": images}
    if images:
        statistics["ms"] = {"mean": 7.5, "min": 5.5, "p50": 7.0, "p90": 8.0, "p95": 8.5, "p99": 9.0, "max": 9.5}
        statistics |= {"percentiles_of": min(images, 4096), "preprocessing_ms": 1.25}
    counts = [0] * (len(BOUNDS) + 1)
    counts[3] = images
    statistics["histogram_ms"] = {"bounds": BOUNDS, "counts": counts}
    statistics["rates"] = changes.pop("rates", {"mask/a": 0.25, "mask/b": 0.75} if images else {})
    statistics["exits"] = changes.pop("exits", {"1": first, "2": images - first})
    fields = {
        "schema_version": 1, "network": "net", "precision": "fp32", "runtime": "onnxruntime",
        "thresholds": [0.5, None], "bundle": "b", "process": 7, "started": 1000.0, "time": 1000.0 + images / 100,
        "every": 1.0, "ended": False, "failed": 0, "statistics": statistics, "rails_mw": {}, "temperatures_c": {},
    }  # fmt: skip
    return json.dumps({**fields, **changes})
