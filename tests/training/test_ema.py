from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dyndeploy.training.ema import MovingAverage


@given(decay=st.floats(0, 0.999), values=st.lists(st.floats(-10, 10), min_size=1, max_size=6))
def test_closed_form(decay: float, values: list[float]) -> None:
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, 2.0)
    average = MovingAverage(network, decay)
    for value in values:
        nn.init.constant_(network.weight, value)
        average.update(network)
    n = len(values)
    expected = decay**n * 2.0 + sum((1 - decay) * decay ** (n - 1 - i) * value for i, value in enumerate(values))
    assert average.state["weight"].item() == pytest.approx(expected, abs=1e-9)


def test_statistics_are_averaged_and_counters_copied() -> None:
    norm = nn.BatchNorm1d(2)
    average = MovingAverage(norm, 0.9)
    norm.train()(torch.tensor([[0.0, 4.0], [2.0, 8.0]]))  # running_mean 0.1, 0.6
    norm(torch.tensor([[0.0, 4.0], [2.0, 8.0]]))  # running_mean 0.19, 1.14
    average.update(norm)
    torch.testing.assert_close(average.state["running_mean"], torch.tensor([0.019, 0.114]))
    # 0.1 * 2 would round to 0.
    assert average.state["num_batches_tracked"].item() == 2


def test_applied_inside_the_block_only() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(network, 0.5)
    own = {key: value.clone() + 1 for key, value in network.state_dict().items()}
    network.load_state_dict(own)
    average.update(network)
    with pytest.raises(KeyError), average.applied(network):
        for key, value in network.state_dict().items():
            assert torch.equal(value, average.state[key])
        raise KeyError
    assert all(torch.equal(value, own[key]) for key, value in network.state_dict().items())
    # The average is no view of the network.
    assert not torch.equal(average.state["0.weight"], own["0.weight"])


def test_saved_and_loaded() -> None:
    network = nn.Linear(2, 1)
    average, other = MovingAverage(network, 0.5), MovingAverage(nn.Linear(2, 1), 0.5)
    other.load(average.state)
    assert all(torch.equal(other.state[key], value) for key, value in average.state.items())
