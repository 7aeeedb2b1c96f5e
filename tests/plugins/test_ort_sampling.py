"""Deformable attention of the library for ONNX Runtime against its reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS
from tests.ops.cases import Case, build
from tests.plugins.test_ort_cpu import isa, pytestmark, run_node

__all__ = ["isa", "pytestmark"]

SAMPLING = [name for name, spec in OPERATORS.items() if spec.kind == "deformable_attention"]


def run(case: Case, threads: int = 1, **attributes: object) -> np.ndarray:
    ports = zip(case.spec.inputs, case.inputs, strict=True)
    inputs = {port.name: tensor.numpy() for port, tensor in ports}
    return run_node(case.spec.name, inputs, {}, threads, **{**case.attributes, **attributes})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SAMPLING)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_samples_are_those_of_the_reference(isa: str, threads: int, name: str, data: st.DataObject) -> None:
    case = build(
        name,
        seed=data.draw(st.integers(0, 2**31)),
        batch=data.draw(st.integers(1, 2)),
        size=(data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))),
        channels=data.draw(st.sampled_from([1, 7, 16, 32, 70])),
        hidden=data.draw(st.integers(1, 200)),
        stride=data.draw(st.integers(1, 4)),
        channel_groups=data.draw(st.integers(1, 8)),
    )
    np.testing.assert_allclose(run(case, threads), case.reference().numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("index", "shape", "attributes", "message"),
    [
        (0, (1, 5, 3, 8), {}, r"input 0 \(value\)"),
        (1, (1, 6, 3, 3, 1, 3), {}, r"input 1 \(locations\)"),
        (1, (1, 6, 2, 3, 1, 2), {}, r"input 1 \(locations\)"),
        (2, (1, 6, 3, 3, 2), {}, r"input 2 \(weights\)"),
        (1, (1, 0, 3, 3, 1, 2), {}, "is empty"),
        (0, None, {"sizes": [8, 8, 4, 4, 2]}, "sizes"),
        (0, None, {"sizes": [8, 8, 4, 4, 2, 0]}, "sizes"),
        (0, None, {"sizes": [2**62, 2**62, 4, 4, 2, 2]}, "sizes"),
    ],
)
def test_bad_nodes_end_in_an_error(
    index: int, shape: tuple[int, ...] | None, attributes: dict[str, list[int]], message: str
) -> None:
    case = build(SAMPLING[0])
    arrays = {port.name: tensor.numpy() for port, tensor in zip(case.spec.inputs, case.inputs, strict=True)}
    if shape is not None:
        arrays[case.spec.inputs[index].name] = np.ones(shape, np.float32)
    with pytest.raises(Exception, match=message) as caught:
        run_node(SAMPLING[0], arrays, {}, **{**case.attributes, **attributes})
    assert f"dyndeploy.{SAMPLING[0]}" in str(caught.value)
