from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.gates import BLOCK, CHANNEL, HEAD, PATCH, TOKEN
from dyndeploy.prediction import Rates
from dyndeploy.prediction.rates import block_rates, checked_rates, mean_rates


def test_kinds_that_are_not_named_have_the_default() -> None:
    rates = Rates(spatial=0.25, head=0.5)
    assert [rates.of(kind) for kind in (PATCH, CHANNEL, HEAD, TOKEN)] == [0.25, 1.0, 0.5, 1.0]
    assert Rates(default=0.3).of(TOKEN) == 0.3
    assert (rates.spatial, rates.channel, rates.get("conv1")) == (0.25, 1.0, None)


def test_the_rate_of_whole_blocks_may_be_called_spatial() -> None:
    assert Rates(0.4).of(BLOCK) == Rates(layer=0.4).of(BLOCK) == Rates(layer=0.4).spatial == 0.4
    assert Rates(0.4, layer=0.7).of(BLOCK) == 0.7


def test_an_operator_gets_its_gates_and_what_was_measured() -> None:
    rates = Rates(0.5, conv1=0.6, channel_slowest=0.9)
    own = rates.for_operator(OPERATORS["SpatialChannelBottleneck"])
    assert own == {"spatial": 0.5, "channel": 1.0, "conv1": 0.6, "channel_slowest": 0.9}
    assert rates.for_operator(OPERATORS["LayerBottleneck"])["layer"] == 0.5


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_the_mean_is_of_every_rate(pairs: list[tuple[float, float]]) -> None:
    mean = mean_rates([Rates(spatial, channel) for spatial, channel in pairs])
    assert mean.spatial == pytest.approx(sum(a for a, _ in pairs) / len(pairs))
    assert mean.channel == pytest.approx(sum(b for _, b in pairs) / len(pairs))


def test_bad_rates() -> None:
    for bad in (1.5, -0.1, "0.5", float("nan"), Rates(token=2.0), Rates(default=-1.0)):
        with pytest.raises(UsageError, match=r"in \[0, 1\]"):
            checked_rates(bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="2 entries, the network has 3"):
        block_rates([0.5, 0.5], 3)
