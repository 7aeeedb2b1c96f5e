from __future__ import annotations

import json

import numpy as np
import pytest

from dyndeploy.errors import UsageError
from dyndeploy.inference.compared import detection_limits
from dyndeploy.precisions import CPU_PRECISIONS, PRECISIONS, cpu_precision, precision_of, tolerance_of
from dyndeploy.prediction.kernels import ELEMENT_BYTES
from dyndeploy.targets import load_target, target_names


def test_the_table() -> None:
    assert list(PRECISIONS) == ["fp32", "fp16", "bf16", "int8"]
    for name, precision in PRECISIONS.items():
        assert precision.name == name
        assert bool(precision.engine) != bool(precision.no_engine), "a plan, or why there is none"
    for name, dtype in (("fp32", np.float32), ("fp16", np.float16), ("int8", np.int8)):
        assert PRECISIONS[name].element_bytes == np.dtype(dtype).itemsize == ELEMENT_BYTES[name]
    assert CPU_PRECISIONS == ("fp32", "bf16", "int8")
    assert [name for name, precision in PRECISIONS.items() if precision.in_graph] == ["int8"]
    with pytest.raises(TypeError):
        PRECISIONS["fp8"] = PRECISIONS["int8"]  # type: ignore[index]


def test_tolerances_follow_the_width_of_a_number() -> None:
    fp32, fp16, bf16, int8 = (tolerance_of(name) for name in ("fp32", "fp16", "bf16", "int8"))
    assert fp32.output < fp16.output <= bf16.output < int8.output
    assert fp32.margin < fp16.margin <= bf16.margin < int8.margin
    assert fp32.ties < fp16.ties <= bf16.ties <= int8.ties
    # What was simulated of FP16 (docs/tensorrt.md) is far inside, and far above what one rounding explains.
    assert fp16.output > 10 * 0.0007 and fp16.ties > 10 * 0.00012 and fp16.margin > 10 * 2**-11
    assert (fp16.ties_allowed(10_000), fp16.ties_allowed(10)) == (20.0, 1.0)
    json.dumps(vars(fp16))


def test_detections_may_be_further_off_in_half() -> None:
    fp32, fp16 = (detection_limits(name) for name in ("fp32", "fp16"))
    assert fp32.box < fp16.box and fp32.score < fp16.score
    assert fp32.mask_iou > fp16.mask_iou and fp32.unpaired < fp16.unpaired
    # What was simulated (benchmarks/results/detection-fp16.md) is inside; a wrong weight moves boxes by pixels.
    assert 2 * 0.2 < fp16.box < 1 and 2 * 0.008 < fp16.score < 0.05 and fp16.unpaired > 0.06
    assert (fp32.cut, fp16.cut) == pytest.approx((1e-4, 2e-3))
    for name in ("bf16", "int8"):
        with pytest.raises(UsageError, match=f"How far {name} moves boxes was never measured"):
            detection_limits(name)


def test_what_a_cpu_makes_of_a_name() -> None:
    assert [cpu_precision(name) for name in PRECISIONS] == ["fp32", "fp32", "bf16", "int8"]
    with pytest.raises(UsageError, match=r"Unknown precision 'fp-16'\. Did you mean 'fp16'"):
        precision_of("fp-16")


@pytest.mark.parametrize("name", target_names())
def test_targets_rule_over_every_precision(name: str) -> None:
    target = load_target(name)
    assert list(target.precisions) == list(PRECISIONS)
    if target.runtime == "tensorrt":
        assert not any(rule.supported and PRECISIONS[p].no_engine for p, rule in target.precisions.items())
