from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from dyndeploy.blocks import named_outputs
from dyndeploy.errors import UsageError

A, B = torch.zeros(2, 3), torch.zeros(2, 3, 4, 4)


class Pair(NamedTuple):
    scores: torch.Tensor
    boxes: torch.Tensor


@dataclass
class Nested:
    features: list[torch.Tensor]
    nothing: None = None


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["logits"]),
        (B, ["output"]),
        ((A, B), ["output0", "output1"]),
        ({"p3": A, "p4": [A, B]}, ["p3", "p4/0", "p4/1"]),
        (Pair(A, B), ["scores", "boxes"]),
        (Nested([A, B]), ["features/0", "features/1"]),
    ],
)
def test_results_of_every_form_have_names(result: object, names: list[str]) -> None:
    assert list(named_outputs(result)) == names


@pytest.mark.parametrize(
    ("result", "match"), [((A, 1.0), "returns float as 'output1'"), ([], "no tensor"), ("x", "str")]
)
def test_what_is_no_tensor_is_refused(result: object, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        named_outputs(result)
